"""Pictures of layers x tokens: layers upwards, tokens to the right, a number as a colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .figures import MAX_INCHES, PAPER, Theme, finish_axes, log_ticks, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Measure = Literal["turn", "norm"]

_MAX_TICKS = 100  # more tick labels than this along an axis cannot be read
_NO_NUMBER = "red with a cross: no number"


@dataclass(frozen=True)
class LayerMap:
    """How far each layer turns the state of each token ("turn"), or how long it is ("norm")."""

    measure: Measure
    values: Floats  # (n_layers, n_tokens); NaN where there is no finite number
    labels: list[str]  # of the layers, from the lowest
    low: float
    high: float
    known: bool  # whether there is any number to draw

    @property
    def log(self) -> bool:
        """Whether the scale is logarithmic."""
        return self.measure == "norm"

    @property
    def title(self) -> str:
        """What is shown."""
        if self.log:
            return "Length of each hidden state"
        return "How far each layer turns the hidden state of each token"

    @property
    def scale(self) -> str:
        """What the colours mean, with the unit."""
        return "L2 norm (log scale, the model's own units)" if self.log else "angle to the state below (degrees)"

    @property
    def beyond(self) -> bool:
        """Whether some values lie above the scale."""
        return bool((self.values > self.high).any())

    def shade(self) -> Floats:
        """The values from 0 (low) to 1 (high)."""
        bend: Callable[[Any], Any] = np.log if self.log else np.asarray
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = bend(self.low), bend(self.high)
            shade = np.clip((bend(self.values) - low) / (high - low if high > low else 1.0), 0.0, 1.0)
        return np.asarray(shade)


def layer_map(values: Floats, states: Sequence[str], n_layer: int, measure: Measure) -> LayerMap:
    """The map of `row_turns` or `row_norms` of hidden states with these labels."""
    labels = _steps(states, n_layer) if measure == "turn" else list(states)
    values = np.where(np.isfinite(values) & ((values > 0) | (measure == "turn")), values, np.nan)
    # Block 0 turns an embedding so much further than the others turn anything that they would all look alike.
    scaled = values[1:] if measure == "turn" and labels[0] == "0" and len(values) > 1 else values
    known = scaled[(scaled > 0) & np.isfinite(scaled)]
    log = measure == "norm"
    return LayerMap(
        measure=measure,
        values=values,
        labels=labels,
        low=float(known.min()) if log and known.size else float(log),
        high=float(known.max()) if known.size else 1.0,
        known=bool(np.isfinite(values).any()),
    )


def _steps(labels: Sequence[str], n_layer: int) -> list[str]:
    """Names of the ways from one hidden state to the next: the upper one's, or both where some lie between."""
    order = ["embedding", *map(str, range(n_layer)), "final"]
    return [
        after if order.index(after) == order.index(before) + 1 else f"{before} to {after}"
        for before, after in pairwise(labels)
    ]


def draw_layer_map(
    found: LayerMap, tokens: Sequence[str], theme: Theme = PAPER, title: str = "", *, title_pad: float = 8
) -> Figure:
    """The map as a figure; tokens: a label each, with glyphs in the font."""
    from matplotlib.colors import LogNorm, Normalize

    norm = (LogNorm if found.log else Normalize)(found.low, max(found.high, found.low * 1.001))
    return draw_map(
        found.values, found.labels, tokens, norm=norm, colours="viridis", scale=found.scale, title=title, theme=theme,
        title_pad=title_pad, no_number=f"{_NO_NUMBER} (NaN, Inf or a state of length 0)",
    )  # fmt: skip


def draw_map(
    values: Floats,
    rows: Sequence[str],
    tokens: Sequence[str],
    *,
    norm: Normalize,
    colours: str,
    scale: str,
    title: str = "",
    ylabel: str = "layer",
    cell_inches: float = 0.25,
    title_pad: float = 8,
    theme: Theme = PAPER,
    no_number: str = f"{_NO_NUMBER} (NaN or Inf)",
) -> Figure:
    """Values (n_rows, n_tokens) as colours, the first row lowest; NaN is crossed out, and the title then says so.

    norm: matplotlib's, with its ends set. colours: name of a colour map. scale: what the colours mean, with the unit.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    n_rows, n_tokens = values.shape
    width = min(max(cell_inches * n_tokens + 2.6, 6.5), MAX_INCHES)
    with styled(theme):
        figure = new_figure(width, max(0.27 * n_rows, 2.2) + 1.7, theme)
        axes = figure.add_subplot()
        image = axes.imshow(
            values, aspect="auto", origin="lower", interpolation="nearest", norm=norm,
            cmap=colormaps[colours].with_extremes(bad=theme.missing),
        )  # fmt: skip
        bad = ~np.isfinite(values)
        if bad.any():
            at, of = np.nonzero(bad)
            axes.scatter(of, at, s=24, marker="x", linewidths=0.9, color="white", rasterized=len(of) > 2000)
            axes.set(xlim=(-0.5, n_tokens - 0.5), ylim=(-0.5, n_rows - 0.5))
            title += ("\n" if title else "") + no_number
        _ticks(axes, tokens, rows)
        with np.errstate(invalid="ignore"):
            beyond = bool((values > (np.inf if norm.vmax is None else norm.vmax)).any())
        bar = figure.colorbar(
            image, ax=axes, pad=0.01, fraction=0.25 / width, aspect=12, extend="max" if beyond else "neither"
        )
        bar.set_label(scale.replace(" (", "\n(", 1))  # in two lines: the bar is low where layers are few
        if isinstance(norm, LogNorm):
            log_ticks(bar.ax.yaxis, narrow=norm(1.0 if norm.vmin is None else norm.vmin * 100) > 1)
        bar.outline.set_edgecolor(theme.ink)
        finish_axes(bar.ax, theme)
        axes.set_xlabel("token read at each position")
        axes.set_ylabel(ylabel)
        finish_axes(axes, theme, box=True)
        if title:
            axes.set_title(title, pad=title_pad)
    return figure


def _ticks(axes: Axes, tokens: Sequence[str], rows: Sequence[str]) -> None:
    every = -(-len(tokens) // _MAX_TICKS)
    # Dollar signs in a token are not formulas, which these labels learn only here.
    axes.set_xticks(
        range(0, len(tokens), every), tokens[::every], rotation=45, ha="right", rotation_mode="anchor", parse_math=False
    )
    every = -(-len(rows) // _MAX_TICKS)
    axes.set_yticks(range(0, len(rows), every), rows[::every])
    axes.tick_params(length=2)
