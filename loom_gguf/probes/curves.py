"""Pictures of probes: accuracy over the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..picture import Picture
from .result import ProbeResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FONT = "DejaVu Sans"  # comes with matplotlib, so pictures look alike everywhere
# Of the palette of M. Okabe and K. Ito, which colour-blind readers tell apart; the lines differ in style as well.
_BLUE, _VERMILION, _BLACK = "#0072B2", "#D55E00", "#000000"
_COLUMNS = 3
_MAX_TICKS = 14


def draw_curves(results: Mapping[str, ProbeResult]) -> Picture:
    """One panel per result under its title: accuracy with its interval, the shuffled control, chance."""
    from matplotlib.figure import Figure

    if not results:
        raise ValueError("there are no results to draw")
    columns = min(len(results), _COLUMNS)
    rows = -(-len(results) // columns)
    wide = len(results) == 1
    figure = Figure(
        figsize=(6.5 if wide else 3.3 * columns, (3.6 if wide else 2.6 * rows) + 0.4),
        layout="constrained",
        facecolor="white",
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (title, result) in zip(grid, results.items(), strict=False):
        _panel(axes, title, result)
    for axes in grid[len(results) :]:
        axes.remove()
    handles, labels = grid[0].get_legend_handles_labels()
    font = {"family": _FONT, "size": 8}
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, prop=font)
    figure.supylabel("accuracy on held-out texts", fontfamily=_FONT, fontsize=9)
    figure.supxlabel("hidden state that the probe reads (numbers are layers)", fontfamily=_FONT, fontsize=9)
    return Picture(figure, f"accuracy of linear probes over the layers, {len(results)} panel(s)")


def _panel(axes: Axes, title: str, result: ProbeResult) -> None:
    x = range(len(result.states))
    level = f"{result.confidence:.0%} interval"
    axes.fill_between(x, result.low, result.high, color=_BLUE, alpha=0.25, linewidth=0, label=level)
    axes.plot(x, result.accuracy, color=_BLUE, marker="o", markersize=3.5, linewidth=1.6, label="probe")
    axes.plot(x, result.control, color=_VERMILION, linestyle=(0, (4, 2)), marker="x", markersize=3.5, linewidth=1.2,
              label="shuffled labels")  # fmt: skip
    axes.axhline(result.chance, color=_BLACK, linestyle=(0, (1, 2)), linewidth=1.2, label="commonest label")
    every = -(-len(result.states) // _MAX_TICKS)
    shown = [*x[::every]]
    names = [{"embedding": "emb"}.get(result.states[i], result.states[i]) for i in shown]
    axes.set_xticks(shown, names, family=_FONT, fontsize=8)
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(labelsize=8, length=2)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, loc="left", family=_FONT, fontsize=9, parse_math=False)
