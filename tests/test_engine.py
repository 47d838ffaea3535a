"""Continuous batching: scheduling with a made-up context, and rows with a real one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from oracle import EOS, open_weights, random_tokens, relative_error

from loom_gguf import (
    Capture,
    CaptureUnsupportedError,
    DecodeError,
    EmptyPromptError,
    EngineBusyError,
    GrammarError,
    ModelClosedError,
    PromptTooLongError,
)
from loom_gguf.batch import Batch
from loom_gguf.context import Context, ContextParams
from loom_gguf.engine import Engine, Stream
from loom_gguf.jobs import Failed, Finished, Job, PromptRows, Token
from loom_gguf.sampling import Choice, Sampler, Sampling
from loom_gguf.worker import Chooser

# -- a context that only keeps books -------------------------------------------------------------------------------


@dataclass
class FakeContext:
    """Checks what every batch must obey, and computes nothing."""

    n_ctx: int = 100
    n_ubatch: int = 8
    encoder: bool = False
    one_at_a_time: bool = False
    can_cut: bool = True
    can_unpark: bool = True
    most_parked: int = 10**9
    cells: dict[int, list[int]] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    fail_next: Exception | None = None

    def open_sequence(self) -> int:
        self.cells[len(self.cells)] = []
        return len(self.cells) - 1

    def forget_from(self, sequence: int, position: int) -> bool:
        if position and not self.can_cut and position < len(self.cells[sequence]):
            return False
        del self.cells[sequence][position:]
        return True

    def park(self, sequence: int, limit: int) -> np.ndarray | None:
        parked = np.array(self.cells[sequence])
        if parked.nbytes > min(limit, self.most_parked):
            return None
        self.cells[sequence] = []
        return parked

    def unpark(self, sequence: int, parked: np.ndarray) -> bool:
        assert self.cells[sequence] == []
        self.cells[sequence] = parked.tolist() if self.can_unpark else []
        return self.can_unpark

    def decode(self, batch: Batch) -> None:
        if self.fail_next:
            error, self.fail_next = self.fail_next, None
            raise error
        assert 0 < len(batch.tokens) <= self.n_ubatch
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            assert position == len(self.cells[sequence]) < self.n_ctx
            self.cells[sequence].append(int(token))
        self.batches.append(batch)

    def sizes(self) -> list[dict[int, int]]:
        """Tokens per sequence, batch by batch."""
        return [{int(s): int((b.sequences == s).sum()) for s in np.unique(b.sequences)} for b in self.batches]


@dataclass
class Counter:
    """Says 100, 101, 102, ..."""

    next: int = 100
    closed: bool = False

    def sample(self, index: int) -> Choice:
        self.next += 1
        return Choice(self.next - 1)

    def close(self) -> None:
        self.closed = True


class Letters:
    """Token 100 is a, 101 is b, ...; 126 ends."""

    def piece(self, token_id: int) -> bytes:
        return bytes([token_id - 3])

    def ends_generation(self, token_id: int) -> bool:
        return token_id == 126


def fake_engine(context: FakeContext | None = None, **settings: Any) -> tuple[Engine, FakeContext]:
    context = context or FakeContext()
    return Engine(context, Letters(), lambda sampling, prompt: Counter(), **settings), context  # type: ignore[arg-type]


def run(engine: Engine) -> None:
    """Turns until there is nothing to do."""
    for _ in range(1000):
        if not engine.turn():
            return
    raise AssertionError("the engine never comes to rest")


def events(stream: Stream) -> list[Any]:
    """All events that are there."""
    return list(stream._events)


def text(stream: Stream) -> str:
    return "".join(e.text for e in events(stream) if isinstance(e, Token))


def job(prompt: Sequence[int], **wishes: Any) -> Job:
    return Job(tuple(prompt), **{"max_tokens": 4, **wishes})


def test_one_job():
    engine, context = fake_engine()
    stream = engine.submit(job([1, 2, 3]))
    run(engine)
    assert text(stream) == "abcd"
    assert [e.position for e in events(stream)[:-1]] == [2, 3, 4, 5]
    last = events(stream)[-1]
    assert (last.reason, last.n_prompt, last.n_reused, last.n_generated) == ("length", 3, 0, 4)
    assert context.sizes() == [{0: 3}, {0: 1}, {0: 1}, {0: 1}]
    assert [b.outputs.tolist() for b in context.batches][:2] == [[False, False, True], [True]]


def test_long_prompts_are_cut_and_generations_go_on_beside_them():
    engine, context = fake_engine(parallel=2)
    first = engine.submit(job([1], max_tokens=6))
    engine.turn()
    second = engine.submit(job(range(2, 18), max_tokens=1))
    run(engine)
    assert text(first) == "abcdef"
    assert text(second) == "a"
    assert context.sizes()[1:4] == [{0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 2}]


def test_more_jobs_than_sequences_wait_their_turn():
    engine, _ = fake_engine(parallel=2)
    streams = [engine.submit(job([i + 1])) for i in range(5)]
    engine.turn()
    assert (engine.n_running, engine.n_waiting) == (2, 3)
    run(engine)
    assert [text(s) for s in streams] == ["abcd"] * 5


def test_too_many_waiting():
    engine, _ = fake_engine(parallel=1, max_waiting=2)
    first = engine.submit(job([1]))
    engine.turn()
    streams = [first, engine.submit(job([1])), engine.submit(job([1]))]
    with pytest.raises(EngineBusyError, match="2 requests"):
        engine.submit(job([1]))
    run(engine)
    assert [text(s) for s in streams] == ["abcd"] * 3


def test_who_was_cancelled_waits_no_more():
    """Also before a turn, for which there may be no occasion: the reader of the only sequence stands still."""
    engine, _ = fake_engine(parallel=1, max_waiting=1)
    engine.submit(job([1]))
    engine.turn()
    for _ in range(3):
        engine.submit(job([2])).cancel()
    last = engine.submit(job([3]))
    with pytest.raises(EngineBusyError, match="1 requests"):
        engine.submit(job([4]))
    run(engine)
    assert text(last) == "abcd"


def test_who_gets_a_sequence_in_the_next_turn_does_not_wait():
    engine, _ = fake_engine(parallel=3, max_waiting=1)
    streams = [engine.submit(job([i])) for i in range(4)]
    with pytest.raises(EngineBusyError):
        engine.submit(job([5]))
    streams[0].cancel()
    streams.append(engine.submit(job([6])))
    run(engine)
    assert [text(s) for s in streams[1:]] == ["abcd"] * 4


def test_a_known_beginning_is_not_computed_again():
    engine, context = fake_engine(parallel=2)
    engine.submit(job([1, 2, 3, 4, 5]))
    run(engine)
    other = engine.submit(job([9, 9]))
    run(engine)
    again = engine.submit(job([1, 2, 3, 4, 7]))
    before = len(context.batches)
    run(engine)
    assert events(again)[-1].n_reused == 4
    assert context.sizes()[before] == {0: 1}
    assert events(other)[-1].n_reused == 0


@pytest.mark.parametrize(("limits", "parked", "reused"), [
    ({}, True, 4),
    ({"most_parked": 0}, False, 4),
    ({"can_unpark": False}, True, 0),
])  # fmt: skip
def test_idle_cells_are_out_of_the_way(limits, parked, reused):
    engine, context = fake_engine(FakeContext(**limits), parallel=3)
    engine.submit(job([1, 2, 3, 4, 5]))
    run(engine)
    assert context.cells[0][:5] == [1, 2, 3, 4, 5]  # nobody is in its way yet
    engine.submit(job([9, 9]))
    run(engine)
    assert context.cells[0][:5] == ([] if parked else [1, 2, 3, 4, 5])
    again = engine.submit(job([1, 2, 3, 4, 7]))
    run(engine)
    assert events(again)[-1].n_reused == reused
    assert text(again) == "abcd"


def test_conversations_that_begin_alike_keep_their_own_sequences():
    engine, _ = fake_engine(parallel=2)
    talks = [[1, 2, 3, 10 + who, 20 + who, 30 + who] for who in range(2)]
    reused = []
    for turn in range(3):
        for talk in talks:
            stream = engine.submit(job(talk))
            run(engine)
            reused.append(events(stream)[-1].n_reused)
            talk += [100, 101, 102, 103, 50 + turn]  # what was said, and the next question
    assert reused == [0, 0, 9, 9, 14, 14]  # the last token that was said was never read


def test_who_went_away_was_the_last_to_use_its_sequence():
    engine, context = fake_engine(parallel=2, clock=iter(range(1000)).__next__)
    early, late = engine.submit(job([1, 2])), engine.submit(job([5, 6], max_tokens=None))
    while len(events(early)) < 5:  # four tokens, and the end
        engine.turn()
    late.cancel()
    run(engine)
    engine.submit(job([9]))
    run(engine)
    assert [cells[:1] for cells in context.cells.values()] == [[9], []]  # parked, not overwritten


def test_the_same_prompt_again_computes_its_last_token():
    engine, context = fake_engine(parallel=1)
    for expected in (0, 2):
        stream = engine.submit(job([1, 2, 3]))
        run(engine)
        assert events(stream)[-1].n_reused == expected
        assert text(stream) == "abcd"
    assert context.cells[0][:3] == [1, 2, 3]


def test_a_state_that_cannot_be_cut_is_made_anew():
    engine, _ = fake_engine(FakeContext(can_cut=False), parallel=1)
    for _ in range(2):
        stream = engine.submit(job([1, 2, 3]))
        run(engine)
        assert events(stream)[-1].n_reused == 0


@pytest.mark.parametrize(
    ("wishes", "said", "reason"),
    [
        ({"max_tokens": 50, "stop": ("cd",)}, "ab", "stop"),
        ({"max_tokens": None}, "abcdefghijklmnopqrstuvwxyz", "stop"),  # the end token itself says nothing
        ({"max_tokens": 3}, "abc", "length"),
        ({"tokens": (3,) * 95, "max_tokens": None}, "abcdef", "length"),  # 100 cells, and the last token needs none
    ],
)
def test_how_a_generation_ends(wishes, said, reason):
    engine, context = fake_engine()
    got = read(engine, engine.submit(Job(**{"tokens": (1,), **wishes})))
    assert "".join(event.text for event in got[:-1]) == said
    assert got[-1].reason == reason
    assert got[-1].n_generated == len(got) - 1
    assert max(map(len, context.cells.values())) <= context.n_ctx


def test_a_slow_reader_waits_alone():
    engine, _ = fake_engine(parallel=2, stream_size=3)
    slow = engine.submit(job([1], max_tokens=20))
    fast = engine.submit(job([2], max_tokens=20))
    taken: list[Any] = []
    for _ in range(60):
        engine.turn()
        while fast._events:
            taken.append(fast._events.popleft())
    assert isinstance(taken[-1], Finished)
    assert len(slow._events) == 3
    rest = read(engine, slow)
    assert [e.index for e in rest[:-1]] == list(range(20))


def read(engine: Engine, stream: Stream) -> list[Any]:
    """Read to the end, turning the engine whenever there is nothing to read."""
    got: list[Any] = []
    while not got or not isinstance(got[-1], (Finished, Failed)):
        while not stream._events:
            assert engine.turn()
        got.append(stream._events.popleft())
    return got


def test_who_goes_away_is_gone_within_a_turn():
    engine, _ = fake_engine(parallel=1)
    gone = engine.submit(job([1], max_tokens=50))
    waits = engine.submit(job([2]))
    never = engine.submit(job([3]))
    engine.turn()
    gone.cancel()
    never.cancel()
    engine.turn()
    assert engine.n_waiting == 0
    run(engine)
    assert text(waits) == "abcd"
    assert text(never) == ""


def test_an_error_ends_its_batch_only():
    engine, context = fake_engine(parallel=1)
    bad, good = engine.submit(job([1, 2])), engine.submit(job([3]))
    context.fail_next = DecodeError("no")
    run(engine)
    assert isinstance(events(bad)[-1], Failed)
    assert isinstance(events(bad)[-1].error, DecodeError)
    assert text(good) == "abcd"


def test_what_cannot_be_is_said_at_once():
    engine, _ = fake_engine()
    with pytest.raises(EmptyPromptError):
        engine.submit(job([]))
    with pytest.raises(PromptTooLongError, match="101 tokens"):
        engine.submit(job([1] * 101))


def test_recurrent_models_take_turns():
    engine, context = fake_engine(FakeContext(one_at_a_time=True), parallel=2)
    streams = [engine.submit(job([i + 1])) for i in range(2)]
    run(engine)
    assert [text(s) for s in streams] == ["abcd"] * 2
    assert all(len(sizes) == 1 for sizes in context.sizes())


def test_an_encoders_text_is_never_cut():
    engine, context = fake_engine(FakeContext(encoder=True), parallel=3)
    for n in (5, 4, 3):
        engine.submit(job(range(n), max_tokens=0))
    run(engine)
    assert sorted(sum(s.values()) for s in context.sizes()) == [4, 8]


def test_closing_ends_everything():
    engine, _ = fake_engine(parallel=1)
    engine.start()
    streams = [engine.submit(job([1], max_tokens=None, stop=("zzz",))) for _ in range(3)]
    engine.close()
    for stream in streams:
        last = list(stream)[-1]
        assert isinstance(last, (Failed, Finished))
    with pytest.raises(ModelClosedError):
        engine.submit(job([1]))


# -- a real context -------------------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Iterator[tuple[Engine, Context]]:
    weights = open_weights("llama")
    params = ContextParams(n_ctx=128, n_cells=8 * 128, n_seq_max=8, n_ubatch=32, n_threads=1, precision="exact")
    context = Context(weights, params)

    def choose(sampling: Sampling, prompt: Sequence[int]) -> Chooser:
        return Chooser(Sampler(sampling, weights.vocab, context.n_ctx, prompt), context)

    engine = Engine(context, weights.vocab, choose, parallel=8)
    engine.start()
    yield engine, context
    engine.close()
    context.close()
    weights.close()


def captures(i: int) -> Capture:
    return (Capture.layers([i % 3]), Capture.all_layers(final=True), Capture.names(["ffn_out-*", "Qcur-1"]))[i % 3]


def test_eight_jobs_each_get_their_own_rows(real, shared):
    """Different prompts, captures and compressions at once: against each prompt run alone."""
    engine, _ = real
    jobs = []
    for i in range(8):
        prompt = random_tokens(5 + 11 * i, seed=i)
        kind = (None, "float16", "int8", None)[i % 4]
        jobs.append(Job(tuple(prompt), max_tokens=12, capture=captures(i), prompt_rows=i % 2 == 0, compression=kind))
    streams = [engine.submit(j) for j in jobs]
    for j, stream in zip(jobs, streams, strict=True):
        got = list(stream)
        assert isinstance(got[-1], Finished), got[-1]
        tokens = [e for e in got if isinstance(e, Token)]
        read_tokens = [*j.tokens, *(t.token_id for t in tokens[:-1])]
        alone = shared("llama").forward(read_tokens, j.capture)
        bound = {None: 1e-5, "float16": 1e-3, "int8": 1e-2}[j.compression]
        seen = []
        for event in got[:-1]:
            states = event.states if j.compression is None else event.states.decompress()
            seen += states.positions
            assert states.tokens == [read_tokens[p] for p in states.positions]
            assert set(states) == set(alone)
            for key in states:
                rows = states[key] if isinstance(event, PromptRows) else states[key][None]
                assert relative_error(rows, alone[key][states.positions]) <= bound
        first = 0 if j.prompt_rows else len(j.tokens) - 1
        assert seen == list(range(first, len(read_tokens)))


def test_the_same_text_as_alone(real, shared):
    engine, _ = real
    prompts = [random_tokens(9, seed=i) for i in range(6)]
    streams = [engine.submit(Job(tuple(p), max_tokens=10)) for p in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        expected = [step.token_id for step in shared("llama").generate(prompt, max_tokens=10)]
        assert [e.token_id for e in stream if isinstance(e, Token)] == expected
        assert EOS not in expected[:-1]


def test_everything_gets_batches_for_itself(real, shared):
    """Some nodes have no rows: in a shared batch they would hold other people's numbers."""
    engine, _ = real
    prompt = random_tokens(6)
    capture = Capture.names(["Vcur-0 (reshaped) (reshaped)", "l_out-0"])
    beside = [engine.submit(Job(tuple(random_tokens(20, seed=i)), max_tokens=20)) for i in range(3)]
    mine = list(engine.submit(Job(tuple(prompt), max_tokens=3, capture=capture)))
    for stream in beside:
        assert isinstance(list(stream)[-1], Finished)
    tokens = [e for e in mine if isinstance(e, Token)]
    for event, step in zip(tokens, shared("llama").generate(prompt, capture=capture, max_tokens=3), strict=True):
        ours, alone = (s.tensor("Vcur-0 (reshaped) (reshaped)") for s in (event.states, step.states))
        assert relative_error(ours, alone) <= 1e-5


def test_attention_needs_a_context_of_one_sequence(real):
    engine, _ = real
    with pytest.raises(CaptureUnsupportedError, match="one sequence"):
        engine.submit(Job((1, 2), capture=Capture.names(["kq_soft_max-0"])))


def test_a_prompt_is_only_read(real, shared):
    engine, _ = real
    prompt = random_tokens(40)
    capture = Capture.all_layers(embedding=True)
    got = list(engine.submit(Job(tuple(prompt), max_tokens=0, capture=capture, prompt_rows=True)))
    assert [len(e.states.tokens) for e in got[:-1]] == [32, 8]
    alone = shared("llama").forward(prompt, capture)
    for key in alone:
        assert relative_error(np.concatenate([e.states[key] for e in got[:-1]]), alone[key]) <= 1e-5


def test_leaving_the_loop_frees_the_sequence(real):
    engine, _ = real
    for _ in range(20):
        for event in engine.submit(Job((1, 2, 3), max_tokens=None)):
            assert isinstance(event, Token)
            break
    assert isinstance(list(engine.submit(Job((1, 2), max_tokens=2)))[-1], Finished)


def test_a_jobs_own_dead_end_is_its_own():
    """A grammar that allows no token ends its job; the one beside it does not notice."""

    class DeadEnd(Counter):
        def sample(self, index: int) -> Choice:
            raise GrammarError("nothing fits")

    context = FakeContext()
    makers = iter([DeadEnd, Counter])
    engine = Engine(context, Letters(), lambda sampling, prompt: next(makers)(), parallel=2)
    bad, good = engine.submit(job([1])), engine.submit(job([2]))
    run(engine)
    assert isinstance(events(bad)[-1].error, GrammarError)
    assert text(good) == "abcd"


def test_rows_of_a_known_prompt_are_computed_anew(real, shared):
    """A beginning that is in the cache yields no rows: who wants the prompt's rows must not be given it."""
    engine, _ = real
    prompt, capture = random_tokens(20), Capture.all_layers()
    alone = shared("llama").forward(prompt, capture)
    for _ in range(3):
        got = list(engine.submit(Job(tuple(prompt), max_tokens=2, capture=capture, prompt_rows=True)))
        assert got[-1].n_reused == 0
        states = [event.states for event in got if isinstance(event, PromptRows)]
        assert [p for s in states for p in s.positions] == list(range(19))
        assert relative_error(np.concatenate([s["l_out-1"] for s in states]), alone["l_out-1"][:-1]) <= 1e-5
    again = list(engine.submit(Job(tuple(prompt), max_tokens=2, capture=capture)))
    assert again[-1].n_reused == 19
    assert relative_error(again[0].states["l_out-1"], alone["l_out-1"][-1]) <= 1e-5


def test_a_conversation_goes_on_after_others(real, shared):
    """Its cells were taken out of the cache and put back: the rows that follow are those of the whole text."""
    engine, _ = real
    first, capture = random_tokens(21, seed=5), Capture.all_layers(final=True)
    said = [e.token_id for e in engine.submit(Job(tuple(first), max_tokens=6)) if isinstance(e, Token)]
    for seed in (6, 7):
        assert isinstance(list(engine.submit(Job(tuple(random_tokens(30, seed=seed)), max_tokens=4)))[-1], Finished)
    more = [*first, *said, 3, 4]
    got = list(engine.submit(Job(tuple(more), max_tokens=5, capture=capture)))
    assert got[-1].n_reused == len(first) + 5  # the sixth token was never read
    tokens = [e for e in got if isinstance(e, Token)]
    alone = shared("llama").forward([*more, *(t.token_id for t in tokens[:-1])], capture)
    for token in tokens:
        for key in alone:
            assert relative_error(token.states[key], alone[key][token.position]) <= 1e-5
