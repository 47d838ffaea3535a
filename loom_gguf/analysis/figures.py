"""Pictures of an analysis: curves over depth, one panel per measure, and maps of layers x tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.figures import PAPER, Theme, finish_axes, glyphs, legend_label, log_ticks, new_figure, styled
from ..report.labels import short_name, token_labels
from ..report.maps import LayerMap, Measure, draw_layer_map, layer_map
from .report import MEASURES, Analysis, TextReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAND = ("norm_percentile_25", "norm_percentile_75")
_MARKS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 3)), (0, (8, 3)))

PANELS = (
    "d_eff_pca90", "d_eff_entropy", "d_eff_energy90", "beta_pca90", "beta_entropy", "beta_energy",
    "norm_percentile_50", "cosine_below", "cosine_next_token", "anisotropy", "sparsity", "n_outliers",
)  # fmt: skip
MAPS: tuple[Measure, ...] = ("turn", "norm")


def curves(analyses: Sequence[Analysis], theme: Theme = PAPER) -> Figure:
    """All panels in one figure."""
    with styled(theme):
        figure = new_figure(14, 14, theme)
        for axes, measure in zip(figure.subplots(4, 3).flat, PANELS, strict=True):
            _draw_curve(axes, analyses, measure, theme)
            axes.set_title(panel_title(measure))
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.16)  # type: ignore[union-attr, call-arg]  # constrained
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=10)
    return figure


def curve(analyses: Sequence[Analysis], measure: str, theme: Theme = PAPER) -> Figure:
    """One panel without a title."""
    with styled(theme):
        figure = new_figure(5.2, 3.0, theme)
        _draw_curve(figure.add_subplot(), analyses, measure, theme)
    return figure


def panel_title(measure: str) -> str:
    """What a panel shows; that of the norm shows its quartiles too."""
    return "L2 norm: median, and band from 25% to 75%" if measure == "norm_percentile_50" else MEASURES[measure].title


def _draw_curve(axes: Axes, analyses: Sequence[Analysis], measure: str, theme: Theme) -> None:
    """One measure of every analysis over depth, 0 (embedding) to 1 (final)."""
    from matplotlib.ticker import MaxNLocator

    norm = measure == "norm_percentile_50"
    for number, analysis in enumerate(analyses):
        style = {"color": theme.series[number % len(theme.series)], "linestyle": _DASHES[number % len(_DASHES)]}
        depths = [layer.depth for layer in analysis.layers]
        values = [layer.value(measure) for layer in analysis.layers]
        axes.plot(
            depths, values, **style, marker=_MARKS[number % len(_MARKS)], markersize=4.5, linewidth=1.6,
            label=legend_label(short_name(analysis.name)),
        )  # fmt: skip
        if norm:
            low, high = ([layer.value(name) for layer in analysis.layers] for name in _BAND)
            axes.fill_between(depths, low, high, color=style["color"], alpha=0.18, linewidth=0)
    if measure.startswith("beta") and measure != "beta_energy":
        axes.axhline(1.0, color=theme.ink, linewidth=0.8, linestyle=(0, (2, 2)))
    shown = [layer.value(measure) for analysis in analyses for layer in analysis.layers]
    known = [value for value in shown if math.isfinite(value)]
    unit = MEASURES[measure].unit
    if norm and known and min(known) > 0:
        axes.set_yscale("log")
        log_ticks(axes.yaxis, narrow=max(known) < 100 * min(known))
        unit += ", log scale"
    elif measure in ("sparsity", "n_outliers") and not any(known):
        axes.set_ylim(-0.05, 1.0)  # a line along the bottom, not through the middle of nothing
    if not known:
        axes.text(0.5, 0.5, "not defined for these rows", transform=axes.transAxes, ha="center")
    elif measure in ("d_eff_pca90", "n_outliers"):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.03, 1.03)
    _depth_ticks(axes, analyses)
    axes.set_ylabel(unit)
    axes.grid()
    finish_axes(axes, theme)


def _depth_ticks(axes: Axes, analyses: Sequence[Analysis]) -> None:
    label = "depth (0 embedding, 1 final state)"
    if len(analyses) == 1:
        layers = analyses[0].layers
        every = -(-len(layers) // 12)
        # The ends are worth more than an even step.
        chosen = [i for i in range(len(layers)) if i % every == 0 and (i == 0 or len(layers) - 1 - i >= every)]
        chosen += [len(layers) - 1] if len(layers) > 1 else []
        short = {"embedding": "emb."}
        names = [short.get(layers[i].label, layers[i].label) for i in chosen]
        axes.set_xticks([layers[i].depth for i in chosen], names)
        label = "layer (emb.: embedding)"
    axes.set_xlabel(label)


# -- layers x tokens --------------------------------------------------------------------------------------------


def map_of(analysis: Analysis, text: TextReport, measure: Measure) -> LayerMap | None:
    """What `token_map` draws; None where nothing of this measure is defined."""
    values = np.asarray(text.turns if measure == "turn" else text.norms, np.float64)
    if values.size == 0:
        return None
    found = layer_map(values, [layer.label for layer in text.layers], analysis.n_layer, measure)
    return found if found.known else None


def token_map(
    analysis: Analysis, text: TextReport, measure: Measure, theme: Theme = PAPER, *, title: bool = True
) -> Figure | None:
    """Layers upwards, tokens to the right; None where nothing of this measure is defined.

    measure: "turn", the angle of each hidden state to the one below, or "norm", the L2 norm on a logarithmic scale.
    """
    found = map_of(analysis, text, measure)
    if found is None:
        return None
    labels = token_labels(text.tokens, text.token_texts, has_glyph=glyphs())
    return draw_layer_map(found, labels, theme, f"{short_name(analysis.name)}\n{found.title}" if title else "")
