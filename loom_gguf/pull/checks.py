"""Whether what comes is a model that can be run here: by the first megabytes, and again when all of it is there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import gguf_file
from ..errors import CorruptGGUFError, ForeignEngineError, ModelLoadError, TruncatedGGUFError
from ..gguf_file import GGUFFile, read_gguf, read_model
from ..ollama_engine import written_for_ollama
from .own_store import OwnStore, link_parts
from .space import writing


def look(name: str, path: Path) -> bool:
    """Look at a GGUF file that is still growing; False where its header has not come yet.

    Raises NotGGUFError or ForeignEngineError: gigabytes of it need not come.
    """
    try:
        file = gguf_file.read_header(path)
    except (CorruptGGUFError, TruncatedGGUFError):
        return False
    _check_engine(name, file)
    return True


def check_whole(store: OwnStore, name: str, files: Sequence[Path]) -> GGUFFile:
    """The header of the model that has come, of a split one with all of its parts. ModelLoadError where it is none."""
    try:
        if len(files) == 1:
            file = read_gguf(files[0])
        else:
            with writing("the parts were checked"), tempfile.TemporaryDirectory(dir=store.partial) as folder:
                file = read_model(link_parts(Path(folder) / "parts", files))
    except ModelLoadError as error:
        text = str(error)
        for path in files:
            text = text.replace(str(path), name)
        raise type(error)(text) from None
    _check_engine(name, file)
    return file


def _check_engine(name: str, file: GGUFFile) -> None:
    if why := written_for_ollama(file):
        raise ForeignEngineError(f"{name} cannot be run here: {why}")
