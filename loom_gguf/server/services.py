"""What routes are given: models by name, who runs them, and settings; and what each request leaves in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from ..errors import ModelNotFoundError
from ..library import Extras
from ..pull.shared import SharedPulls
from ..requests import LoadParams
from ..settings import ServerSettings
from .interfaces import ManagerLike
from .loading import LoadWishes, load_params
from .metrics import Metrics
from .models import Entry, Facts, Models, file_of
from .tokens import TokenTexts

logger = logging.getLogger(__name__)

_MAX_FOUND = 1000  # names, which differ in case too, so that clients can make many


@dataclass(frozen=True)
class Services:
    """Everything that outlives a request."""

    models: Models
    manager: ManagerLike
    settings: ServerSettings
    metrics: Metrics = field(default_factory=Metrics)
    pulls: SharedPulls = field(default_factory=SharedPulls)
    _found: dict[str, tuple[Entry, Facts, Extras]] = field(default_factory=dict)  # by name, what find() found

    async def find(self, name: str) -> tuple[Entry, Facts, Extras]:
        """A model, what its file says, and what a store adds to that; ModelNotFoundError where there is none.

        A model whose file was deleted is there as long as it is loaded, which needs no file any more.
        """
        try:
            found = self._found[name] = await asyncio.to_thread(self._find, name)
        except ModelNotFoundError:
            if name not in self._found:
                raise
            found = self._found[name]
            if found[0].path not in {model.path for model in self.manager.loaded()}:
                del self._found[name]
                raise
        while len(self._found) > _MAX_FOUND:
            del self._found[next(iter(self._found))]
        return found

    def remembered(self, path: Path) -> tuple[Entry, Facts] | None:
        """A model that was found before, by its file, which may be deleted by now."""
        return next(((entry, facts) for entry, facts, _ in self._found.values() if entry.path == path), None)

    def _find(self, name: str) -> tuple[Entry, Facts, Extras]:
        entry = self.models.find(name)
        facts, extras = self.models.facts(file_of(entry)), self.models.extras(entry)
        return entry, facts.with_template(extras.jinja) if extras.jinja else facts, extras

    def load_params(self, entry: Entry, facts: Facts, wishes: LoadWishes | None = None) -> LoadParams:
        """How to load it."""
        path = file_of(entry)
        return load_params(path, wishes or LoadWishes(), self.settings, facts.n_ctx_train, self.manager.params(path))

    async def texts(self, path: Path) -> TokenTexts:
        """Texts of a model's tokens."""
        return await asyncio.to_thread(self.models.tokens, path)


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
