"""LM Studio's folder: <publisher>/<model>/<file>.gguf, mostly as in the repositories of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..split import Files, models_of
from .entry import Candidate
from .files import gguf_files
from .loose import repository_candidates

_DEPTH = 2  # of the folders that hold files


def candidates(folder: Path, roots: Iterable[str]) -> Iterator[Candidate]:
    """The .gguf files, as `publisher/model:QUANTIZATION`."""
    real = Path(os.path.realpath(folder))
    repositories: dict[Path, list[Files]] = {}
    for files in models_of(gguf_files(real, roots, _DEPTH)):
        if len(files.path.relative_to(real).parts) == _DEPTH + 1:
            repositories.setdefault(files.path.parent, []).append(files)
    for repository, found in repositories.items():
        name = repository.relative_to(real).as_posix()
        yield from repository_candidates(name, repository, found, "lmstudio")
