"""Pulls that several clients wait for: one thread and one download for all who ask for the same model."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from ..errors import LoomError, PullError
from ..library.names import Name, key
from . import pull, pull_name
from .own_store import OwnStore
from .progress import Progress, Watcher

logger = logging.getLogger(__name__)

_Key = tuple[str, str, bool]
Pull = Callable[..., Name]


class SharedPulls:
    """The pulls that are under way. Belongs to one event loop; each pull has a thread."""

    def __init__(self, start: Pull = pull) -> None:
        """start: what pulls."""
        self._start = start
        self._jobs: dict[_Key, _Job] = {}

    async def follow(self, text: str, store: OwnStore, *, insecure: bool = False) -> AsyncGenerator[Progress, None]:
        """What a pull tells, until it is done; raises what it fails with. Joins one that is under way.

        A slow reader misses numbers in between, never a line of another kind. Where the last reader leaves, the pull
        stops; what has come stays, and the next pull goes on from there.
        """
        name = pull_name(text)
        at = (str(store.root), key(str(name)), insecure)
        job = self._jobs.get(at)
        if job is None or job.cancelled.is_set():
            job = self._jobs[at] = _Job(lambda watcher: self._start(text, store, watcher, insecure=insecure))
            job.run(name.short, lambda ended: self._forget(at, ended))
        async with aclosing(job.follow()) as lines:
            async for line in lines:
                yield line

    def close(self) -> None:
        """Stop all."""
        for job in self._jobs.values():
            job.cancelled.set()

    def _forget(self, at: _Key, job: _Job) -> None:
        if self._jobs.get(at) is job:
            del self._jobs[at]


async def following(work: Callable[[Watcher], Name]) -> AsyncGenerator[Progress, None]:
    """What work in a thread of its own tells; it is stopped where its reader leaves."""
    job = _Job(work)
    job.run("a model", lambda _: None)
    async with aclosing(job.follow()) as lines:
        async for line in lines:
            yield line


class _Reader:
    def __init__(self, lines: dict[str, Progress]) -> None:
        self.lines = dict(lines)  # not taken yet: of each kind the newest
        self.news = asyncio.Event()
        self.news.set()


class _Job:
    """One pull. All but the thread's own work happens in the event loop."""

    def __init__(self, work: Callable[[Watcher], Name]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._readers: set[_Reader] = set()
        self._lines: dict[str, Progress] = {}  # for those who join later
        self.cancelled = threading.Event()
        self.ended = False
        self.error: LoomError | None = None

    def run(self, name: str, on_end: Callable[[_Job], None]) -> None:
        def live() -> None:
            error: LoomError | None = None
            try:
                self._work(Watcher(lambda line: self._call(self._hear, line), self.cancelled))
            except LoomError as caught:
                error = caught
            except Exception as caught:
                logger.exception("%s failed", threading.current_thread().name)
                error = PullError(f"{name} could not be had: {type(caught).__name__}; the server's log tells more")
            self._call(self._finish, error, on_end)

        threading.Thread(target=live, name=f"loom-pull {name:.80}", daemon=True).start()

    async def follow(self) -> AsyncGenerator[Progress, None]:
        reader = _Reader(self._lines)
        self._readers.add(reader)
        try:
            while True:
                await reader.news.wait()
                reader.news.clear()
                lines, reader.lines = reader.lines, {}
                for line in lines.values():
                    yield line
                if self.ended and not reader.lines:
                    if self.error is not None:
                        raise type(self.error)(str(self.error))
                    return
        finally:
            self._readers.discard(reader)
            if not self._readers and not self.ended:
                self.cancelled.set()

    def _hear(self, line: Progress) -> None:
        at = line.digest or line.status
        self._lines[at] = line
        for reader in self._readers:
            reader.lines[at] = line
            reader.news.set()

    def _finish(self, error: LoomError | None, on_end: Callable[[_Job], None]) -> None:
        self.ended, self.error = True, error
        on_end(self)
        for reader in self._readers:
            reader.news.set()

    def _call(self, what: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(what, *args)
