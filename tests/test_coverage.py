"""Every row, however a prompt is cut into batches and whatever shares its batches, against one token at a time."""

from __future__ import annotations

import random
from collections import defaultdict
from functools import cache

import numpy as np
import pytest
from oracle import DECODERS, GELU, Array, open_model, plain, random_tokens, relative_error

from loom_gguf import Capture, CaptureUnsupportedError, Model, States
from loom_gguf.context import Batch, Context

# Rows of several shapes, of blocks that compute every token and of the last one, which computes outputs only.
OTHER_NODES = [
    "attn_norm-1",
    "Qcur-0#1",
    "Kcur-1",
    "kqv_out-2",
    "attn_out-2",
    "ffn_inp-2",
    "ffn_swiglu-2",
    "result_output",
]
HIDDEN = Capture.all_layers(embedding=True, final=True)
WANTED = HIDDEN | Capture.names(OTHER_NODES)
N_WANTED = 5 + len(OTHER_NODES)
UBATCHES = (8, 16)


def lengths(n_ubatch: int) -> list[int]:
    return [1, n_ubatch - 1, n_ubatch, n_ubatch + 1, 3 * n_ubatch + 7]


def limit(name: str, precision: str = "exact") -> float:
    """How far the same token's row may be from itself in another batch."""
    if precision == "fast" or name in ("llama-q8_0", "llama-q4_0"):
        return 1e-2
    # Activations are rounded to float16, before the product or to look GELU up: a last bit may fall either way.
    return 2e-3 if name in GELU or name == "llama-f16" else 1e-5


@cache
def one_at_a_time(name: str, tokens: tuple[int, ...], capture: Capture, precision: str = "exact") -> dict[str, Array]:
    """Rows of a prompt that is decoded token by token."""
    with open_model(name, precision=precision) as model:
        ctx = model._context
        parts = [
            ctx.decode_capturing(Batch.of_one(np.array([token]), at, 0), capture, np.array([0])).states()
            for at, token in enumerate(tokens)
        ]
        return dict(States.concatenate(parts))


def check(states: States, name: str, tokens: list[int], capture: Capture, precision: str = "exact") -> None:
    """The states hold the right row of every token that they name."""
    wanted = one_at_a_time(name, tuple(tokens), capture, precision)
    assert list(states) == list(wanted)
    assert states.tokens == [tokens[at] for at in states.positions]
    for key, rows in wanted.items():
        assert relative_error(states[key], rows[states.positions]) <= limit(name, precision), key
        # Near is not enough where weights are rounded: it must be nearer to its own row than to any other.
        flat = rows.reshape(len(rows), -1)
        ours = states[key].reshape(len(states.positions), -1)
        distances = np.abs(ours[:, None] - flat[None]).max(-1)
        own = distances[np.arange(len(ours)), states.positions]
        same_token = np.array(tokens)[states.positions][:, None] == np.array(tokens)[None]
        assert (own <= np.where(same_token, np.inf, distances).min(1)).all(), key


@pytest.mark.parametrize("name", ["llama", "llama-f16", "llama-q8_0", "llama-q4_0"])
@pytest.mark.parametrize(("n_ubatch", "n_tokens"), [(u, n) for u in UBATCHES for n in lengths(u)])
def test_every_row_of_a_prompt(name, n_ubatch, n_tokens, shared):
    tokens = random_tokens(n_tokens)
    states = shared(name, n_ubatch=n_ubatch).forward(tokens, WANTED)
    assert states.positions == list(range(n_tokens))
    assert len(states) == N_WANTED
    check(states, name, tokens, WANTED)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_every_row_of_every_architecture(name, precision, shared):
    tokens = random_tokens(31)
    states = shared(name, n_ubatch=8, precision=precision).forward(tokens, HIDDEN)
    assert states.positions == list(range(31))
    check(states, name, tokens, HIDDEN, precision)


@pytest.mark.parametrize("n_ubatch", UBATCHES)
def test_rows_agree_with_what_llama_cpp_returns_itself(n_ubatch, shared):
    """Token by token through llama_cpp's API, where no loom_gguf code takes part."""
    tokens = random_tokens(3 * n_ubatch + 7)
    states = shared("llama", n_ubatch=n_ubatch).forward(tokens, WANTED)
    with plain("llama", embeddings=True) as final, plain("llama") as logits:
        for at, token in enumerate(tokens):
            final.decode([token])
            logits.decode([token])
            assert relative_error(states.final[at], final.final(0)) <= 1e-5
            assert relative_error(states["result_output"][at], logits.logits(0)) <= 1e-5


def test_a_prompt_over_several_hundred_cells(shared):
    """The graph reads the cache in steps of 256 cells."""
    tokens = random_tokens(300)
    check(shared("llama", n_ubatch=16).forward(tokens, WANTED), "llama", tokens, WANTED)


@pytest.mark.parametrize("name", ["llama", "llama-q4_0"])
@pytest.mark.parametrize(("n_ubatch", "n_tokens"), [(u, n) for u in UBATCHES for n in lengths(u)])
def test_every_row_of_a_generation(name, n_ubatch, n_tokens, shared):
    """The prompt's rows come with the first step, each later row with its own step."""
    tokens, model = random_tokens(n_tokens), shared(name, n_ubatch=n_ubatch)
    steps = list(model.generate(tokens, capture=WANTED, max_tokens=4, prompt_states=True))
    read = tokens + [step.token_id for step in steps[:-1]]
    before = steps[0].prompt_states
    if n_tokens == 1:
        assert before is None
    else:
        assert before.positions == list(range(n_tokens - 1))
        check(before, name, read, WANTED)
    assert all(step.prompt_states is None for step in steps[1:])
    for step in steps:
        assert step.states.positions == [step.position]
        assert step.states["l_out-0"].shape == (model.n_embd,)
        check(States.concatenate([step.states]), name, read, WANTED)


@pytest.mark.parametrize("name", ["llama", "llama-q4_0", "gemma2", "mamba"])
def test_the_same_cuts_give_the_same_bits(name, shared):
    tokens, model = random_tokens(31), shared(name, n_ubatch=8)
    first, again = model.forward(tokens, HIDDEN), model.forward(tokens, HIDDEN)
    steps = list(model.generate(tokens, capture=HIDDEN, max_tokens=1, prompt_states=True))
    generated = States.concatenate([steps[0].prompt_states, States.concatenate([steps[0].states])])
    for key, rows in first.items():
        assert np.array_equal(again[key], rows)
        assert np.array_equal(generated[key], rows)


@pytest.mark.parametrize("n_tokens", lengths(8))
def test_keep_last(n_tokens, shared):
    tokens, model = random_tokens(n_tokens), shared("llama", n_ubatch=8)
    last = model.forward(tokens, WANTED, keep="last")
    assert (last.tokens, last.positions) == (tokens[-1:], [n_tokens - 1])
    every = model.forward(tokens, WANTED)
    for key, rows in every.items():
        # The last block computes one row alone here, several there.
        assert relative_error(last[key], rows[-1:]) <= 1e-5


def schedule(prompts: list[list[int]], n_ubatch: int, rng: random.Random) -> list[Batch]:
    """Ragged batches of all prompts at once, in any order; each prompt's own tokens come one after the other."""
    at, batches = [0] * len(prompts), []
    while any(a < len(p) for a, p in zip(at, prompts, strict=True)):
        taken = []
        for _ in range(rng.randint(1, n_ubatch)):
            unfinished = [s for s, p in enumerate(prompts) if at[s] < len(p)]
            if not unfinished:
                break
            s = rng.choice(unfinished)
            taken.append((prompts[s][at[s]], at[s], s))
            at[s] += 1
        columns = [np.array(column, np.int32) for column in zip(*taken, strict=True)]
        outputs = np.array([rng.random() < 0.3 for _ in taken])
        batches.append(Batch(*columns, outputs))
    return batches


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_ubatch", UBATCHES)
@pytest.mark.parametrize("name", ["llama", "llama-q8_0", "llama-q4_0", "gemma2"])
def test_five_interleaved_sequences(name, n_ubatch, seed, shared):
    rng = random.Random(seed)
    capture = HIDDEN if name == "gemma2" else WANTED
    prompts = [random_tokens(n, seed=10 + n) for n in (5, 23, 1, 17, 9)]
    ctx: Context = shared(name, n_ubatch=n_ubatch)._context
    slots = [ctx.open_sequence() for _ in prompts]
    assert len(set(slots)) == 5
    try:
        wanted_positions, parts = defaultdict(list), defaultdict(list)
        for batch in schedule(prompts, n_ubatch, rng):
            own = np.array(slots, np.int32)[batch.sequences]
            batch = Batch(batch.tokens, batch.positions, own, batch.outputs)  # noqa: PLW2901
            keep = np.flatnonzero([rng.random() < 0.7 for _ in batch.tokens])
            rows = ctx.decode_capturing(batch, capture, keep)
            assert rows.kept.tolist() == keep.tolist()
            for s, slot in enumerate(slots):
                wanted_positions[s] += batch.positions[keep][own[keep] == slot].tolist()
                states = rows.of(slot).states()
                if states.tokens:
                    assert states.sequence == slot
                    parts[s].append(states)
    finally:
        for slot in slots:
            ctx.close_sequence(slot)
    for s, prompt in enumerate(prompts):
        if parts[s]:
            states = States.concatenate(parts[s])
            assert states.positions == wanted_positions[s]
            check(states, name, prompt, capture)


def test_kept_rows_come_in_the_order_asked_for(shared):
    """Also backwards, and where none of them was an output of the batch."""
    tokens = random_tokens(8)
    ctx = shared("llama", n_ubatch=8)._context
    sequence = ctx.open_sequence()
    try:
        batch = Batch.of_one(np.array(tokens), 0, sequence)
        batch.outputs[3] = True
        states = ctx.decode_capturing(batch, WANTED, np.array([6, 1, 4])).states()
    finally:
        ctx.close_sequence(sequence)
    assert states.positions == [6, 1, 4]
    check(states, "llama", tokens, WANTED)


def test_nothing_kept_gives_no_rows(shared):
    ctx = shared("llama", n_ubatch=8)._context
    sequence = ctx.open_sequence()
    try:
        batch = Batch.of_one(np.array(random_tokens(5)), 0, sequence)
        states = ctx.decode_capturing(batch, WANTED, np.array([], np.int32)).states()
    finally:
        ctx.close_sequence(sequence)
    assert states.tokens == []
    assert all(len(states[key]) == 0 for key in states)


def test_threads_do_not_change_rows(shared):
    tokens = random_tokens(31)
    with open_model("llama", n_threads=2) as model:
        two = model.forward(tokens, WANTED)
    one: Model = shared("llama")
    for key, rows in one.forward(tokens, WANTED).items():
        assert relative_error(two[key], rows) <= 1e-5


ATTENTION = Capture.names(["kq_soft_max-*"])


def test_attention_weights_of_a_prompt_in_pieces(shared):
    """A row has one weight for each position; those that a token cannot see are zero."""
    for n in (5, 31, 300):
        tokens = random_tokens(n)
        whole, pieces = (shared("llama", n_ubatch=u).forward(tokens, ATTENTION) for u in (512, 16))
        for key, rows in whole.items():
            assert rows.shape == pieces[key].shape == (n, 4, n)
            assert np.allclose(rows.sum(-1), 1, atol=1e-5)
            assert not rows.transpose(1, 0, 2)[:, ~np.tri(n, dtype=bool)].any()
            assert relative_error(pieces[key], rows) <= 1e-5


def test_attention_weights_after_others_used_the_cache():
    """Cells that other sequences left are filled again: weights must still stand at their positions."""
    with open_model("llama", n_ubatch=16) as model:
        tokens = random_tokens(40, seed=9)
        wanted = model.forward(tokens, ATTENTION)
        for leave_first in (0, 1):
            pair = [model.generate(random_tokens(n, seed=n), max_tokens=60) for n in (11, 23)]
            for turn in range(30):
                next(pair[turn % 2])
            pair[leave_first].close()
            for _ in range(5):
                next(pair[1 - leave_first])
            with pytest.raises(CaptureUnsupportedError, match="attention"):
                model.forward(tokens, ATTENTION)
            pair[1 - leave_first].close()
            again = model.forward(tokens, ATTENTION)
            assert all(np.array_equal(again[key], rows) for key, rows in wanted.items())


def test_attention_weights_of_a_generation(shared):
    model: Model = shared("llama", n_ubatch=16)
    prompt = random_tokens(21)
    steps = list(model.generate(prompt, capture=ATTENTION, max_tokens=6, prompt_states=True))
    read = prompt + [step.token_id for step in steps[:-1]]
    wanted = model.forward(read, ATTENTION)
    for key, rows in wanted.items():
        assert relative_error(steps[0].prompt_states[key][..., :20], rows[:20, :, :20]) <= 1e-5
        for step in steps:
            n = step.position + 1
            assert step.states[key].shape == (4, n)
            assert relative_error(step.states[key], rows[step.position, :, :n]) <= 1e-5
