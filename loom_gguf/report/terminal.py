"""What all tables and maps in a terminal share."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

MISSING_COLOUR = "#e3120b"  # not a colour of the scales

# Ten steps of matplotlib's viridis and cividis (CC0), which people with and without colour blindness tell apart; from
# step DARK of cividis on, black text can be read on it, before that white.
VIRIDIS = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"
)  # fmt: skip
CIVIDIS = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"
)  # fmt: skip
DARK = 5


def has_colour(console: Console, options: ConsoleOptions) -> bool:
    """Whether enough colours can be shown for a scale."""
    return console.color_system in ("256", "truecolor", "windows") and options.encoding.startswith("utf")


def line(text: str, style: str = "") -> Text:
    """A line that is cut off rather than broken."""
    return Text(text, style, no_wrap=True, overflow="crop")


def step(shade: float) -> int:
    """The step, 0 to 9, of a value from 0 to 1."""
    return min(int(shade * 10), 9)


def panels(widths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of columns in lines of at most `room` terminal columns, at least one to a line."""
    found: list[list[int]] = []
    left = -1
    for at, width in enumerate(widths):
        left -= width
        if left < 0:
            found.append([])
            left = room - width
        found[-1].append(at)
    return found


def state_table(title: str, head: str, columns: Sequence[str]) -> Table:
    """A table with a row per hidden state: its name under `head`, and a number under each of the columns.

    Line ends in a column's name keep it narrow; nothing in the table is broken.
    """
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1),
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.add_column(head, vertical="bottom", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    return table
