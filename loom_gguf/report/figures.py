"""What all pictures share: one font, colours that the colour-blind tell apart, no backend and no global state."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FONT = "DejaVu Sans"  # comes with matplotlib, so pictures look alike everywhere
DPI = 150
MAX_INCHES = 26


@dataclass(frozen=True)
class Theme:
    """Colours of what is drawn: matplotlib's names for them."""

    ink: str
    soft: str  # of lines that are not the data's
    grid: str
    series: tuple[str, ...]
    background: str
    missing: str = "#e3120b"  # not a colour of the scales: what is no number is seen at once


# M. Okabe and K. Ito, "Color Universal Design", 2008: told apart by all kinds of colour vision; use other markers and
# dashes too.
PAPER = Theme(
    ink="#1a1a1a",
    soft="#555555",
    grid="#d5d5d5",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    background="white",
)


@contextlib.contextmanager
def styled(theme: Theme = PAPER) -> Iterator[None]:
    """Inside, what is drawn has the theme's colours and the font, and dollar signs are no formulas."""
    from matplotlib import rc_context

    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink)
    settings: Any = {
        "font.family": [FONT], "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left",
        "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
        "legend.frameon": False, "grid.color": theme.grid, "grid.linewidth": 0.6, "axes.axisbelow": True,
        "axes.facecolor": "none", "text.parse_math": False, **ink,
    }  # fmt: skip
    with rc_context(settings):
        yield


def new_figure(width: float, height: float, theme: Theme = PAPER) -> Figure:
    """A figure, in inches, that belongs to nobody: no window, no pyplot."""
    from matplotlib.figure import Figure

    size = min(width, MAX_INCHES), min(height, MAX_INCHES)
    return Figure(figsize=size, layout="constrained", facecolor=theme.background)


def picture(figure: Figure, kind: str, *, text: bool = False, name: str = "loom_gguf", dpi: int | None = None) -> bytes:
    """A figure as a "png", "svg" or "pdf" file; the same bytes each time.

    dpi: dots per inch; None for DPI.
    text: in an SVG, letters as text in the reader's own fonts, not as outlines. name: makes an SVG's ids its own.
    """
    from matplotlib import rc_context

    out = io.BytesIO()
    date = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    made_by = {"Software": "loom_gguf"} if date is None else {"Creator": "loom_gguf", date: None}
    with rc_context({"svg.fonttype": "none" if text else "path", "svg.hashsalt": name}):
        figure.savefig(out, format=kind, dpi=DPI if dpi is None else dpi, metadata=made_by)
    return out.getvalue()


@cache
def glyphs() -> Callable[[str], bool]:
    """Whether the font can draw a character; matplotlib warns where it cannot."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=[FONT])))
    return lambda char: font.get_char_index(ord(char)) != 0


def finish_axes(axes: Axes, theme: Theme = PAPER, *, box: bool = False) -> None:
    """Colours and font of what matplotlib makes only when it draws; box: lines on all four sides."""
    axes.tick_params(which="both", colors=theme.ink, grid_color=theme.grid, labelsize=8, labelfontfamily=FONT)
    for side, spine in axes.spines.items():
        spine.set_visible(box or side in ("left", "bottom"))


def log_ticks(axis: Axis, *, narrow: bool = False) -> None:
    """Numbers in full on a logarithmic axis, not powers of ten; narrow: too few of these to read values from."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def drawable(text: str) -> str:
    """The text with escapes for what the font lacks."""
    has_glyph = glyphs()
    return "".join(char if char == "\n" or has_glyph(char) else ascii(char)[1:-1] for char in text)


def legend_label(text: str) -> str:
    """A text for matplotlib's legend, where a first underscore would hide the entry."""
    return "\u200b" + text if text.startswith("_") else text


def ink_on(red: float, green: float, blue: float) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2) on a colour of sRGB values from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"
