"""The lens in a terminal: each state's most probable token at each position, coloured by its probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from ..report.labels import LABEL_LENGTH, visible
from ..report.numbers import MISSING, fixed
from ..report.terminal import CIVIDIS, DARK, MISSING_COLOUR, has_colour, line, panels, state_table, step
from ..states import Array
from .result import LensResult

_WIDEST = LABEL_LENGTH  # columns of a token; more only where characters are wide
_SAME = "*"  # beside a token that is the model's own choice


def overview(result: LensResult) -> RenderableType:
    """States upwards, positions to the right."""
    return _Overview(result)


def detail(result: LensResult, at: int) -> RenderableType:
    """All top tokens of every state at position number `at` (0 is the first captured row)."""
    return _Detail(result, at)


class _Overview:
    def __init__(self, result: LensResult) -> None:
        self._result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The panels, each as wide as fits."""
        result, colour = self._result, has_colour(console, options)
        show = _labels(options)
        yield Text(f"Logit lens of {visible(result.model)}: each state's most probable next token", style="bold")
        yield _legend(colour)
        margin = max(len("KL mean"), *map(len, result.labels)) + 9
        cells = [[_cell(result, s, t, show, colour) for t in range(result.n_tokens)] for s in range(len(result.labels))]
        words = [show(result.read(t)) for t in range(result.n_tokens)]
        for panel in _panels(cells, words, max(options.max_width - margin, _WIDEST + 2)):
            yield Text("")
            yield line(f"{'state':>{margin - 9}} KL mean ", "dim")
            for s in reversed(range(len(result.labels))):
                row = line(f"{result.labels[s]:>{margin - 9}} {_mean(result.kl[s]):>7} ")
                for t, width in panel:
                    text, shade = cells[s][t]
                    _paint(row, set_cell_size(text, width), shade, colour)
                yield row
            foot = line(f"{'read':>{margin - 9}} {'':>7} ")
            for t, width in panel:
                foot.append(set_cell_size(words[t], width - 1) + " ", style="bold")
            yield foot


class _Detail:
    def __init__(self, result: LensResult, at: int) -> None:
        self._result, self._at = result, at

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """One row per state."""
        result, at, colour = self._result, self._at, has_colour(console, options)
        show = _labels(options)
        final = int(result.final_ids[at])
        chosen = f"the model's own choice: '{show(result.text(final))}'" if final >= 0 else "the logits are no numbers"
        title = f"After '{show(result.read(at))}' at position {result.positions[at]}; {chosen}"
        heads = ("KL\nnats", "its\nrank", "its\nprob.")
        states = list(reversed(range(len(result.labels))))
        rows = [(result.labels[s], *self._numbers(s)) for s in states]
        widths = [max(map(len, column)) for column in zip(("state", "nats", "rank", "prob."), *rows, strict=True)]
        room = options.max_width - sum(width + 2 for width in widths) - 2
        table = state_table(title, "state", heads)
        table.add_column("most probable tokens", vertical="bottom", no_wrap=True)
        for s, row in zip(states, rows, strict=True):
            table.add_row(*row, self._tops(s, final, show, colour, room))
        yield table

    def _numbers(self, s: int) -> tuple[str, str, str]:
        result, at = self._result, self._at
        rank = int(result.rank_of_final[s, at])
        prob = fixed(result.prob_of_final[s, at], ".1%")
        return fixed(result.kl[s, at], ".3f"), f"{rank:,}" if rank else MISSING, prob

    def _tops(self, s: int, final: int, show: Callable[[str], str], colour: bool, room: int) -> Text:
        """As many of the state's tokens as have room, at least one."""
        result, at, tops = self._result, self._at, Text()
        for token, prob in zip(result.top_ids[s, at].tolist(), result.top_probs[s, at].tolist(), strict=True):
            text = f" {show(result.text(token))}{_SAME if token == final else ''} {prob:.1%} "
            if token < 0 or (tops and tops.cell_len + cell_len(text) > room):
                break
            _paint(tops, text, prob, colour)
            tops.append(" ")
        tops.rstrip()
        return tops


def _cell(result: LensResult, s: int, t: int, show: Callable[[str], str], colour: bool) -> tuple[str, float]:
    token, prob = int(result.top_ids[s, t, 0]), float(result.top_probs[s, t, 0])
    if token < 0:
        return "no number ", prob
    text = set_cell_size(show(result.text(token)), min(cell_len(show(result.text(token))), _WIDEST))
    text += _SAME if token == result.final_ids[t] else ""
    return (f"{text} " if colour else f"{text} {prob:.0%} "), prob


def _panels(cells: list[list[tuple[str, float]]], words: list[str], room: int) -> list[list[tuple[int, int]]]:
    """Positions with the width of their column, in lines of at most `room` columns, at least one to a line."""
    widths = [
        min(max(min(cell_len(word), _WIDEST) + 1, *(cell_len(row[t][0]) for row in cells)), room)
        for t, word in enumerate(words)
    ]
    return [[(t, widths[t]) for t in panel] for panel in panels(widths, room)]


def _paint(row: Text, text: str, prob: float, colour: bool) -> None:
    if not colour:
        row.append(text)
    elif np.isnan(prob):
        row.append(text, style=f"white on {MISSING_COLOUR}")
    else:
        row.append(text, style=f"{'#ffffff' if step(prob) < DARK else '#000000'} on {CIVIDIS[step(prob)]}")


def _legend(colour: bool) -> Text:
    legend = Text(f"{_SAME} the model's own choice; KL(final || state): nats; ")
    if not colour:
        return legend.append("with each token its probability")
    legend.append("probability 0% ")
    for shade in range(10):
        legend.append("  ", style=f"on {CIVIDIS[shade]}")
    return legend.append(" 100%")


def _labels(options: ConsoleOptions) -> Callable[[str], str]:
    """Token labels that the terminal's encoding can write."""
    if options.encoding.startswith("utf"):
        return visible
    return lambda text: ascii(text)[1:-1]


def _mean(values: Array) -> str:
    known = values[np.isfinite(values)]
    return fixed(known.mean(), ".2f") if known.size else MISSING
