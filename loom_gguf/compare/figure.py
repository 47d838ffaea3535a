"""The picture of a comparison: relative error and cosine by layer, KL by token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..analysis import Floats
from .report import side_text, state_name
from .result import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart; form and dashes differ as well.
_BLUE, _VERMILLION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_SETTINGS: Any = {"font.family": ["DejaVu Sans"], "font.size": 9, "svg.hashsalt": "loom_gguf", "text.parse_math": False}
_DPI = 150
_WIDTH = 9.0  # inches
_MAX_TICKS = 20


def draw(comparison: Comparison, target: str | os.PathLike[str] | IO[Any], kind: str) -> None:
    """Write the picture as "png" or "svg"."""
    from matplotlib import rc_context

    # The date would make two equal pictures two different files.
    metadata = {"Software": "loom_gguf"} if kind == "png" else {"Creator": "loom_gguf", "Date": None}
    with rc_context(_SETTINGS):
        target = target if hasattr(target, "write") else Path(target)
        figure(comparison).savefig(target, format=kind, dpi=_DPI, metadata=metadata)


def figure(comparison: Comparison) -> Figure:
    """The picture as a matplotlib figure."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        n_panels = 2 if comparison.kl is None else 3
        drawing = Figure(figsize=(_WIDTH, 2.7 * n_panels + 0.9), layout="constrained", facecolor="white")
        panels = drawing.subplots(n_panels, 1)
        sides = [_drawable(side_text(side)) for side in (comparison.a, comparison.b)]
        drawing.suptitle(f"A: {sides[0]}\nB: {sides[1]}", x=0.01, ha="left", fontsize=10)
        _errors(panels[0], comparison)
        _cosines(panels[1], comparison)
        if comparison.kl is not None:
            _divergences(panels[2], comparison)
        return drawing


def _drawable(text: str) -> str:
    """The text with escapes for what the font lacks, about which matplotlib would warn."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=_SETTINGS["font.family"])))
    return "".join(char if font.get_char_index(ord(char)) else ascii(char)[1:-1] for char in text)


def _errors(axes: Axes, c: Comparison) -> None:
    x = np.arange(len(c.states))
    high, low = c.error_quantile(0.9), c.error_quantile(0.1)
    floor = _log_axis(axes, [c.median_error, c.max_error, low, high, np.array([c.threshold])])
    band = np.isfinite(high)
    axes.fill_between(
        x, np.maximum(low, floor), np.maximum(high, floor), where=band, color=_BLUE, alpha=0.2, lw=0,
        label="10% to 90% of the rows",
    )  # fmt: skip
    axes.plot(x, _above(c.median_error, floor), color=_BLUE, marker="o", ms=4, label="median of the rows")
    axes.plot(x, _above(c.max_error, floor), color=_VERMILLION, marker="^", ms=4, ls="--", label="largest of the rows")
    if c.threshold > 0:
        axes.axhline(c.threshold, color=_GREY, ls=":", label=f"threshold {c.threshold:g}")
    parting = c.first_parting
    if parting is not None:
        at = c.states.index(parting)
        axes.axvline(at, color=_GREEN, ls="-.", label=f"they part: {state_name(parting)}")
    axes.set_ylabel("relative error |a - b| / |a|\n(no unit, log scale)")
    _state_ticks(axes, c)
    _legend(axes)
    missing = "" if np.isfinite(c.max_error).all() else "; what is infinite or no number is not drawn"
    axes.set_title(f"How far B's hidden states are from A's{missing}", loc="left", fontsize=10)


def _cosines(axes: Axes, c: Comparison) -> None:
    x = np.arange(len(c.states))
    mean, largest = 1 - c.mean_cosine, 1 - c.min_cosine
    floor = _log_axis(axes, [mean, largest])
    axes.plot(x, _above(mean, floor), color=_BLUE, marker="o", ms=4, label="mean of the rows")
    axes.plot(x, _above(largest, floor), color=_VERMILLION, marker="^", ms=4, ls="--", label="largest of the rows")
    axes.set_ylabel("1 - cosine of a and b\n(no unit, log scale)")
    _state_ticks(axes, c)
    _legend(axes)
    axes.set_title("How far they point in other directions", loc="left", fontsize=10)


def _divergences(axes: Axes, c: Comparison) -> None:
    from matplotlib.ticker import MaxNLocator

    assert c.kl is not None
    same = c.same_top1
    assert same is not None
    floor = _log_axis(axes, [c.kl])
    y, x = _above(c.kl, floor), np.arange(len(c.kl))
    size = 16 if len(x) <= 500 else 5
    axes.scatter(
        x[same], y[same], s=size, color=_BLUE, marker="o", lw=0, rasterized=len(x) > 2000,
        label="the same most probable next token",
    )  # fmt: skip
    axes.scatter(x[~same], y[~same], s=2 * size, color=_VERMILLION, marker="x", lw=1.2, label="another one")
    statistics = c.kl_statistics
    mean = statistics["mean"] if statistics else np.nan
    if np.isfinite(mean) and mean > 0:
        axes.axhline(mean, color=_GREY, ls=":", label=f"mean {mean:.3g} nats")
    for start in np.flatnonzero(np.diff(c.prompts)):
        axes.axvline(start + 0.5, color="#cccccc", lw=0.8, zorder=0)
    axes.set_xlabel(
        "row (token read), all prompts after one another" + ("; grey lines part them" if c.prompts[-1] else "")
    )
    axes.set_ylabel("KL(A||B)\n(nats, log scale)")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    agreement = f"{same.mean():.1%}"
    axes.set_title(f"Next-token distributions; the most probable token agrees in {agreement}", loc="left", fontsize=10)


def _log_axis(axes: Axes, values: list[Floats]) -> float:
    """Make y logarithmic; 0, which it has no place for, gets the place that is returned, with a tick of its own."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    everything = np.concatenate([part.ravel() for part in values])
    positive = everything[np.isfinite(everything) & (everything > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1e-6, 1.0)
    floor = 10.0 ** (np.floor(np.log10(low)) - 1)
    zeros = bool((everything <= 0).any())
    axes.set_yscale("log")
    axes.set_ylim(floor / 2 if zeros else low / 1.5, high * 2)
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    if zeros:
        ticks = [floor, *(tick for tick in axes.yaxis.get_major_locator()() if floor * 3 < tick <= high * 2)]
        axes.set_yticks(ticks)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "0" if y <= floor * 1.01 else f"{y:.3g}"))
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
        axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
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


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
