"""`loom-gguf pull`: a model from Hugging Face or from Ollama's registry."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..errors import LoomError
from ..report.labels import printable
from .output import console, info

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from ..pull import Progress


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "pull",
        help="fetch a model from Hugging Face or Ollama's registry",
        usage="loom-gguf pull NAME [--insecure]",
        description="Fetch a model into our own store ($LOOM_HOME/models, else ~/.local/share/loom_gguf/models). NAME "
        "is hf.co/ORG/REPO[:QUANTIZATION], a repository of Hugging Face (Q4_K_M where it has one and none is named; "
        "HF_TOKEN for those that want one, HF_ENDPOINT for a mirror), or a model of Ollama's registry (llama3.2:1b), "
        "or of another one of its kind (HOST:PORT/NAMESPACE/MODEL:TAG). A download that ends early goes on where it "
        "was when the command is run again; what comes is held against its checksum, and offered only when it is "
        "whole. Prints the model's name.",
        epilog="Example: loom-gguf pull hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
    )
    parser.add_argument("name", metavar="NAME", help="what to fetch")
    parser.add_argument(
        "--insecure", action="store_true", help="allow plain http and unknown certificates, in a network you trust"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch it."""
    from ..library import LibrarySettings
    from ..pull import OwnStore, Watcher, pull

    root = LibrarySettings.read(os.environ).own
    if root is None:
        raise LoomError("there is no store of our own here")
    with Shown() as shown:
        name = pull(args.name, OwnStore(root), Watcher(shown.hear, threading.Event()), insecure=args.insecure)
    print(name.short)
    return 0


class Shown:
    """Progress on stderr: bars on a terminal, else a line for each new thing."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: set[str] = set()

    def __enter__(self) -> Shown:
        """Begin to show."""
        if sys.stderr.isatty():
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                TimeRemainingColumn(), console=console(stderr=True),
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bars as they are."""
        if self._bars is not None:
            self._bars.stop()

    def hear(self, progress: Progress) -> None:
        """Show a line of progress."""
        status = printable(progress.status)
        if self._bars is None or progress.total is None:
            if status not in self._told:
                self._told.add(status)
                self._line(status)
            return
        if status not in self._tasks:
            self._tasks[status] = self._bars.add_task(status, total=progress.total)
        self._bars.update(self._tasks[status], completed=progress.completed)

    def _line(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text)
        else:
            info(text)
