"""The picture of a comparison: relative error and cosine by layer, KL by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..analysis import Floats
from ..report.figures import PAPER, Theme, drawable, finish_axes, log_ticks, new_figure, styled
from ..report.labels import state_name
from ..report.numbers import number
from .report import side_text
from .result import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 9.0  # inches
_MAX_TICKS = 20


def figure(comparison: Comparison, theme: Theme = PAPER, *, title: bool = True) -> Figure:
    """The picture as a matplotlib figure."""
    c = comparison
    with styled(theme):
        n_panels = 2 if c.kl is None else 3
        drawing = new_figure(_WIDTH, 2.7 * n_panels + 0.9 * title, theme)
        panels = drawing.subplots(n_panels, 1)
        if title:
            sides = [drawable(side_text(side)) for side in (c.a, c.b)]
            drawing.suptitle(f"A: {sides[0]}\nB: {sides[1]}", x=0.01, ha="left", fontsize=10)
        _errors(panels[0], c, theme)
        _cosines(panels[1], c, theme)
        if c.kl is not None:
            _divergences(panels[2], c, theme)
        for axes in panels:
            axes.grid(axis="y")
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            finish_axes(axes, theme)
    return drawing


def _errors(axes: Axes, c: Comparison, theme: Theme) -> None:
    x = np.arange(len(c.states))
    high, low = c.error_quantile(0.9), c.error_quantile(0.1)
    floor = _log_axis(axes, [c.median_error, c.max_error, low, high, np.array([c.threshold])])
    band = np.isfinite(high)
    axes.fill_between(
        x, np.maximum(low, floor), np.maximum(high, floor), where=band, color=theme.series[0], alpha=0.2, lw=0,
        label="10% to 90% of the rows",
    )  # fmt: skip
    axes.plot(x, _above(c.median_error, floor), color=theme.series[0], marker="o", ms=4, label="median of the rows")
    axes.plot(
        x, _above(c.max_error, floor), color=theme.series[1], marker="^", ms=4, ls="--", label="largest of the rows"
    )
    if c.threshold > 0:
        axes.axhline(c.threshold, color=theme.soft, ls=":", label=f"threshold {c.threshold:g}")
    parting = c.first_parting
    if parting is not None:
        at = c.states.index(parting)
        axes.axvline(at, color=theme.series[2], ls="-.", label=f"they part: {state_name(parting)}")
    axes.set_ylabel("relative error |a - b| / |a|\n(no unit, log scale)")
    _state_ticks(axes, c)
    missing = "" if np.isfinite(c.max_error).all() else "; what is infinite or no number is not drawn"
    axes.set_title(f"How far B's hidden states are from A's{missing}")


def _cosines(axes: Axes, c: Comparison, theme: Theme) -> None:
    x = np.arange(len(c.states))
    mean, largest = 1 - c.mean_cosine, 1 - c.min_cosine
    floor = _log_axis(axes, [mean, largest])
    axes.plot(x, _above(mean, floor), color=theme.series[0], marker="o", ms=4, label="mean of the rows")
    axes.plot(x, _above(largest, floor), color=theme.series[1], marker="^", ms=4, ls="--", label="largest of the rows")
    axes.set_ylabel("1 - cosine of a and b\n(no unit, log scale)")
    _state_ticks(axes, c)
    axes.set_title("How far they point in other directions")


def _divergences(axes: Axes, c: Comparison, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    assert c.kl is not None
    same = c.same_top1
    assert same is not None
    floor = _log_axis(axes, [c.kl])
    y, x = _above(c.kl, floor), np.arange(len(c.kl))
    size = 16 if len(x) <= 500 else 5
    axes.scatter(
        x[same], y[same], s=size, color=theme.series[0], marker="o", lw=0, rasterized=len(x) > 2000,
        label="the same most probable next token",
    )  # fmt: skip
    axes.scatter(x[~same], y[~same], s=2 * size, color=theme.series[1], marker="x", lw=1.2, label="another one")
    statistics = c.kl_statistics
    mean = statistics["mean"] if statistics else np.nan
    if np.isfinite(mean) and mean > 0:
        axes.axhline(mean, color=theme.soft, ls=":", label=f"mean {number(mean)} nats")
    for start in np.flatnonzero(np.diff(c.prompts)):
        axes.axvline(start + 0.5, color=theme.soft, lw=0.6, zorder=0)
    axes.set_xlabel(
        "row (token read), all prompts after one another" + ("; upright lines part them" if c.prompts[-1] else "")
    )
    axes.set_ylabel("KL(A||B)\n(nats, log scale)")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    agreement = f"{same.mean():.1%}"
    axes.set_title(f"Next-token distributions; the most probable token agrees in {agreement}")


def _log_axis(axes: Axes, values: list[Floats]) -> float:
    """Make y logarithmic; 0, which it has no place for, gets the place that is returned, with a tick of its own."""
    from matplotlib.ticker import FuncFormatter

    everything = np.concatenate([part.ravel() for part in values])
    positive = everything[np.isfinite(everything) & (everything > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1e-6, 1.0)
    floor = 10.0 ** (np.floor(np.log10(low)) - 1)
    zeros = bool((everything <= 0).any())
    axes.set_yscale("log")
    axes.set_ylim(floor / 2 if zeros else low / 1.5, high * 2)
    log_ticks(axes.yaxis, narrow=high < low * 100)
    if zeros:
        ticks = [floor, *(tick for tick in axes.yaxis.get_major_locator()() if floor * 3 < tick <= high * 2)]
        axes.set_yticks(ticks)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "0" if y <= floor * 1.01 else f"{y:.3g}"))
        axes.minorticks_off()
    return float(floor)


def _above(values: Floats, floor: float) -> Floats:
    """Values with 0 at its place on the axis; what is infinite or no number is not drawn."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values), np.maximum(values, floor), np.nan)


def _state_ticks(axes: Axes, c: Comparison) -> None:
    n = len(c.states)
    every = -(-n // _MAX_TICKS)

    def has_room(at: int) -> bool:  # beside the names at both ends, which are wider than numbers
        return at % every == 0 and 0.08 * n <= at < n - 1 - 0.04 * n

    ticks = [at for at in range(n) if at in (0, n - 1) or has_room(at) or every == 1]
    axes.set_xticks(ticks, [c.states[at] for at in ticks])
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_xlabel("hidden state (numbers: output of that layer)")
