"""From a model's name to its file: the places where models lie on this machine.

Places, in the order in which they win a name (`loom-gguf where NAME` shows all that have it):

1. `file`: files named on the command line, and paths where they may be opened.
2. `demo`: the model that comes with the package.
3. `own`: our own store, `$LOOM_HOME/models`, else `$XDG_DATA_HOME/loom_gguf/models`, else
   `~/.local/share/loom_gguf/models`. It is laid out as Ollama lays out its own, so that names have hosts, namespaces and
   tags: `manifests/<host>/<namespace>/<model>/<tag>`, a JSON manifest, and `blobs/sha256-<hex>`. Only this place is ever
   written to; what is being written lies in `partial/`, on the same file system, until it is whole and verified.
4. `folder`: loose .gguf files in `$LOOM_MODELS_DIR` (`--models-dir`).
5. `ollama`: `$OLLAMA_MODELS`, else `~/.ollama/models`, then `/usr/share/ollama/.ollama/models`.
6. `huggingface`: `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
7. `lmstudio`: `~/.lmstudio/models`.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from ..errors import ModelNotFoundError

DEMO = "demo"


def demo_path() -> Path:
    """The model that comes with the package."""
    return Path(str(resources.files("loom_gguf") / "data" / "demo.gguf"))


def resolve(model: str | os.PathLike[str]) -> Path:
    """The file of a model: a path, or "demo" for the model that comes with the package.

    A file called `demo` in the current folder is reached as `./demo`.
    """
    if isinstance(model, str) and model == DEMO:
        return demo_path()
    path = Path(model).expanduser()
    if not path.exists():
        raise ModelNotFoundError(
            f"no model '{os.fspath(model)}': give the path of a .gguf file, or 'demo' for the built-in model"
        )
    return path
