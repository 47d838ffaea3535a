"""The places that a model can come from: what The Loom calls loaders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ...library import demo_path

Place = Literal["file", "demo", "folder"]

# In the order in which a name is looked for.
PLACES: Mapping[Place, str] = {
    "file": "a .gguf file that the server was started with",
    "demo": "the model that comes with the package",
    "folder": "a .gguf file in the folder of --models-dir",
}


def place_of(path: Path, folder: Path | None) -> Place:
    """Where a model's file lies. `folder`: of --models-dir."""
    if path == demo_path():
        return "demo"
    return "folder" if folder is not None and path.is_relative_to(folder.resolve()) else "file"
