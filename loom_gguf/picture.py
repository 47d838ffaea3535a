"""A drawn picture that a notebook shows and a file keeps."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import StatesFileError
from .states_file import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_DPI = 150


class Picture:
    """A matplotlib figure, outside of pyplot: nothing is left open, and no backend is chosen.

    A notebook shows it where it is the last value of a cell. `picture.figure` is the figure itself, for changes.
    """

    def __init__(self, figure: Figure, description: str) -> None:
        """`description`: what a text-only output shows instead."""
        self.figure = figure
        self.description = description

    def __repr__(self) -> str:
        """What it shows."""
        return f"<Picture: {self.description}>"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self._write(buffer, "png", 100)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str], *, dpi: int = _DPI) -> None:
        """Write it to a .png, .svg or .pdf file, a PNG with `dpi` dots per inch. It appears whole or not at all."""
        target = check_picture(path)
        with replacing(target, "the picture") as temporary:
            self._write(temporary, target.suffix.lower()[1:], dpi)

    def _write(self, file: Any, kind: str, dpi: int) -> None:
        key = "Software" if kind == "png" else "Creator"
        self.figure.savefig(file, format=kind, dpi=dpi, metadata={key: "loom_gguf"})


def check_picture(path: str | os.PathLike[str]) -> Path:
    """The path, if a picture may be written there; worth asking before a long computation."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise StatesFileError(f"cannot tell the format of {target}: its name must end in {', '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise StatesFileError(f"there is no folder {target.parent}: make it first, or choose another path")
    return target
