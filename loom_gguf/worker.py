"""The child process that has one model: requests come in over a pipe, events go out.

Threads of the child:

- the main one loads the model, and then computes (engine.py). Both in one thread: OpenMP keeps threads for every thread
  that ever computed, and where all those are more than the processors, it lets them sleep instead of spin at each
  barrier, of which a token has hundreds;
- `loom-pipe` reads what the parent says, and ends the process where the parent is gone;
- one for each request makes tokens of its prompt, and carries the engine's events to the pipe (worker_request.py).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import numpy as np

from .context import Context, ContextParams
from .engine import Engine
from .requests import LoadParams, ModelInfo
from .sampling import Choice, Sampler, Sampling
from .weights import Weights
from .wire import Cancel, Leave, Logged, Ready, Refused, Submit, Taken, pack, unpack
from .worker_request import Loaded, Request, loom_error

logger = logging.getLogger(__name__)

_STREAM_EVENTS = 4  # of a request, between the engine and the request's thread, which takes them at once
_BROKEN = 70  # exit code where the child is at fault; EX_SOFTWARE of sysexits.h


# -- the process ------------------------------------------------------------------------------------------------


def main(connection: Connection, params: LoadParams, log_level: int) -> NoReturn:
    """Serve until the parent says Leave or is gone. The target of a spawned process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, but the parent decides
    with suppress(OSError):  # where there is no stderr
        os.dup2(2, 1)  # what a library prints must not get into the parent's output
    with suppress(OSError):  # Linux: the name in ps and top
        Path("/proc/self/comm").write_text(f"loom {params.path.stem}"[:15])
    lock = threading.Lock()

    def send(data: bytes) -> None:
        # Where the parent is gone, the thread that reads ends the process.
        with lock, suppress(OSError):
            connection.send_bytes(data)

    _log_to(send, log_level)
    threading.excepthook = lambda args: _give_up(args.exc_value)
    worker = _Worker(send)
    threading.Thread(target=_read, args=(connection, worker), name="loom-pipe", daemon=True).start()
    try:
        info = worker.load(params)
    except Exception as error:
        send(pack(Refused(loom_error(error))))
        os._exit(0)
    send(pack(Ready(info)))
    try:
        worker.compute()
    except BaseException as error:
        _give_up(error)
    os._exit(0)


def _read(connection: Connection, worker: _Worker) -> None:
    """The pipe's thread. It never waits for anything else, so the parent can always be heard."""
    while True:
        try:
            message = unpack(connection.recv_bytes())
        except (EOFError, OSError):
            message = Leave()
        if isinstance(message, Leave):
            # At once, in the middle of whatever is computed: the system frees memory and devices better than we do.
            os._exit(0)
        worker.hear(message)


class _ToParent(logging.Handler):
    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(pack(Logged(record.name, record.levelno, self.format(record))))


def _log_to(send: Callable[[bytes], None], level: int) -> None:
    package = logging.getLogger("loom_gguf")
    package.addHandler(_ToParent(send))
    package.setLevel(level)
    package.propagate = False


def _give_up(error: BaseException | None) -> NoReturn:
    """A thread that others depend on has failed: all requests get an error when the process ends, instead of none."""
    if error is not None:
        logger.critical("the model's process has a fault and ends", exc_info=error)
    os._exit(_BROKEN)


class _Worker:
    """The model and the requests on it."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._requests: dict[int, Request] = {}  # the pipe's thread adds, each request's own thread removes

    def load(self, params: LoadParams) -> ModelInfo:
        began = time.monotonic()
        weights = Weights(params.path, params.placement)
        n_ctx = min(params.n_ctx, weights.n_ctx_train) if weights.n_ctx_train > 0 else params.n_ctx
        parallel = 1 if weights.recurrent else params.n_parallel
        context = Context(
            weights,
            ContextParams(
                n_ctx=n_ctx,
                n_cells=n_ctx * parallel,
                n_ubatch=params.n_ubatch,
                n_seq_max=parallel,
                n_threads=params.n_threads,
                precision=params.precision,
            ),
        )

        def choose(sampling: Sampling, prompt: Sequence[int]) -> Chooser:
            return Chooser(Sampler(sampling, weights.vocab, context.n_ctx, prompt), context)

        engine = Engine(
            context,
            weights.vocab,
            choose,
            parallel=parallel,
            max_waiting=params.max_waiting,
            stream_size=_STREAM_EVENTS,
        )
        self._loaded = Loaded(weights, context, engine)
        file = weights.file
        return ModelInfo(
            arch=file.arch,
            n_layer=weights.n_layer,
            n_embd=weights.n_embd,
            n_vocab=weights.vocab.n_tokens,
            n_ctx=context.n_ctx,
            encoder=context.encoder,
            has_text=weights.vocab.has_text,
            quantization=file.quantization,
            metadata={key: value for key, value in file.metadata.items() if not _of_vocabulary(key, value)},
            load_seconds=time.monotonic() - began,
        )

    def compute(self) -> None:
        """Run the engine, in the thread that loaded the model."""
        self._loaded.engine.run()

    def hear(self, message: Submit | Taken | Cancel) -> None:
        """For the pipe's thread."""
        if isinstance(message, Submit):
            request = Request(self._loaded, message, self._send, self._requests.__delitem__)
            self._requests[message.number] = request
            request.start()
            return
        known = self._requests.get(message.number)
        if known is None:
            return  # it was done already
        if isinstance(message, Taken):
            known.window.free(message.n)
        else:
            known.cancel()


def _of_vocabulary(key: str, value: object) -> bool:
    return key.startswith("tokenizer.") and isinstance(value, (list, np.ndarray))


@dataclass
class Chooser:
    """Chooses a job's tokens; for the engine's thread."""

    sampler: Sampler
    context: Context

    def sample(self, index: int) -> Choice:
        """A token from the logits of the batch's token number `index`."""
        return self.sampler.sample(self.context.handle, index)

    def close(self) -> None:
        """Free it."""
        self.sampler.close()
