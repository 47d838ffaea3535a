"""From a model's name to its file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from .errors import ModelNotFoundError

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
