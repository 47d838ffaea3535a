"""Pictures of captured hidden states: layers upwards, tokens to the right."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from .analysis import Floats, hidden_state_rows, row_norms, row_turns
from .errors import StatesError, StatesFileError
from .picture import Picture
from .states import States

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

Measure = Literal["turn", "norm"]

_FONT = "DejaVu Sans"  # comes with matplotlib, so pictures look alike everywhere
_NO_VALUE = "#e3120b"  # not a colour of the scale: NaN and Inf are seen at once
_MAX_TICKS = 100  # more tick labels than this along an axis cannot be read
_MAX_INCHES = 26
_LABEL_LENGTH = 16

# Ten steps of matplotlib's viridis (CC0), for the terminal.
_VIRIDIS = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"
)  # fmt: skip


@dataclass(frozen=True)
class _Map:
    """What both pictures show."""

    values: Floats  # (n_layers, n_tokens); NaN where there is no finite number
    labels: list[str]  # of the layers, from the lowest
    low: float
    high: float
    log: bool
    title: str
    scale: str  # what the colours mean, with the unit
    generated: int  # index of the first token that the model made itself; 0: unknown, or it has no rows

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


def _map(states: States, texts: Sequence[str] | None, measure: Measure, n_prompt: int | None) -> _Map:
    n_tokens = len(states.tokens)
    if texts is not None and len(texts) != n_tokens:
        raise StatesError(f"{len(texts)} texts for {n_tokens} rows: give one text per token")
    labels = list(hidden_state_rows(states))
    if measure == "turn":
        values = row_turns(states)
        labels = _steps(labels, states.n_layer)
    elif measure == "norm":
        values = row_norms(states)
    else:
        raise ValueError(f'measure is "turn" or "norm", not {measure!r}')
    log = measure == "norm"
    values = np.where(np.isfinite(values), values, np.nan)
    # Block 0 turns an embedding so much further than the others turn anything that they would all look alike.
    scaled = values[1:] if measure == "turn" and labels[0] == "0" and len(values) > 1 else values
    known = scaled[(scaled > 0) & np.isfinite(scaled)]
    return _Map(
        values=values,
        labels=labels,
        low=float(known.min()) if log and known.size else float(log),
        high=float(known.max()) if known.size else 1.0,
        log=log,
        title="Length of each hidden state" if log else "How far each layer turns the hidden state of each token",
        scale="L2 norm (log scale, the model's own units)" if log else "angle to the state below (degrees)",
        generated=0 if n_prompt is None else sum(position < n_prompt for position in states.positions),
    )


def _steps(labels: list[str], n_layer: int) -> list[str]:
    """Names of the ways from one hidden state to the next: the upper one's, or both where some lie between."""
    order = ["embedding", *map(str, range(n_layer)), "final"]
    return [
        after if order.index(after) == order.index(before) + 1 else f"{before} to {after}"
        for before, after in pairwise(labels)
    ]


def visible(text: str, *, space: str = "␣", has_glyph: Callable[[str], bool] = lambda char: True) -> str:
    """A token's text as a short label: spaces, line ends and what has no glyph are made visible."""
    marks = {" ": space, "\n": "↵", "\t": "⇥"}
    chars = [marks.get(char) or (char if _printable(char) and has_glyph(char) else ascii(char)[1:-1]) for char in text]
    label, shown = "", 0
    for char in chars:
        if len(label) + len(char) > _LABEL_LENGTH - (shown + 1 < len(chars)):
            return label + "…"
        label, shown = label + char, shown + 1
    return label


def _printable(char: str) -> bool:
    # Not str.isprintable alone: a mark that combines would sit on the label's neighbour.
    return char.isprintable() and not (unicodedata.combining(char) or unicodedata.category(char) == "Me")


def _token_labels(states: States, texts: Sequence[str] | None, **how: Any) -> list[str]:
    """One label per token; its id where it has no text."""
    names = [""] * len(states.tokens) if texts is None else texts
    return [visible(text, **how) or str(token) for text, token in zip(names, states.tokens, strict=True)]


# -- a PNG file -------------------------------------------------------------------------------------------------


def heat_map(
    states: States,
    texts: Sequence[str] | None,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    measure: Measure = "turn",
    n_prompt: int | None = None,
) -> None:
    """Draw layers x tokens as a PNG file; see `draw_heat_map`."""
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise StatesFileError(f"pictures are PNG files, so {target} must end in .png")
    if not target.parent.is_dir():
        raise StatesFileError(f"there is no folder {target.parent}: make it first, or choose another path")
    draw_heat_map(states, texts, title=title, measure=measure, n_prompt=n_prompt).save(target)


def draw_heat_map(
    states: States,
    texts: Sequence[str] | None,
    *,
    title: str | None = None,
    measure: Measure = "turn",
    n_prompt: int | None = None,
) -> Picture:
    """Layers x tokens.

    texts: one per token (row), for the labels; None writes token ids.
    measure: "turn" is the angle in degrees between each hidden state and the captured one below it, so that a row
        shows what one block does to every token, whatever the lengths (a first token's can be a hundred times the
        others'); its colours end at the largest angle above block 0. "norm" is the length of each state, on a
        logarithmic scale.
    n_prompt: number of the prompt's tokens; a line then parts them from the generated ones.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font

    picture = _map(states, texts, measure, n_prompt)
    n_layers, n_tokens = picture.values.shape

    font = get_font(findfont(FontProperties(family=[_FONT])))
    labels = _token_labels(states, texts, has_glyph=lambda char: font.get_char_index(ord(char)) != 0)
    width = min(max(0.24 * n_tokens + 2.2, 6.5), _MAX_INCHES)
    height = min(max(0.26 * n_layers, 2.2) + 1.6, _MAX_INCHES)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    norm: Normalize = (LogNorm if picture.log else Normalize)(picture.low, max(picture.high, picture.low * 1.001))
    colours = colormaps["viridis"].with_extremes(bad=_NO_VALUE)
    image = axes.imshow(picture.values, aspect="auto", origin="lower", interpolation="nearest", cmap=colours, norm=norm)
    _ticks(axes, labels, picture.labels)
    bar = figure.colorbar(
        image, ax=axes, pad=0.01, fraction=0.25 / width, aspect=12, extend="max" if picture.beyond else "neither"
    )
    bar.set_label(picture.scale, family=_FONT, fontsize=9)
    axes.set_xlabel("token read at each position", family=_FONT, fontsize=10)
    axes.set_ylabel("layer", family=_FONT, fontsize=10)
    if 0 < picture.generated < n_tokens:
        _parts(axes, picture.generated)
    heading = picture.title if title is None else title
    if np.isnan(picture.values).any():
        heading += "\nred: no number (NaN, Inf or a state of length 0)"
    axes.set_title(heading, loc="left", family=_FONT, fontsize=11, pad=20, parse_math=False)
    return Picture(figure, f"{picture.title}, {n_layers} layers x {n_tokens} tokens")


def _ticks(axes: Axes, tokens: list[str], layers: list[str]) -> None:
    every = -(-len(tokens) // _MAX_TICKS)
    # Dollar signs in a token are not formulas.
    axes.set_xticks(
        range(0, len(tokens), every), tokens[::every], rotation=45, ha="right", rotation_mode="anchor", family=_FONT,
        fontsize=8, parse_math=False,
    )  # fmt: skip
    every = -(-len(layers) // _MAX_TICKS)
    axes.set_yticks(range(0, len(layers), every), layers[::every], family=_FONT, fontsize=8)
    axes.tick_params(length=2)


def _parts(axes: Axes, generated: int) -> None:
    axes.axvline(generated - 0.5, color="white", linewidth=2.5)
    axes.axvline(generated - 0.5, color="black", linewidth=1, linestyle=(0, (4, 2)))
    for text, side, offset in (("prompt ", "right", -2), ("generated", "left", 2)):
        axes.annotate(
            text, (generated - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(offset, 4), ha=side,
            textcoords="offset points", family=_FONT, fontsize=9,
        )  # fmt: skip


# -- the terminal -----------------------------------------------------------------------------------------------


def terminal_heat_map(
    states: States, texts: Sequence[str] | None, width: int | None = None, *, measure: Measure = "turn",
    n_prompt: int | None = None,
) -> RenderableType:  # fmt: skip
    """The same picture for rich's `console.print`: coloured blocks over the text, or digits where there is no colour.

    width: columns to use at most, None for those of the terminal. Longer texts go on below.
    """
    picture = _map(states, texts, measure, n_prompt)
    words = [f" {token}" for token in states.tokens] if texts is None else texts
    return _TerminalMap(picture, _token_labels(states, words, space=" "), width)


class _TerminalMap:
    def __init__(self, picture: _Map, labels: list[str], width: int | None) -> None:
        self._map, self._labels, self._width = picture, labels, width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The panels, each as wide as fits."""
        colour = console.color_system in ("256", "truecolor", "windows") and options.encoding.startswith("utf")
        width = max(options.max_width if self._width is None else min(self._width, options.max_width), 12)
        yield Text(self._map.title, style="bold")
        yield self._legend(colour)
        margin = max(map(len, self._map.labels)) + 1
        shades = self._map.shade()
        for panel in self._panels(width - margin - 1):  # one for the line between prompt and generated text
            yield _line("")
            for layer in reversed(range(len(self._map.labels))):
                row = _line(f"{self._map.labels[layer]:>{margin - 1}} ")
                for token, text in panel:
                    row.append("|" if token == self._map.generated > 0 else "")
                    _paint(row, shades[layer, token], cell_len(text), colour)
                yield row
            words = _line(" " * margin)
            for token, text in panel:
                words.append("|" if token == self._map.generated > 0 else "").append(text)
            yield words

    def _panels(self, room: int) -> list[list[tuple[int, str]]]:
        """The tokens (index, text) in lines of at most `room` columns: as few as can be, and evenly filled."""
        cells = [(i, set_cell_size(text, max(1, min(cell_len(text), room)))) for i, text in enumerate(self._labels)]
        panels = _filled(cells, room)
        while room > 1 and len(closer := _filled(cells, room - 1)) == len(panels):
            panels, room = closer, room - 1
        return panels

    def _legend(self, colour: bool) -> Text:
        picture = self._map
        line = Text(f"{picture.scale}: {picture.low:.3g} ")
        for step in range(10):
            line.append("  " if colour else str(step), style=f"on {_VIRIDIS[step]}" if colour else "")
        line.append(f" {picture.high:.3g}" + (" and more" if picture.beyond else ""))
        if np.isnan(picture.values).any():
            line.append("; ! no number")
        if 0 < picture.generated < len(self._labels):
            line.append("; generated after |")
        return line


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="crop")


def _filled(cells: list[tuple[int, str]], room: int) -> list[list[tuple[int, str]]]:
    """The cells in lines of at most `room` columns, at least one to a line."""
    panels: list[list[tuple[int, str]]] = []
    left = -1
    for cell in cells:
        left -= cell_len(cell[1])
        if left < 0:
            panels.append([])
            left = room - cell_len(cell[1])
        panels[-1].append(cell)
    return panels


def _paint(row: Text, shade: float, width: int, colour: bool) -> None:
    """One token at one layer. The thin line at its left keeps neighbours of one colour apart."""
    if np.isnan(shade):
        row.append("!" + " " * (width - 1), style=f"white on {_NO_VALUE}" if colour else "")
    elif colour:
        row.append("▏" + " " * (width - 1), style=f"#000000 on {_VIRIDIS[min(int(shade * 10), 9)]}")
    else:
        row.append(str(min(int(shade * 10), 9)) + " " * (width - 1))
