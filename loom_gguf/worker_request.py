"""One request in the model's process: a thread that makes tokens of its prompt and carries events to the pipe.

It stops at a full window: the engine's stream then fills, and the engine leaves that sequence out. Nobody else waits,
and what is in memory for a reader that stands still is bounded.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .capture import Capture
from .chat import chat_template, prompt_tokens, render_chat
from .compression import check_kind
from .context import Context
from .embedding import check_pooling, normalized, pool
from .engine import Engine, Stream
from .errors import CaptureError, LoomError, NotGenerativeError, PromptError, SamplingError
from .jobs import Failed, Finished, Job, PromptRows
from .requests import ChatPrompt, Embedded, EmbedRequest, GenerateRequest, Prompt, Started, TextPrompt
from .states import States
from .vocab import Vocab
from .weights import Weights
from .wire import WINDOW_BYTES, WINDOW_EVENTS, Answer, Said, Submit, pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What the process has of its model. Only the engine's thread decodes."""

    weights: Weights
    context: Context
    engine: Engine


def loom_error(error: Exception) -> LoomError:
    """The error, or for one that was not raised on purpose a LoomError that tells of it."""
    if isinstance(error, LoomError):
        return error
    logger.error("unexpected error", exc_info=error)
    return LoomError(f"unexpected {type(error).__name__} in the model's process: {error}")


class Window:
    """How much more may be sent before the reader must take something."""

    def __init__(self) -> None:
        """Nothing is sent yet."""
        self._sent: deque[int] = deque()  # sizes of what the reader has not taken yet
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def wait_for_room(self, size: int) -> bool:
        """Count something of this size as sent, once it may be. False where nothing may be sent any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (len(self._sent) < WINDOW_EVENTS and self._bytes < WINDOW_BYTES)
            )
            self._sent.append(size)
            self._bytes += size
            return not self._closed

    def free(self, n: int) -> None:
        """The reader has taken the n oldest."""
        with self._changed:
            for _ in range(n):
                self._bytes -= self._sent.popleft()
            self._changed.notify()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class Request:
    """A request under way, in a thread of its own. `window` and cancel() are for the pipe's thread."""

    def __init__(
        self, loaded: Loaded, submitted: Submit, send: Callable[[bytes], None], ended: Callable[[int], None]
    ) -> None:
        """`send` may block for as long as the parent does not read; `ended` is told the number in the end."""
        self.window = Window()
        self._loaded = loaded
        self._ended = ended
        self._number = submitted.number
        self._request = submitted.request
        self._send = send
        self._stream: Stream | None = None
        self._cancelled = False

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name=f"loom-request-{self._number}", daemon=True).start()

    def cancel(self) -> None:
        """Say nothing more, and free the sequence within one step."""
        self._cancelled = True
        self.window.close()
        if self._stream is not None:  # else whoever submits the job sees the flag
            self._stream.cancel()

    def _run(self) -> None:
        try:
            request = self._request
            for event in self._generate(request) if isinstance(request, GenerateRequest) else self._embed(request):
                if not self._say(event):
                    return
        except Exception as error:
            self._say(Failed(loom_error(error)))
        finally:
            self._ended(self._number)

    def _say(self, event: Answer) -> bool:
        data = pack(Said(self._number, event))
        if not self.window.wait_for_room(len(data)):
            return False
        self._send(data)
        return True

    def _submit(self, job: Job) -> Stream:
        self._stream = stream = self._loaded.engine.submit(job)
        if self._cancelled:
            stream.cancel()
        return stream

    def _generate(self, request: GenerateRequest) -> Iterator[Answer]:
        context, weights = self._loaded.context, self._loaded.weights
        _check(request)
        if context.encoder and request.max_tokens != 0:
            raise NotGenerativeError(
                f"{weights.file.path.name} is an encoder ({weights.file.arch}): it reads text, it does not go on with "
                f"it. Ask for an embedding, or set max_tokens to 0"
            )
        tokens, text = _prompt(weights, request.prompt)
        stream = self._submit(
            Job(
                tokens=tuple(tokens),
                sampling=request.sampling,
                max_tokens=request.max_tokens,
                stop=request.stop,
                capture=request.capture,
                prompt_rows=request.prompt_rows,
                compression=request.compression,
                scale_block=request.scale_block,
            )
        )
        # Not before: what is wrong with a request is the first and only thing that it is told.
        yield Started(tuple(tokens), text)
        yield from stream

    def _embed(self, request: EmbedRequest) -> Iterator[Embedded]:
        try:
            check_pooling(request.pooling)
        except ValueError as error:
            raise PromptError(str(error)) from None
        context, weights = self._loaded.context, self._loaded.weights
        tokens, _ = _prompt(weights, request.prompt)
        if request.truncate and len(tokens) > context.n_ctx:
            tokens = _cut(weights.vocab, request.prompt, tokens, context.n_ctx)
        capture = _hidden(request.layer)
        rows: list[npt.NDArray[Any]] = []
        for event in self._submit(Job(tuple(tokens), max_tokens=0, capture=capture, prompt_rows=True)):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, PromptRows):
                assert isinstance(event.states, States)
                rows += event.states.values()
            elif isinstance(event, Finished):
                vector = pool(np.concatenate(rows), request.pooling)
                yield Embedded(normalized(vector) if request.normalize else vector, len(tokens))


def _check(request: GenerateRequest) -> None:
    """Refuse what the engine's thread would stumble over."""
    n = request.max_tokens
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 0):
        raise SamplingError(f"max_tokens must be an integer of at least 0, or None, not {n!r}")
    if request.prompt_rows and not request.capture:
        raise CaptureError("the prompt's rows need a capture that says which nodes")
    if request.compression is not None:
        check_kind(request.compression, request.scale_block)


def _prompt(weights: Weights, prompt: Prompt) -> tuple[list[int], str | None]:
    """A prompt's tokens, and its text where a chat template made it."""
    vocab = weights.vocab
    if isinstance(prompt, TextPrompt):
        return vocab.tokenize(prompt.text), None
    if isinstance(prompt, ChatPrompt):
        template = prompt.template
        text = render_chat(
            chat_template(weights.file.metadata, tools=bool(prompt.tools)) if template is None else template,
            prompt.messages,
            tools=prompt.tools,
            variables=prompt.variables,
            bos_token=vocab.bos_text,
            eos_token=vocab.eos_text,
        )
        return prompt_tokens(vocab, text), text
    vocab.check(prompt.tokens)
    return list(prompt.tokens), None


def _cut(vocab: Vocab, prompt: Prompt, tokens: list[int], n: int) -> list[int]:
    """The first n tokens; a special token that the tokenizer puts behind a text stays its last one."""
    if isinstance(prompt, TextPrompt):
        bare = vocab.tokenize(prompt.text, add_special=False)
        for n_before in range(len(tokens) - len(bare) + 1):
            if tokens[n_before : n_before + len(bare)] == bare:
                behind = tokens[n_before + len(bare) :]
                return tokens[: max(n - len(behind), 0)] + behind[:n]
    return tokens[:n]


def _hidden(layer: int | str) -> Capture:
    """The capture of a request's layer."""
    if isinstance(layer, int):
        return Capture.layers([layer])
    if layer not in ("final", "embedding"):
        raise CaptureError(f'layer is "final", "embedding" or a block\'s index, not {layer!r}')
    return Capture.layers([], embedding=layer == "embedding", final=layer == "final")
