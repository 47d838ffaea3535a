"""A loaded model as its parent sees it: a child process, and asyncio on this side of the pipe.

Everything here belongs to the event loop that called start(), but for two threads of each child's: one starts the
process, reads what it says and waits for its end; the other writes what is said to it. Neither waits for a reader of
events, so a child can always speak, and the loop never waits for a child.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from .errors import LoomError, ModelClosedError, PromptError, RunnerDiedError
from .jobs import Failed, Finished, PromptRows, Token
from .requests import Embedded, EmbedRequest, GenerateRequest, LoadParams, ModelInfo, Started
from .wire import (
    WINDOW_BYTES,
    WINDOW_EVENTS,
    Answer,
    Cancel,
    Leave,
    Logged,
    Ready,
    Refused,
    Said,
    Submit,
    Taken,
    pack,
    unpack,
)
from .worker import main

_logger = logging.getLogger(__name__)

_SPAWN = get_context("spawn")  # a fork would inherit threads and devices in the middle of what they do


class _Inbox:
    """A request's events that its reader has not taken yet; the child's window bounds them."""

    def __init__(self, acknowledge: Callable[[int], None]) -> None:
        self._events: asyncio.Queue[tuple[Answer, int]] = asyncio.Queue()
        self._acknowledge = acknowledge
        self._taken = 0
        self._taken_bytes = 0

    def __len__(self) -> int:
        return self._events.qsize()

    def put(self, event: Answer, size: int = 0) -> None:
        self._events.put_nowait((event, size))

    async def take(self) -> Answer:
        """The next event; raises the one that is an error."""
        event, size = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        # In half windows: the child only needs to know before its window is full.
        self._taken += 1
        self._taken_bytes += size
        if self._taken >= WINDOW_EVENTS // 2 or self._taken_bytes >= WINDOW_BYTES // 2:
            self._acknowledge(self._taken)
            self._taken = self._taken_bytes = 0
        return event


class Runner:
    """One loaded model in a process of its own. Made by start(); to be closed."""

    info: ModelInfo
    pid: int

    def __init__(self, params: LoadParams, on_exit: Callable[[Runner], None] | None) -> None:
        """Use start()."""
        self.params = params
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._loaded = False
        self._gone = asyncio.Event()
        self._end: Callable[[], LoomError] | None = None  # what those get who come when it is over
        self._process: SpawnProcess | None = None
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._inboxes: dict[int, _Inbox] = {}  # of requests whose last event has not come yet
        self._n_requests = 0

    @classmethod
    async def start(cls, params: LoadParams, *, on_exit: Callable[[Runner], None] | None = None) -> Runner:
        """Load a model. Raises what is wrong with it, or RunnerDiedError.

        on_exit: called in the event loop when the process has ended, for whatever reason; not where start() fails.
        """
        runner = cls(params, on_exit)
        threading.Thread(target=runner._live, name=f"loom-reader {params.path.name}", daemon=True).start()
        try:
            await runner._ready
        except BaseException:
            runner._on_exit = None
            await runner.close()
            raise
        return runner

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._end is None

    @property
    def n_requests(self) -> int:
        """Requests under way, those included that wait for a sequence."""
        return self._n_requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Started | PromptRows | Token | Finished, None]:
        """Events of a request: Started, PromptRows and Tokens, Finished. Raises a LoomError in place of the rest.

        Whoever leaves early calls aclose(), or lets contextlib.aclosing() do so: the sequence is then free within one
        step. A slow reader only slows its own request.
        """
        with self._request(request) as inbox:
            while True:
                event = await inbox.take()
                assert not isinstance(event, (Embedded, Failed))
                yield event
                if isinstance(event, Finished):
                    return

    async def embed(self, request: EmbedRequest) -> Embedded:
        """One vector for a text."""
        with self._request(request) as inbox:
            event = await inbox.take()
            assert isinstance(event, Embedded)
            return event

    @contextmanager
    def _request(self, request: GenerateRequest | EmbedRequest) -> Iterator[_Inbox]:
        if self._end is not None:
            raise self._end()
        number = next(self._numbers)
        try:
            self._tell(Submit(number, request))
        except RecursionError:  # of pickle
            raise PromptError("something in the request is nested too deep: give it fewer levels") from None
        inbox = self._inboxes[number] = _Inbox(lambda n: self._tell(Taken(number, n)))
        self._n_requests += 1
        try:
            yield inbox
        finally:
            self._n_requests -= 1
            if self._inboxes.pop(number, None) is not None:
                self._tell(Cancel(number))

    async def close(self, timeout: float = 5.0) -> None:
        """End the process: ask it, terminate it `timeout` seconds later, kill it after as many more.

        Requests under way end with ModelClosedError. May be called again, and at the same time.
        """
        self._finish(lambda: ModelClosedError("the model was unloaded before this request was done; ask again"))
        self._tell(Leave())
        for more in ("terminate", "kill"):
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._gone.wait(), timeout)
                return
            self._signal(more)
        await self._gone.wait()

    def _signal(self, how: Literal["terminate", "kill"]) -> None:
        process = self._process
        if process is not None:
            with suppress(ValueError):  # it was closed in this moment
                getattr(process, how)()

    # -- in the event loop, called by the reading thread ---------------------------------------------------------

    def _hear(self, message: Ready | Refused | Said, size: int) -> None:
        if isinstance(message, Said):
            inbox = self._inboxes.get(message.number)
            if inbox is None:
                return  # cancelled while this was on its way
            inbox.put(message.event, size)
            if isinstance(message.event, (Finished, Failed, Embedded)):
                del self._inboxes[message.number]
        elif not self._ready.done():
            if isinstance(message, Ready):
                self.info = message.info
                self._loaded = True
                self._ready.set_result(None)
            else:
                self._ready.set_exception(message.error)

    def _exited(self, how: str) -> None:
        loading = "" if self._loaded else " while it loaded"
        text = (
            f"the process of the model {self.params.path.name} ended{loading} ({how}); the next request loads it again"
        )
        self._finish(lambda: RunnerDiedError(text))
        self._gone.set()
        if self._on_exit is not None and self._loaded:
            self._on_exit(self)

    def _finish(self, error: Callable[[], LoomError]) -> None:
        """Take no more requests, and end those under way; each with an error of its own, for their tracebacks."""
        if self._end is not None:
            return
        self._end = error
        if not self._ready.done():
            self._ready.set_exception(error())
        for inbox in self._inboxes.values():
            inbox.put(Failed(error()))
        self._inboxes.clear()

    def _tell(self, message: Submit | Taken | Cancel | Leave) -> None:
        self._outgoing.put(pack(message))

    # -- the threads ----------------------------------------------------------------------------------------------

    def _live(self) -> None:
        """From the start of the process to its end."""
        how = "it could not be started"
        try:
            connection = self._start_process()
            assert self._process is not None
            writer = threading.Thread(target=_write, args=(connection, self._outgoing), daemon=True)
            writer.start()
            try:
                self._read(connection)
            except BaseException:
                self._process.kill()
                raise
            finally:
                # The pipe ends with the process, a moment before the process itself does.
                self._process.join()
                how = _how_it_ended(self._process)
                self._outgoing.put(None)
                writer.join()
                connection.close()  # now that nobody uses it
                self._close_process()
        except Exception as error:
            _logger.exception("the thread of a model's process failed")
            how = f"{how}: {error}"
        finally:
            self._call(self._exited, how)

    def _close_process(self) -> None:
        """Its file handles are closed here: where a load failed, the error's traceback keeps this object alive."""
        process, self._process = self._process, None
        with suppress(ValueError):  # another thread's start() is just taking note of its end
            if process is not None:
                process.close()

    def _start_process(self) -> Connection:
        # Ctrl-C goes to every process of the terminal. The child ignores it, but only when it has got so far: until
        # then it is blocked, which a new process inherits from the thread that starts it. (multiprocessing's own
        # helper unblocks it, so it must run before.)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        ours, theirs = _SPAWN.Pipe()
        level = logging.getLogger("loom_gguf").getEffectiveLevel()
        name = f"loom_gguf {self.params.path.name}"
        process = _SPAWN.Process(target=main, args=(theirs, self.params, level), name=name, daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends where the child does
        self._process = process
        self.pid = process.pid or 0
        return ours

    def _read(self, connection: Connection) -> None:
        while True:
            try:
                data = connection.recv_bytes()
            except (EOFError, OSError):
                return
            message = unpack(data)
            if isinstance(message, Logged):
                logging.getLogger(message.name).log(message.level, "%s", message.text)
            else:
                self._call(self._hear, message, len(data))

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed without close(): nobody can use the process any more
            self._signal("kill")


def _write(connection: Connection, outgoing: queue.SimpleQueue[bytes | None]) -> None:
    while (data := outgoing.get()) is not None:
        with suppress(OSError):  # the child is gone: its end is told by who reads
            connection.send_bytes(data)


def _how_it_ended(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is None:
        return "how is not known"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, as the system does when memory runs out" if -code == signal.SIGKILL else name
