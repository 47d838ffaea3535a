"""The lens as a picture: layers upwards, positions to the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StatesError
from ..plots import visible
from .result import LensResult, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_FONT = "DejaVu Sans"  # comes with matplotlib, so pictures look alike everywhere
_NO_VALUE = "#e3120b"  # not a colour of the scale: NaN is seen at once
_MAX_INCHES = 26
_MAX_WRITTEN = 32  # positions; beyond, the tokens in the cells could not be read
_MAX_TICKS = 100

_SCALES: dict[str, str] = {
    "prob": "probability of the model's own choice",
    "rank": "rank of the model's own choice (log scale, 1 is best)",
    "kl": "KL(final || state) in nats",
}


def draw(result: LensResult, measure: Measure, title: str | None) -> Figure:
    """A matplotlib figure that belongs to nobody: no window, no global state."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    if measure not in _SCALES:
        raise ValueError(f"measure is one of {', '.join(_SCALES)}, not {measure!r}")
    values = {"prob": result.prob_of_final, "rank": result.rank_of_final, "kl": result.kl}[measure].astype(np.float64)
    if measure == "rank":
        values = np.where(values > 0, values, np.nan)
    n_states, n_tokens = values.shape
    if n_tokens == 0:
        raise StatesError("a lens of no positions cannot be drawn: capture at least one token")
    written = n_tokens <= _MAX_WRITTEN
    wide = 0.78 if written else 0.24
    width, height = min(max(wide * n_tokens + 2.6, 7.0), _MAX_INCHES), min(max(0.3 * n_states, 2.2) + 2.0, _MAX_INCHES)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    # An embedding is so much further off than any layer that layers would all look alike.
    scaled = values[1:] if measure == "kl" and result.labels[0] == "embedding" else values
    known = scaled[np.isfinite(scaled)]
    high = float(known.max()) if known.size else 1.0
    norm: Normalize
    if measure == "prob":
        norm = Normalize(0, 1)
    elif measure == "rank":
        norm = LogNorm(1, max(high, 2.0))
    else:
        norm = Normalize(0, max(high, 1e-6))
    # Bright is near the model's own prediction in each of them.
    name = "cividis" if measure == "prob" else "cividis_r"
    colours = colormaps[name].with_extremes(bad=_NO_VALUE)
    image = axes.imshow(values, aspect="auto", origin="lower", interpolation="nearest", cmap=colours, norm=norm)
    beyond = "max" if bool((values > float(norm.vmax or 1)).any()) else "neither"
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.25 / width, aspect=14, extend=beyond)
    bar.set_label(_SCALES[measure], family=_FONT, fontsize=9)
    has_glyph = _glyphs()
    if written:
        _write_tokens(axes, result, colours(norm(values)), has_glyph)
    _ticks(axes, result, has_glyph)
    heading = f"Logit lens of {visible(result.model)}" if title is None else title
    if written:
        heading += "\nin each cell the state's own most probable token; bold: the model's own choice"
    if not np.isfinite(values).all():
        heading += "\nred: no number (the state holds NaN or Inf)"
    axes.set_title(heading, loc="left", family=_FONT, fontsize=10, pad=8, parse_math=False)
    return figure


def write(figure: Figure, path: Path, form: str) -> None:
    """Write the figure; the same numbers give the same file."""
    from matplotlib import rc_context

    metadata: dict[str, Any] = {"Software": "loom_gguf"} if form == "png" else {"Creator": "loom_gguf", "Date": None}
    with rc_context({"svg.hashsalt": "loom_gguf", "svg.fonttype": "path"}):
        figure.savefig(path, format=form, dpi=150, metadata=metadata)


def _glyphs() -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=[_FONT])))
    return lambda char: font.get_char_index(ord(char)) != 0


def _write_tokens(axes: Axes, result: LensResult, colours: Any, has_glyph: Any) -> None:
    for s in range(len(result.labels)):
        for t in range(result.n_tokens):
            token = int(result.top_ids[s, t, 0])
            if token < 0:
                continue
            red, green, blue = colours[s, t, :3]
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            label = visible(result.text(token), has_glyph=has_glyph)
            cell = axes.text(
                t, s, label if len(label) <= 9 else label[:8] + "…", ha="center", va="center", family=_FONT,
                fontsize=7, color="black" if light else "white", parse_math=False, clip_on=True,
                weight="bold" if token == result.final_ids[t] else "normal",
            )  # fmt: skip
            cell.set_in_layout(False)  # it lies within the axes; measuring every one takes most of the time


def _ticks(axes: Axes, result: LensResult, has_glyph: Any) -> None:
    every = -(-result.n_tokens // _MAX_TICKS)
    at = range(0, result.n_tokens, every)
    read = [visible(result.read(t), has_glyph=has_glyph) for t in at]
    # Dollar signs in a token are not formulas.
    axes.set_xticks(
        at, read, rotation=45, ha="right", rotation_mode="anchor", family=_FONT, fontsize=8, parse_math=False
    )
    every = -(-len(result.labels) // _MAX_TICKS)
    axes.set_yticks(range(0, len(result.labels), every), result.labels[::every], family=_FONT, fontsize=8)
    axes.tick_params(length=2)
    axes.set_xlabel("token read at each position", family=_FONT, fontsize=10)
    axes.set_ylabel("state", family=_FONT, fontsize=10)
