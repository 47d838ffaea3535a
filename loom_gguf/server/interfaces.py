"""What the routes need of who runs models, so that tests can give them something else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from ..manager import LoadedModel, RunnerLike
from ..requests import LoadParams


class ManagerLike(Protocol):
    """Loaded models by file."""

    def use(self, params: LoadParams, keep_alive: float | None = None) -> AbstractAsyncContextManager[RunnerLike]:
        """The model, loaded if need be, and kept during the block. keep_alive: seconds; negative for ever."""
        ...

    def loaded(self) -> Sequence[LoadedModel]:
        """The models that are ready."""
        ...

    def params(self, path: Path) -> LoadParams | None:
        """How a file is loaded, or being loaded; None where it is neither."""
        ...

    async def unload(self, path: Path) -> bool:
        """Let a model go; False where it is not loaded."""
        ...

    async def close(self) -> None:
        """Unload everything."""
        ...
