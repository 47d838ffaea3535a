"""Pictures of captured hidden states: layers upwards, tokens to the right."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from .analysis import hidden_state_rows, row_norms, row_turns
from .errors import StatesError
from .files import check_target
from .picture import Picture
from .report.figures import FONT, glyphs
from .report.labels import token_labels, visible
from .report.maps import LayerMap, Measure, draw_layer_map, layer_map
from .report.terminal import MISSING_COLOUR, VIRIDIS, has_colour, line, panels, step
from .states import States

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Measure", "draw_heat_map", "heat_map", "terminal_heat_map", "visible"]


def _map(states: States, texts: Sequence[str] | None, measure: Measure) -> LayerMap:
    n_tokens = len(states.tokens)
    if texts is not None and len(texts) != n_tokens:
        raise StatesError(f"{len(texts)} texts for {n_tokens} rows: give one text per token")
    if measure not in ("turn", "norm"):
        raise ValueError(f'measure is "turn" or "norm", not {measure!r}')
    values = row_turns(states) if measure == "turn" else row_norms(states)
    return layer_map(values, list(hidden_state_rows(states)), states.n_layer, measure)


def _generated(states: States, n_prompt: int | None) -> int:
    """Index of the first token that the model made itself; 0: unknown, or it has no rows."""
    return 0 if n_prompt is None else sum(position < n_prompt for position in states.positions)


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
    target = check_target(path, (".png",))
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
    found = _map(states, texts, measure)
    labels = token_labels(states.tokens, texts, has_glyph=glyphs())
    figure = draw_layer_map(found, labels, title=found.title if title is None else title, title_pad=20)
    generated = _generated(states, n_prompt)
    if 0 < generated < len(labels):
        _parts(figure.axes[0], generated)
    return Picture(figure, f"{found.title}, {len(found.labels)} layers x {len(labels)} tokens")


def _parts(axes: Axes, generated: int) -> None:
    axes.axvline(generated - 0.5, color="white", linewidth=2.5)
    axes.axvline(generated - 0.5, color="black", linewidth=1, linestyle=(0, (4, 2)))
    for text, side, offset in (("prompt ", "right", -2), ("generated", "left", 2)):
        axes.annotate(
            text, (generated - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(offset, 4), ha=side,
            textcoords="offset points", family=FONT, fontsize=9,
        )  # fmt: skip


# -- the terminal -----------------------------------------------------------------------------------------------


def terminal_heat_map(
    states: States, texts: Sequence[str] | None, width: int | None = None, *, measure: Measure = "turn",
    n_prompt: int | None = None,
) -> RenderableType:  # fmt: skip
    """The same picture for rich's `console.print`: coloured blocks over the text, or digits where there is no colour.

    width: columns to use at most, None for those of the terminal. Longer texts go on below.
    """
    found = _map(states, texts, measure)
    words = [f" {token}" for token in states.tokens] if texts is None else texts
    return _TerminalMap(found, token_labels(states.tokens, words, space=" "), _generated(states, n_prompt), width)


class _TerminalMap:
    def __init__(self, found: LayerMap, labels: list[str], generated: int, width: int | None) -> None:
        self._map, self._labels, self._generated, self._width = found, labels, generated, width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The panels, each as wide as fits."""
        colour = has_colour(console, options)
        width = max(options.max_width if self._width is None else min(self._width, options.max_width), 12)
        yield Text(self._map.title, style="bold")
        yield self._legend(colour)
        margin = max(map(len, self._map.labels)) + 1
        shades = self._map.shade()
        for panel in self._panels(width - margin - 1):  # one for the line between prompt and generated text
            yield line("")
            for layer in reversed(range(len(self._map.labels))):
                row = line(f"{self._map.labels[layer]:>{margin - 1}} ")
                for token, text in panel:
                    row.append("|" if token == self._generated > 0 else "")
                    _paint(row, shades[layer, token], cell_len(text), colour)
                yield row
            words = line(" " * margin)
            for token, text in panel:
                words.append("|" if token == self._generated > 0 else "").append(text)
            yield words

    def _panels(self, room: int) -> list[list[tuple[int, str]]]:
        """The tokens (index, text) in lines of at most `room` columns: as few as can be, and evenly filled."""
        texts = [set_cell_size(text, max(1, min(cell_len(text), room))) for text in self._labels]
        widths = list(map(cell_len, texts))
        found = panels(widths, room)
        while room > 1 and len(closer := panels(widths, room - 1)) == len(found):
            found, room = closer, room - 1
        return [[(token, texts[token]) for token in panel] for panel in found]

    def _legend(self, colour: bool) -> Text:
        legend = Text(f"{self._map.scale}: {self._map.low:.3g} ")
        for shade in range(10):
            legend.append("  " if colour else str(shade), style=f"on {VIRIDIS[shade]}" if colour else "")
        legend.append(f" {self._map.high:.3g}" + (" and more" if self._map.beyond else ""))
        if np.isnan(self._map.values).any():
            legend.append("; ! no number")
        if 0 < self._generated < len(self._labels):
            legend.append("; generated after |")
        return legend


def _paint(row: Text, shade: float, width: int, colour: bool) -> None:
    """One token at one layer. The thin line at its left keeps neighbours of one colour apart."""
    if np.isnan(shade):
        row.append("!" + " " * (width - 1), style=f"white on {MISSING_COLOUR}" if colour else "")
    elif colour:
        row.append("▏" + " " * (width - 1), style=f"#000000 on {VIRIDIS[step(shade)]}")
    else:
        row.append(str(step(shade)) + " " * (width - 1))
