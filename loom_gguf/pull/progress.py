"""What a pull tells while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import PullCancelledError


@dataclass(frozen=True)
class Progress:
    """A line of progress, as Ollama tells it."""

    status: str
    digest: str | None = None  # "sha256:<hex>" of the file that is being fetched, or what else is known of it
    total: int | None = None  # its bytes
    completed: int | None = None  # bytes that are there

    def line(self) -> dict[str, Any]:
        """As /api/pull writes it; what is not known is left out."""
        values = {"status": self.status, "digest": self.digest, "total": self.total, "completed": self.completed}
        return {key: value for key, value in values.items() if value is not None}


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Watcher:
    """Who hears of a pull, and may stop it."""

    report: Report
    cancelled: threading.Event

    def check(self) -> None:
        """PullCancelledError where it was stopped."""
        if self.cancelled.is_set():
            raise PullCancelledError("the pull was stopped; the next one goes on where this one ended")

    def wait(self, seconds: float) -> None:
        """Sleep, or raise as check() does."""
        self.cancelled.wait(seconds)
        self.check()


def nobody() -> Watcher:
    """A watcher that hears nothing and stops nothing."""
    return Watcher(lambda _: None, threading.Event())
