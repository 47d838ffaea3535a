"""What routes are given: models by name, who runs them, and settings; and what each request leaves in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from ..errors import ModelNotFoundError
from ..requests import LoadParams
from ..settings import ServerSettings
from .interfaces import ManagerLike
from .models import Entry, Facts, Models
from .options import load_params
from .schemas import Options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """Everything that outlives a request."""

    models: Models
    manager: ManagerLike
    settings: ServerSettings
    _found: dict[str, tuple[Entry, Facts]] = field(default_factory=dict)  # by name, what find() found

    async def find(self, name: str) -> tuple[Entry, Facts]:
        """A model and what its file says; ModelNotFoundError where there is none.

        A model whose file was deleted is there as long as it is loaded, which needs no file any more.
        """
        try:
            entry = await asyncio.to_thread(self.models.find, name)
            found = self._found[name] = entry, await asyncio.to_thread(self.models.facts, entry.path)
        except ModelNotFoundError:
            loaded = {model.path for model in self.manager.loaded()}
            for gone in [gone for gone, (entry, _) in self._found.items() if entry.path not in loaded]:
                del self._found[gone]
            if name not in self._found:
                raise
            found = self._found[name]
        return found

    def load_params(self, entry: Entry, facts: Facts, options: Options) -> LoadParams:
        """How to load it."""
        return load_params(entry.path, options, self.settings, facts.n_ctx_train)


def services(request: Request) -> Services:
    """Those of the app that a request came to."""
    found: Services = request.app.state.services
    return found


@dataclass
class Summary:
    """What the log tells of a request when it is over."""

    model: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    n_prompt: int = 0
    n_generated: int = 0
    generate_seconds: float = 0.0
    captured_bytes: int = 0
    outcome: str = "cancelled"  # or "done", or an error

    def write(self) -> None:
        """One line that a person can read."""
        parts = [f"{self.n_prompt:,} prompt tokens"]
        if self.n_generated:
            speed = f" ({self.n_generated / self.generate_seconds:.1f} tok/s)" if self.generate_seconds > 0 else ""
            parts.append(f"{self.n_generated:,} generated{speed}")
        if self.captured_bytes:
            parts.append(f"{self.captured_bytes / 1e6:.2f} MB captured")
        parts.append(f"{time.perf_counter() - self.started:.2f} s")
        outcome = " ".join(self.outcome.split())  # an error may quote what a client sent: one line stays one line
        logger.info("%s %s: %.500s: %s", self.path, self.model, outcome, ", ".join(parts))
