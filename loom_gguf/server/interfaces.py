"""What the routes need of those who run models, so that tests can give them something else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from ..jobs import Finished, PromptRows, Token
from ..requests import Embedded, EmbedRequest, GenerateRequest, LoadParams, ModelInfo, Started

Event = Started | PromptRows | Token | Finished


class RunnerLike(Protocol):
    """A loaded model."""

    @property
    def info(self) -> ModelInfo:
        """What it says of itself."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Started, PromptRows and Tokens, Finished; raises a LoomError in place of the rest. aclose() cancels."""
        ...

    async def embed(self, request: EmbedRequest) -> Embedded:
        """One vector for a text."""
        ...


class LoadedModel(Protocol):
    """A model that is ready, as `ps` shows it."""

    @property
    def path(self) -> Path:
        """Its file."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What it says of itself."""
        ...

    @property
    def expires_at(self) -> datetime | None:
        """When it goes, with its zone; None: never."""
        ...

    @property
    def in_use(self) -> int:
        """How many requests use it."""
        ...


class ManagerLike(Protocol):
    """Loaded models by file."""

    def use(self, params: LoadParams, keep_alive: float | None = None) -> AbstractAsyncContextManager[RunnerLike]:
        """The model, loaded if need be, and kept during the block. keep_alive: seconds; negative for ever."""
        ...

    def loaded(self) -> Sequence[LoadedModel]:
        """The models that are ready."""
        ...

    async def unload(self, path: Path) -> bool:
        """Let a model go; False where it is not loaded."""
        ...

    async def close(self) -> None:
        """Unload everything."""
        ...
