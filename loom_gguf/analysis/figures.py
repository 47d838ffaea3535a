"""Pictures of an analysis: curves over depth, one panel per measure, and maps of layers x tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import visible
from .report import MEASURES, Analysis, TextReport
from .rows import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT = "DejaVu Sans"  # comes with matplotlib, so pictures look alike everywhere
_BAND = ("norm_percentile_25", "norm_percentile_75")
_MARKS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 3)), (0, (8, 3)))
_MAX_TICKS = 90
_MAX_INCHES = 24

PANELS = (
    "d_eff_pca90", "d_eff_entropy", "d_eff_energy90", "beta_pca90", "beta_entropy", "beta_energy",
    "norm_percentile_50", "cosine_below", "cosine_next_token", "anisotropy", "sparsity", "n_outliers",
)  # fmt: skip
MAPS = ("turn", "norm")


@dataclass(frozen=True)
class Theme:
    """Colours of what is drawn: matplotlib's names for them."""

    ink: str
    grid: str
    series: tuple[str, ...]
    missing: str
    background: str


# M. Okabe and K. Ito, "Color Universal Design", 2008: told apart by all kinds of colour vision; markers and dashes
# differ too.
PAPER = Theme(
    ink="#1a1a1a",
    grid="#d5d5d5",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    missing="#e3120b",
    background="white",
)


def curves(analyses: Sequence[Analysis], theme: Theme = PAPER) -> Figure:
    """All panels in one figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 14), layout="constrained", facecolor=theme.background)
    for axes, measure in zip(figure.subplots(4, 3).flat, PANELS, strict=True):
        draw_curve(axes, analyses, measure, theme)
        axes.set_title(panel_title(measure), loc="left", family=_FONT, fontsize=11, color=theme.ink)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.16)  # type: ignore[union-attr, call-arg]  # it is constrained
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=3, frameon=False, prop={"family": _FONT, "size": 10},
        labelcolor=theme.ink,
    )  # fmt: skip
    return figure


def curve(analyses: Sequence[Analysis], measure: str, theme: Theme = PAPER) -> Figure:
    """One panel without a title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), layout="constrained", facecolor=theme.background)
    draw_curve(figure.add_subplot(), analyses, measure, theme)
    return figure


def panel_title(measure: str) -> str:
    """What a panel shows; that of the norm shows its quartiles too."""
    return "L2 norm: median, and band from 25% to 75%" if measure == "norm_percentile_50" else MEASURES[measure].title


def draw_curve(axes: Axes, analyses: Sequence[Analysis], measure: str, theme: Theme = PAPER) -> None:
    """One measure of every analysis over depth, 0 (embedding) to 1 (final)."""
    from matplotlib.ticker import MaxNLocator

    norm = measure == "norm_percentile_50"
    for number, analysis in enumerate(analyses):
        style = {"color": theme.series[number % len(theme.series)], "linestyle": _DASHES[number % len(_DASHES)]}
        depths = [layer.depth for layer in analysis.layers]
        values = [layer.value(measure) for layer in analysis.layers]
        axes.plot(
            depths, values, **style, marker=_MARKS[number % len(_MARKS)], markersize=4.5, linewidth=1.6,
            label=_literal(visible_name(analysis.name)),
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
        unit += ", log scale"
    elif measure in ("sparsity", "n_outliers") and not any(known):
        axes.set_ylim(-0.05, 1.0)  # a line along the bottom, not through the middle of nothing
    if not known:
        axes.text(0.5, 0.5, "not defined for these rows", transform=axes.transAxes, ha="center", color=theme.ink)
    elif measure in ("d_eff_pca90", "n_outliers"):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.03, 1.03)
    _depth_ticks(axes, analyses)
    axes.set_ylabel(unit, family=_FONT, fontsize=9, color=theme.ink)
    axes.grid(color=theme.grid, linewidth=0.6)
    _ink(axes, theme)


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
    axes.set_xlabel(label, family=_FONT, fontsize=9)


def _ink(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=theme.ink, labelsize=8, labelfontfamily=_FONT)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    for side, spine in axes.spines.items():
        spine.set_color(theme.ink)
        spine.set_visible(side in ("left", "bottom"))


def visible_name(name: str) -> str:
    """A source's name as a short label: the end of a long path."""
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= 60 else "…" + shown[-59:]


def _literal(text: str) -> str:
    """A text for matplotlib's legend, where a dollar would begin a formula and a first underscore hide the entry."""
    text = text.replace("$", r"\$")
    return "\u200b" + text if text.startswith("_") else text


# -- layers x tokens --------------------------------------------------------------------------------------------


def token_map(
    analysis: Analysis, text: TextReport, measure: str, theme: Theme = PAPER, *, title: bool = True
) -> Figure | None:
    """Layers upwards, tokens to the right; None where nothing of this measure is defined.

    measure: "turn", the angle of each hidden state to the one below, or "norm", the L2 norm on a logarithmic scale.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font

    labels = [layer.label for layer in text.layers][1 if measure == "turn" else 0 :]
    values: Floats = np.asarray(text.turns if measure == "turn" else text.norms, np.float64)
    if values.size == 0:
        return None
    values = np.where(np.isfinite(values) & ((values > 0) | (measure == "turn")), values, np.nan)
    # Block 0 turns an embedding so much further than the others turn anything that they would all look alike.
    scaled = values[1:] if measure == "turn" and labels[0] == "0" and len(values) > 1 else values
    known = scaled[np.isfinite(scaled)]
    if not known.size:
        return None
    low = float(known.min()) if measure == "norm" else 0.0
    high = max(float(known.max()), low * 1.001, np.finfo(np.float64).tiny)
    scale: Callable[..., Normalize] = LogNorm if measure == "norm" else Normalize
    n_layers, n_tokens = values.shape
    width = min(max(0.26 * n_tokens + 2.6, 6.5), _MAX_INCHES)
    figure = Figure(
        figsize=(width, min(max(0.26 * n_layers, 2.0) + 1.5, _MAX_INCHES)), layout="constrained",
        facecolor=theme.background,
    )  # fmt: skip
    axes = figure.add_subplot()
    image = axes.imshow(
        values, aspect="auto", origin="lower", interpolation="nearest", norm=scale(low, high),
        cmap=colormaps["viridis"].with_extremes(bad=theme.missing),
    )  # fmt: skip
    font = get_font(findfont(FontProperties(family=[_FONT])))
    names = text.token_texts or [""] * n_tokens
    shown = [
        visible(name, has_glyph=lambda char: font.get_char_index(ord(char)) != 0) or str(token)
        for name, token in zip(names, text.tokens, strict=True)
    ]
    every = -(-n_tokens // _MAX_TICKS)
    axes.set_xticks(
        range(0, n_tokens, every), shown[::every], rotation=45, ha="right", rotation_mode="anchor", parse_math=False
    )
    every = -(-n_layers // _MAX_TICKS)
    axes.set_yticks(range(0, n_layers, every), labels[::every])
    axes.set_xlabel("token read at each position", family=_FONT, fontsize=9)
    axes.set_ylabel("layer", family=_FONT, fontsize=9)
    _ink(axes, theme)
    beyond = bool((values > high).any())
    bar = figure.colorbar(
        image, ax=axes, pad=0.01, fraction=0.25 / width, aspect=12, extend="max" if beyond else "neither"
    )
    bar.set_label(map_scale(measure), family=_FONT, fontsize=8, color=theme.ink)
    bar.ax.tick_params(which="both", colors=theme.ink, labelsize=8, labelfontfamily=_FONT)
    bar.outline.set_edgecolor(theme.ink)
    heading = visible_name(analysis.name) + ": " + map_title(measure) if title else ""
    if np.isnan(values).any():
        heading += ("\n" if heading else "") + "red: no number (NaN, Inf or a state of length 0)"
    if heading:
        axes.set_title(heading, loc="left", family=_FONT, fontsize=10, color=theme.ink, parse_math=False)
    return figure


def map_title(measure: str) -> str:
    """What a map shows."""
    if measure == "turn":
        return "how far each layer turns the hidden state of each token"
    return "length of each hidden state"


def map_scale(measure: str) -> str:
    """What the colours of a map mean."""
    return "angle to the state below\n(degrees)" if measure == "turn" else "L2 norm (the model's\nown units, log scale)"
