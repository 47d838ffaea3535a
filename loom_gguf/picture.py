"""A drawn picture that a notebook shows and a file keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .files import StrPath, check_target, replacing
from .report.figures import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


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
        return picture(self.figure, "png", dpi=100)

    def save(self, path: StrPath, *, dpi: int | None = None) -> None:
        """Write it to a .png, .svg or .pdf file, which appears whole or not at all; dpi: of a PNG (150)."""
        target = check_picture(path)
        data = picture(self.figure, target.suffix.lower()[1:], dpi=dpi)
        with replacing(target, "the picture") as temporary:
            temporary.write_bytes(data)


def check_picture(path: StrPath) -> Path:
    """The path, if a picture may be written there; worth asking before a long computation."""
    return check_target(path, SUFFIXES)
