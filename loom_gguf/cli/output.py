"""What the commands print with."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..report.labels import printable

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


def say_written(path: str | os.PathLike[str]) -> None:
    """That a file was written, and its size."""
    info(f"wrote {os.fspath(path)}, {size_text(os.path.getsize(path))}")


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """What to call with (what is being done, steps done, steps in all); None where stderr is no terminal.

    A bar for each kind of work, which goes away at its end.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        current: list[Any] = ["", None]

        def progress(what: str, done: int, total: int) -> None:
            if what != current[0] and current[1] is not None:
                bars.remove_task(current[1])
                current[1] = None
            if current[1] is None:
                current[:] = what, bars.add_task(printable(what), total=total)
            bars.update(current[1], completed=done)

        yield progress


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """The same for one kind of work: what to call with (steps done, steps in all)."""
    with progress_bars() as progress:
        yield None if progress is None else lambda done, total: progress(what, done, total)
