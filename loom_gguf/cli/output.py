"""What the commands print with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 160  # columns of what goes to no terminal: nothing is cut off at 80


def info(text: str) -> None:
    """A line to stderr, so that stdout holds nothing but the result."""
    print(text, file=sys.stderr, flush=True)


def console(*, stderr: bool = False) -> Console:
    """Rich, without its own ideas about what is a number or a path in a text."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """Text from a file, without characters that would steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def abbreviated(text: str, length: int = 100) -> str:
    """At most `length` characters of a text, in one line; what is left out is counted."""
    shown = printable(text)
    if len(shown) <= length:
        return shown
    return f"{printable(text[:length])[:length]}... ({len(text):,} characters)"


def size_text(n_bytes: int) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def count_text(n: int) -> str:
    """A number of weights as a person reads it."""
    for limit, unit in ((10**9, "billion"), (10**6, "million")):
        if n >= limit:
            return f"{n / limit:.2f} {unit}"
    return f"{n:,}"
