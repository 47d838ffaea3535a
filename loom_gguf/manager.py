"""Which models are loaded: loads on demand, keeps for a while, and lets the least recently used one go.

All of it belongs to one event loop; between two awaits nothing changes, so there are no locks. A model's entry stays
in the table from the beginning of its load to the end of its process: what counts against `max_models` is memory.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol

from .errors import ModelClosedError
from .jobs import Finished, PromptRows, Token
from .requests import Embedded, EmbedRequest, GenerateRequest, LoadParams, ModelInfo, Started

_STOPPING = "the server is stopping; nothing is loaded any more"


class RunnerLike(Protocol):
    """What a manager, and those who use a model, need of a loaded one; Runner has it."""

    info: ModelInfo

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Started | PromptRows | Token | Finished, None]:
        """Events of a request."""
        ...

    async def embed(self, request: EmbedRequest) -> Embedded:
        """One vector for a text."""
        ...

    async def close(self) -> None:
        """Give everything back; requests under way end with an error."""
        ...


class Clock(Protocol):
    """Time, to be replaced in tests."""

    def now(self) -> datetime:
        """The time, with its zone."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class _SystemClock:
    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready."""

    path: Path
    params: LoadParams
    info: ModelInfo
    expires_at: datetime | None  # when it goes if nobody uses it (any more, from now on); None: never
    in_use: int  # how many use it
    idle_since: datetime | None = None  # when the last use ended; None: in use
    now: datetime = field(default_factory=lambda: datetime.now(timezone.utc))  # when this was so


class _Entry:
    """A model that is loading, loaded or leaving."""

    def __init__(self, params: LoadParams, load: asyncio.Task[RunnerLike], keep_alive: float) -> None:
        self.params = params
        self.load = load
        self.keep_alive = keep_alive  # seconds; negative: for ever
        self.users = 0
        self.used = 0  # a count of uses, to tell which is the least recent
        self.leaving: asyncio.Task[None] | None = None
        self.timer: asyncio.Task[None] | None = None
        self.expires_at: datetime | None = None
        self.idle_since: datetime | None = None

    @property
    def runner(self) -> RunnerLike | None:
        """The loaded model; None while it loads, or where that failed."""
        if not self.load.done() or self.load.cancelled() or self.load.exception():
            return None
        return self.load.result()

    @property
    def dead(self) -> bool:
        runner = self.runner
        return runner is not None and not runner.alive


class Manager:
    """Loaded models by the path of their file."""

    def __init__(
        self,
        load: Callable[[LoadParams], Awaitable[RunnerLike]],
        *,
        max_models: int = 3,
        default_keep_alive: float = 300.0,
        clock: Clock | None = None,
    ) -> None:
        """`load`: Runner.start. `default_keep_alive`: seconds."""
        self._load = load
        self._max_models = max_models
        self._default_keep_alive = default_keep_alive
        self._clock = clock or _SystemClock()
        self._entries: dict[Path, _Entry] = {}
        self._uses = itertools.count(1)
        self._changed = asyncio.Event()  # set, and replaced, when anybody who waits may look again
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()  # asyncio itself keeps no reference to a task

    def use(self, params: LoadParams, keep_alive: float | None = None) -> AbstractAsyncContextManager[RunnerLike]:
        """The model, loaded if it was not, and kept at least until the end of the block.

        Who wants the same model shares one load. Where it is loaded with other params (a larger n_ctx, say), it is
        loaded again as soon as nobody uses it. Where `max_models` are loaded, the least recently used one that is idle
        leaves; while none is idle, this waits.

        keep_alive: seconds that the model stays after its last use; negative: for ever; 0: it leaves when it is idle.
            None changes nothing about what was said for this model before, which is the manager's default at first.

        Raises what loading raises; a failure is not remembered. ModelClosedError after close().
        """
        return self._use(params, keep_alive)

    @asynccontextmanager
    async def _use(self, params: LoadParams, keep_alive: float | None) -> AsyncIterator[RunnerLike]:
        entry = await self._entry(params)
        entry.users += 1
        entry.used = next(self._uses)
        if keep_alive is not None:
            entry.keep_alive = keep_alive
        self._stop_timer(entry)
        entry.idle_since = None
        try:
            try:
                # Whoever goes away during a load leaves it to the others.
                runner = await asyncio.shield(entry.load)
            except asyncio.CancelledError:
                if entry.load.cancelled():
                    raise ModelClosedError(_STOPPING) from None
                raise
            yield runner
        finally:
            entry.users -= 1
            self._rest(entry)

    def loaded(self) -> list[LoadedModel]:
        """The models that are ready, the most recently used one first."""
        self._drop_dead()
        found, now = [], self._clock.now()
        for entry in sorted(self._entries.values(), key=lambda entry: -entry.used):
            runner = entry.runner
            if runner is not None and entry.leaving is None:
                expires = self._expiry(entry) if entry.users else entry.expires_at
                found.append(
                    LoadedModel(
                        entry.params.path, entry.params, runner.info, expires, entry.users, entry.idle_since, now
                    )
                )
        return found

    def params(self, path: Path) -> LoadParams | None:
        """How a file is loaded, or being loaded; None where it is neither."""
        entry = self._entries.get(path)
        return None if entry is None or entry.leaving is not None or entry.dead else entry.params

    async def unload(self, path: Path) -> bool:
        """Let a model go: at once where it is idle, else when its users are done, for which this does not wait.

        False where it is not loaded.
        """
        self._drop_dead()
        entry = self._entries.get(path)
        if entry is None or entry.leaving is not None:
            return False
        entry.keep_alive = 0
        if not entry.users:
            await asyncio.shield(self._leave(entry))
        return True

    async def close(self) -> None:
        """Unload everything, also what is in use. Those who wait get ModelClosedError."""
        self._closed = True
        self._look_again()
        leaving = [self._leave(entry) for entry in self._entries.values()]
        await asyncio.gather(*leaving, *self._tasks, return_exceptions=True)

    # -- coming ---------------------------------------------------------------------------------------------------

    async def _entry(self, params: LoadParams) -> _Entry:
        """The model's entry, loading or loaded; waits until there may be one."""
        while True:
            if self._closed:
                raise ModelClosedError(_STOPPING)
            self._drop_dead()
            entry = self._entries.get(params.path)
            if entry is None and len(self._entries) < self._max_models:
                # As a task of its own: a failure reaches everybody who waits for it, and no cancellation does.
                load = self._spawn(_awaited(self._load(params)))
                entry = self._entries[params.path] = _Entry(params, load, self._default_keep_alive)
                load.add_done_callback(lambda _, entry=entry: self._on_load(entry))  # type: ignore[misc]
                return entry
            if entry is not None and entry.leaving is None and entry.params == params:
                return entry
            if entry is not None:
                in_the_way = [entry]
            elif any(other.leaving is not None for other in self._entries.values()):
                in_the_way = []  # room is being made already; whoever does not get it looks again
            else:
                in_the_way = list(self._entries.values())
            idle = [other for other in in_the_way if not other.users and other.leaving is None]
            if idle:
                self._leave(min(idle, key=lambda other: other.used))
            await self._changed.wait()

    def _on_load(self, entry: _Entry) -> None:
        if entry.runner is None and entry.leaving is None:
            self._remove(entry)

    # -- going ----------------------------------------------------------------------------------------------------

    def _rest(self, entry: _Entry) -> None:
        """Where an entry has become idle: who waits may look, and its time begins to run."""
        if entry.users or entry.leaving is not None or self._entries.get(entry.params.path) is not entry:
            return
        entry.idle_since = self._clock.now()
        self._look_again()
        if entry.keep_alive == 0:
            self._leave(entry)
        elif entry.keep_alive > 0:
            self._stop_timer(entry)
            entry.expires_at = self._expiry(entry)
            entry.timer = self._spawn(self._expire(entry, entry.keep_alive))

    async def _expire(self, entry: _Entry, seconds: float) -> None:
        await self._clock.sleep(seconds)
        entry.timer = None
        self._leave(entry)

    def _expiry(self, entry: _Entry) -> datetime | None:
        if entry.keep_alive < 0:
            return None
        try:
            return self._clock.now() + timedelta(seconds=entry.keep_alive)
        except OverflowError:
            return None

    def _stop_timer(self, entry: _Entry) -> None:
        entry.expires_at = None
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _leave(self, entry: _Entry) -> asyncio.Task[None]:
        """Unload, in a task of its own; the entry is gone when all is given back."""
        if entry.leaving is None:
            self._stop_timer(entry)
            entry.leaving = self._spawn(self._unload(entry))
        return entry.leaving

    async def _unload(self, entry: _Entry) -> None:
        try:
            entry.load.cancel()  # where it is not done
            await asyncio.wait([entry.load])
            if entry.runner is not None:
                await entry.runner.close()
        finally:
            self._remove(entry)

    def _drop_dead(self) -> None:
        """Let those go whose process has died; who still uses one knows already."""
        for entry in list(self._entries.values()):
            if entry.dead and entry.leaving is None:
                self._leave(entry)

    def _remove(self, entry: _Entry) -> None:
        if self._entries.get(entry.params.path) is entry:
            del self._entries[entry.params.path]
            self._look_again()

    def _look_again(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _awaited(awaitable: Awaitable[RunnerLike]) -> RunnerLike:
    return await awaitable
