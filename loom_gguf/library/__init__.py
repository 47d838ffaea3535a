"""From a model's name to its file: the places where models lie on this machine.

Places, in the order in which they win a name (`loom-gguf where NAME` shows all that have it):

1. `file`: files named on the command line, and paths where they may be opened.
2. `demo`: the model that comes with the package.
3. `own`: our own store, `$LOOM_HOME/models`, else `$XDG_DATA_HOME/loom_gguf/models`, else
   `~/.local/share/loom_gguf/models`. It is laid out as Ollama lays out its own, so that names have hosts, namespaces
   and tags: `manifests/<host>/<namespace>/<model>/<tag>`, a JSON manifest, and `blobs/sha256-<hex>`. Only this place is
   ever written to; what is being written lies in `partial/`, on the same file system, until it is whole and verified.
   `split/` has the parts of split models once more, under names by which llama.cpp finds them.
4. `folder`: loose .gguf files in `$LOOM_MODELS_DIR` (`--models-dir`).
5. `ollama`: `$OLLAMA_MODELS`, else `~/.ollama/models`, then `/usr/share/ollama/.ollama/models`.
6. `huggingface`: `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
7. `lmstudio`: `~/.lmstudio/models`.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ModelNotFoundError
from .entry import Entry, Extras, Place
from .loose import path_entry
from .names import Name, parse_name
from .places import DEMO, Library, demo_path, looks_like_path
from .settings import LibrarySettings

__all__ = [
    "DEMO",
    "Entry",
    "Extras",
    "Library",
    "LibrarySettings",
    "Name",
    "Place",
    "demo_path",
    "find",
    "parse_name",
    "resolve",
]


def resolve(model: str | os.PathLike[str]) -> Path:
    """The GGUF file of a model: of a path, or of a name in the library of this user.

    Raises ModelNotFoundError, or what says why the model cannot be used.
    """
    if not isinstance(model, str):
        path = _expanded(os.fspath(model))
        if not _exists(path):
            raise _no_model(os.fspath(model))
        return path
    entry = find(model).usable()
    assert entry.path is not None  # those without one have a problem
    return entry.path


def find(model: str) -> Entry:
    """The model that a text means: the file of a path, else a name in the library of this user.

    A text with a slash or .gguf in it is a path where such a file is there. A file called `demo` in the current folder
    is reached as `./demo`.
    """
    path = _expanded(model)
    there = _exists(path)
    if there and model and (looks_like_path(model) or os.sep in model):
        return path_entry(path)
    try:
        return Library(LibrarySettings.read(os.environ), allow_paths=False).find(model)
    except ModelNotFoundError:
        if there and model:
            return path_entry(path)
        raise _no_model(model) from None


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~somebody who is not there
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, a NUL
        return False


def _no_model(model: object) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"no model '{model!s:.200}': give the path of a .gguf file, a name that `loom-gguf list` shows, or 'demo' for "
        f"the built-in model"
    )
