"""The lens as a picture: layers upwards, positions to the right."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StatesError
from ..report.figures import FONT, glyphs, ink_on, styled
from ..report.labels import short_name, visible
from ..report.maps import draw_map
from .result import MEASURES, LensResult, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_MAX_WRITTEN = 32  # positions; beyond, the tokens in the cells could not be read
_LONGEST = 9  # characters of a token in a cell

_SCALES: dict[Measure, str] = {
    "prob": "probability of the model's own choice",
    "rank": "rank of the model's own choice (log scale, 1 is best)",
    "kl": "KL(final || state) in nats",
}


def draw(result: LensResult, measure: Measure, title: str | None) -> Figure:
    """A matplotlib figure that belongs to nobody: no window, no global state."""
    from matplotlib.colors import LogNorm, Normalize

    if measure not in MEASURES:
        raise ValueError(f"measure is one of {', '.join(MEASURES)}, not {measure!r}")
    values = {"prob": result.prob_of_final, "rank": result.rank_of_final, "kl": result.kl}[measure].astype(np.float64)
    if measure == "rank":
        values = np.where(values > 0, values, np.nan)
    if result.n_tokens == 0:
        raise StatesError("a lens of no positions cannot be drawn: capture at least one token")
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
    written = result.n_tokens <= _MAX_WRITTEN
    heading = f"Logit lens of {short_name(result.model)}" if title is None else title
    if written:
        heading += "\nin each cell the state's own most probable token; bold: the model's own choice"
    figure = draw_map(
        values,
        result.labels,
        [visible(result.read(t), has_glyph=glyphs()) for t in range(result.n_tokens)],
        norm=norm,
        colours="cividis" if measure == "prob" else "cividis_r",  # bright is near the model's own prediction
        scale=_SCALES[measure],
        title=heading,
        ylabel="hidden state",
        cell_inches=0.78 if written else 0.25,
    )
    if written:
        with styled():
            axes = figure.axes[0]
            _write_tokens(axes, result, axes.images[0].cmap(norm(values)), glyphs())
    return figure


def _write_tokens(axes: Axes, result: LensResult, colours: Any, has_glyph: Callable[[str], bool]) -> None:
    for s in range(len(result.labels)):
        for t in range(result.n_tokens):
            token = int(result.top_ids[s, t, 0])
            if token < 0:
                continue
            label = visible(result.text(token), has_glyph=has_glyph)
            cell = axes.text(
                t, s, label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…", ha="center", va="center",
                family=FONT, fontsize=7, color=ink_on(*colours[s, t, :3]), clip_on=True,
                weight="bold" if token == result.final_ids[t] else "normal",
            )  # fmt: skip
            cell.set_in_layout(False)  # it lies within the axes; measuring every one takes most of the time
