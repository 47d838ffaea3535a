"""Continuous batching: jobs in, events out.

One thread owns the context. Each turn it makes one batch: one token of every sequence that generates, and as much of
the prompts that wait as still fits behind them. What several jobs capture is captured once; each job gets its own rows
of its own nodes. A job whose reader is slow waits, and nobody else.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Protocol

import numpy as np

from .batch import Array, Batch, Rows
from .capture import Capture
from .catalog import Selection
from .compression import Kind
from .errors import EmptyPromptError, EngineBusyError, LoomError, ModelClosedError, PromptTooLongError
from .jobs import Captured, Event, Failed, Finished, FinishReason, Job, PromptRows, Token
from .sampling import Choice, Sampling
from .text import TextStream

_PARKED_BYTES = 2**28  # of idle sequences beside the cache, all together; what is more stays in it


class EngineContext(Protocol):
    """What an engine needs of a context; Context has it."""

    n_ctx: int  # tokens of one sequence
    n_ubatch: int  # tokens of one batch
    encoder: bool  # a text must be in one batch
    one_at_a_time: bool  # a batch must be of one sequence

    def open_sequence(self) -> int:
        """A new sequence."""
        ...

    def forget_from(self, sequence: int, position: int) -> bool:
        """Forget its tokens from there on; False where its state cannot be cut."""
        ...

    def park(self, sequence: int, limit: int) -> Array | None:
        """Take its tokens out of the cache; None, and nothing is done, where that needs more than `limit` bytes."""
        ...

    def unpark(self, sequence: int, parked: Array) -> bool:
        """Put an empty sequence's tokens back; False where they cannot be, and it stays empty."""
        ...

    def check_capture(self, capture: Capture) -> bool:
        """Raise CaptureError where it cannot be had; whether it needs batches for itself."""
        ...

    def selection(self, capture: Capture, n_tokens: int) -> Selection:
        """What it means in batches of this many tokens."""
        ...

    def decode(self, batch: Batch) -> None:
        """Compute a batch."""
        ...

    def decode_capturing(
        self, batch: Batch, capture: Capture, keep: Array, *, compression: Kind | None = None, scale_block: int = 0
    ) -> Rows:
        """Compute a batch and return rows of its tokens number `keep`, compressed at once where that is said."""
        ...


class TokenSource(Protocol):
    """Chooses tokens for one job from the logits of the last decode."""

    def sample(self, index: int) -> Choice:
        """A token from the logits of the batch's token number `index`."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class Speaker(Protocol):
    """The model's vocabulary, as far as text comes out of it; Vocab has it."""

    def piece(self, token_id: int) -> bytes:
        """The bytes that this token adds to the text."""
        ...

    def ends_generation(self, token_id: int) -> bool:
        """Whether the model means the end by it."""
        ...


class Stream:
    """The events of one job, to be iterated over once; the last one is Finished or Failed."""

    def __init__(self, wake: Callable[[], None], size: int) -> None:
        """`wake` is called when there is room again, or nobody wants more. `size`: events held before the job waits."""
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._wake = wake
        self._size = size
        self.cancelled = False

    def __iter__(self) -> Iterator[Event]:
        """Events as they come; leaving the loop early cancels the job. After cancel() no more come."""
        ended = False
        try:
            while not ended:
                with self._changed:
                    self._changed.wait_for(lambda: self._events or self.cancelled)
                    if self.cancelled:
                        return
                    event = self._events.popleft()
                    room = len(self._events) == self._size - 1
                if room:
                    self._wake()
                ended = isinstance(event, (Finished, Failed))
                yield event
        finally:
            if not ended:
                self.cancel()

    def cancel(self) -> None:
        """Want no more: the job's sequence is free within one step. From any thread, also while another one reads."""
        with self._changed:
            self.cancelled = True
            self._changed.notify()
        self._wake()

    def put(self, event: Event) -> None:
        """For the engine: hand an event over."""
        with self._changed:
            self._events.append(event)
            self._changed.notify()

    @property
    def has_room(self) -> bool:
        """For the engine: whether the reader keeps up."""
        return len(self._events) < self._size


@dataclass
class _Running:
    """A job that has a sequence."""

    job: Job
    stream: Stream
    tokens: TokenSource
    text: TextStream
    solo: bool  # some wanted node has no rows, so it must not share a batch
    arrived: float
    pending: list[int] = field(default_factory=list)  # tokens to be read
    n_reused: int = 0
    index: int = 0  # of the next token to be generated
    admitted: float = 0.0
    prompt_done: float = 0.0

    @property
    def generating(self) -> bool:
        return self.index > 0


@dataclass
class _Slot:
    """A sequence of the context, and the tokens that its cells hold, in the cache or beside it."""

    sequence: int
    cells: list[int] = field(default_factory=list)
    parked: Array | None = None  # the cells, where they are not in the cache
    running: _Running | None = None
    used: float = 0.0


@dataclass
class _Part:
    """One sequence's share of a batch."""

    slot: _Slot
    running: _Running
    piece: list[int]
    at: int  # in the batch
    completes: bool  # the piece is all that was pending
    kept: list[int] = field(default_factory=list)  # in the batch


class Engine:
    """Runs jobs on one context."""

    def __init__(
        self,
        context: EngineContext,
        speaker: Speaker,
        make_tokens: Callable[[Sampling, Sequence[int]], TokenSource],
        *,
        parallel: int = 4,
        max_waiting: int = 64,
        stream_size: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_tokens`: for a job's sampling and prompt. `parallel`: sequences; the context must have so many."""
        self._context = context
        self._speaker = speaker
        self._make_tokens = make_tokens
        self._max_waiting = max_waiting
        self._stream_size = stream_size
        self._clock = clock
        self._slots = [_Slot(context.open_sequence()) for _ in range(parallel)]
        self._waiting: deque[_Running] = deque()  # guarded by _changed
        self._changed = threading.Condition()
        self._woken = False  # guarded by _changed
        self._closing = False
        self._turns = 0
        self._stopped = threading.Event()  # nobody runs turns
        self._stopped.set()

    # -- for other threads --------------------------------------------------------------------------------------

    def submit(self, job: Job) -> Stream:
        """Queue a job. What is wrong with it is said here; EngineBusyError where too many wait already."""
        if not job.tokens:
            raise EmptyPromptError("the prompt is empty: give at least one token")
        if len(job.tokens) > self._context.n_ctx:
            raise PromptTooLongError(
                f"the prompt has {len(job.tokens):,} tokens, but the context holds {self._context.n_ctx:,}"
            )
        solo = bool(job.capture) and self._context.check_capture(job.capture or Capture())
        tokens = self._make_tokens(job.sampling, job.tokens)
        stream = Stream(self._notify, self._stream_size)
        running = _Running(job, stream, tokens, TextStream(job.stop), solo, self._clock(), list(job.tokens))
        with self._changed:
            if self._closing:
                tokens.close()
                raise ModelClosedError("this model is being unloaded; ask again")
            n_waiting = self._count_waiting()
            if n_waiting >= self._max_waiting:
                tokens.close()
                raise EngineBusyError(f"{n_waiting} requests wait for this model already; try again later")
            self._waiting.append(running)
        self._notify()
        return stream

    def start(self) -> None:
        """Run turns in a thread of the engine's own."""
        self._stopped.clear()
        threading.Thread(target=self.run, name="loom-engine", daemon=True).start()

    def run(self) -> None:
        """Run turns in this thread until close() is called in another one."""
        self._stopped.clear()
        try:
            self._loop()
        finally:
            self._stopped.set()

    def close(self) -> None:
        """End all jobs with ModelClosedError; the context stays open."""
        with self._changed:
            self._closing = True
        self._notify()
        self._stopped.wait()
        error = ModelClosedError("the model was unloaded before this request was done; ask again")
        with self._changed:
            while self._waiting:
                self._end(self._waiting.popleft(), Failed(error))
        for slot in self._slots:
            self._free(slot, Failed(error))

    @property
    def n_running(self) -> int:
        """Jobs that have a sequence."""
        return sum(slot.running is not None for slot in self._slots)

    @property
    def n_waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    def _count_waiting(self) -> int:
        """Jobs in the queue that the next turn neither drops nor gives a sequence; may be negative."""
        running = [slot.running for slot in self._slots]
        free = sum(each is None or each.stream.cancelled for each in running)
        return sum(not each.stream.cancelled for each in self._waiting) - free

    def _notify(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    # -- the engine's own thread --------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                self._woken = False
            if not self.turn():
                with self._changed:
                    self._changed.wait_for(lambda: self._woken)

    def turn(self) -> bool:
        """Admit, decode one batch, hand the results out. False where there was nothing to do."""
        self._drop_cancelled()
        self._admit()
        parts = self._compose()
        if not parts:
            return False
        self._turns += 1
        try:
            rows = self._decode(parts)
            for part in parts:
                self._advance(part, rows)
        except LoomError as error:
            # Whose fault it was cannot be told; all that were in this batch end, and nobody else.
            for part in parts:
                part.slot.cells.clear()
                self._context.forget_from(part.slot.sequence, 0)
                self._free(part.slot, Failed(error))
        return True

    def _drop_cancelled(self) -> None:
        for slot in self._slots:
            if slot.running is not None and slot.running.stream.cancelled:
                slot.running.tokens.close()
                slot.running = None
                slot.used = self._clock()
        with self._changed:
            for running in [r for r in self._waiting if r.stream.cancelled]:
                self._waiting.remove(running)
                running.tokens.close()

    def _admit(self) -> None:
        while running := self._next_waiting():
            free = [slot for slot in self._slots if slot.running is None]
            prompt = running.pending
            # Rows come of what is computed: a prompt whose rows are wanted is computed from its beginning. Its last
            # token is computed in any case, for its logits.
            most = 0 if running.job.prompt_rows else len(prompt) - 1
            slot = max(free, key=lambda slot: (_kept(slot.cells, prompt, most), -slot.used))
            n = min(_common(slot.cells, prompt), most)
            parked, slot.parked = slot.parked, None
            if parked is not None and n and not self._context.unpark(slot.sequence, parked):
                n = 0
            if not self._context.forget_from(slot.sequence, n):
                n = 0  # a state that cannot be cut: begin anew
                self._context.forget_from(slot.sequence, 0)
            del slot.cells[n:]
            running.pending = prompt[n:]
            running.n_reused = n
            running.admitted = self._clock()
            slot.running = running
            if not self._waiting:
                self._park_idle()

    def _next_waiting(self) -> _Running | None:
        """Whose turn it is to get a sequence; None where nobody waits or none is free."""
        with self._changed:
            if not self._waiting or all(slot.running is not None for slot in self._slots):
                return None
            return self._waiting.popleft()

    def _park_idle(self) -> None:
        """Take the cells of those that are done out of the way: each decode looks at all that are in the cache."""
        if self._context.encoder:
            return
        room = _PARKED_BYTES - sum(slot.parked.nbytes for slot in self._slots if slot.parked is not None)
        for slot in self._slots:
            if slot.running is None and slot.cells and slot.parked is None:
                slot.parked = self._context.park(slot.sequence, room)
                room -= 0 if slot.parked is None else slot.parked.nbytes

    def _compose(self) -> list[_Part]:
        ready = [
            (slot, slot.running) for slot in self._slots if slot.running is not None and slot.running.stream.has_room
        ]
        if not ready:
            return []
        # Everybody's turn to be first: who needs a batch alone, and whose prompt is cut last.
        first = self._turns % len(ready)
        ready = ready[first:] + ready[:first]
        if ready[0][1].solo or self._context.one_at_a_time:
            ready = ready[:1]
        else:
            ready = [(slot, running) for slot, running in ready if not running.solo]
        ready.sort(key=lambda item: not item[1].generating)
        parts: list[_Part] = []
        room, at = self._context.n_ubatch, 0
        for slot, running in ready:
            piece = running.pending[:room]
            if not piece:
                break
            if self._context.encoder and len(piece) < len(running.pending):
                continue
            part = _Part(slot, running, piece, at, completes=len(piece) == len(running.pending))
            if running.job.capture:
                ends = range(at + len(piece))
                part.kept = list(ends[at:] if running.job.prompt_rows and not running.generating else ends[-1:])
                if not part.completes and not running.job.prompt_rows:
                    part.kept = []
            parts.append(part)
            room -= len(piece)
            at += len(piece)
        return parts

    def _decode(self, parts: list[_Part]) -> Rows | None:
        n = sum(len(part.piece) for part in parts)
        batch = Batch(np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32), np.zeros(n, bool))
        for part in parts:
            here = slice(part.at, part.at + len(part.piece))
            batch.tokens[here] = part.piece
            start = len(part.slot.cells)
            batch.positions[here] = np.arange(start, start + len(part.piece))
            batch.sequences[here] = part.slot.sequence
            batch.outputs[here.stop - 1] = part.completes and part.running.job.max_tokens != 0
        kept = [i for part in parts for i in part.kept]
        capturing = [part for part in parts if part.kept]
        if not capturing:
            self._context.decode(batch)
            return None
        capture = reduce(or_, (part.running.job.capture or Capture() for part in capturing))
        keep = np.array(kept, np.int32)
        # What is saturated is counted over all rows of a node: they must then belong to one event.
        job = capturing[0].running.job
        if len(capturing) > 1 or job.compression is None or (len(kept) > 1 and batch.outputs[kept[-1]]):
            return self._context.decode_capturing(batch, capture, keep)
        return self._context.decode_capturing(
            batch, capture, keep, compression=job.compression, scale_block=job.scale_block
        )

    def _advance(self, part: _Part, rows: Rows | None) -> None:
        running, slot, job = part.running, part.slot, part.running.job
        slot.cells += part.piece
        del running.pending[: len(part.piece)]
        mine = None
        if rows is not None and part.kept and job.capture:
            mine = rows if len(rows.kept) == len(part.kept) else rows.of(slot.sequence)
            mine = mine.only(self._context.selection(job.capture, len(rows.batch.tokens)))
        sampled = part.completes and job.max_tokens != 0
        if mine is not None and not running.generating and job.prompt_rows:
            n_before = len(part.kept) - sampled
            if n_before:
                running.stream.put(PromptRows(_captured(mine.take(slice(n_before)) if sampled else mine, job)))
            mine = mine.take(np.arange(n_before, len(part.kept)))  # a copy: the prompt's rows are not to be held by it
        if not part.completes:
            return
        if not running.generating:
            running.prompt_done = self._clock()
        if job.max_tokens == 0:
            self._free(slot, self._finished(running, "stop"))
            return
        try:
            choice = running.tokens.sample(part.at + len(part.piece) - 1)
        except LoomError as error:  # this job's own grammar or numbers; the others of the batch go on
            self._free(slot, Failed(error))
            return
        ended = self._speaker.ends_generation(choice.token_id)
        text = "" if ended else running.text.feed(self._speaker.piece(choice.token_id))
        reason: FinishReason | None = None
        if ended or running.text.stopped:
            reason = "stop"
        elif running.index + 1 == job.max_tokens or len(slot.cells) >= self._context.n_ctx:
            reason = "length"
        if reason:
            text += running.text.finish()
        states = _captured(mine, job, single=True) if mine is not None else None
        position = len(slot.cells) - 1
        running.stream.put(
            Token(choice.token_id, text, running.index, position, states, choice.logprob, choice.top_logprobs, reason)
        )
        running.index += 1
        if reason:
            self._free(slot, self._finished(running, reason))
        else:
            running.pending = [choice.token_id]

    def _finished(self, running: _Running, reason: FinishReason) -> Finished:
        return Finished(
            reason=reason,
            n_prompt=len(running.job.tokens),
            n_reused=running.n_reused,
            n_generated=running.index,
            queue_seconds=running.admitted - running.arrived,
            prompt_seconds=running.prompt_done - running.admitted,
            generate_seconds=self._clock() - running.prompt_done,
        )

    def _free(self, slot: _Slot, last: Event) -> None:
        if slot.running is not None:
            self._end(slot.running, last)
        slot.running = None
        slot.used = self._clock()

    def _end(self, running: _Running, last: Event) -> None:
        running.tokens.close()
        running.stream.put(last)


def _kept(cells: Sequence[int], prompt: Sequence[int], most: int) -> int:
    """What a sequence is worth to a prompt: the cells that it need not compute.

    None where most of them would be lost: many conversations begin alike, and each is to find its own again.
    """
    n = min(_common(cells, prompt), most)
    return n if 2 * n >= len(cells) else 0


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the beginning that both have."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _captured(rows: Rows, job: Job, *, single: bool = False) -> Captured:
    if rows.compression is not None:
        return rows.compressed_states(single=single)
    states = rows.states(single=single)
    return states if job.compression is None else states.compress(job.compression, job.scale_block)
