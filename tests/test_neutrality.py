"""Looking changes nothing: logits, cache and later tokens are the same bits, whatever is captured."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
from oracle import DECODERS, Array, logits_of, open_model, plain, random_tokens

from loom_gguf import Capture, Model
from loom_gguf.catalog import Node
from loom_gguf.context import Batch, Context, ContextParams

PROMPT = random_tokens(7)
HIDDEN = Capture.all_layers(embedding=True, final=True)

# (tokens, whether they are watched). Passes of one length after another share a graph: what was done to it for one
# must be undone for the next. The first pass of a length makes the graph, watched or not.
PASSES = [
    (PROMPT, True),
    (random_tokens(7, seed=1), False),
    ([42], True),
    ([43], False),
    ([44], True),
    ([45], False),
    (random_tokens(7, seed=2), False),
    (random_tokens(7, seed=3), True),
]


def passes(model: Model, capture: Capture | None, one_token: Capture | None = None) -> list[Array]:
    """Logits of every token of the passes, while `capture` watches some; `one_token`: for passes of one token."""
    ctx: Context = model._context
    sequence, start = ctx.open_sequence(), 0
    try:
        logits = []
        for tokens, watched in PASSES:
            batch = Batch.of_one(np.array(tokens), start, sequence)
            batch.outputs[:] = True
            start += len(tokens)
            wanted = one_token if one_token and len(tokens) == 1 else capture
            if watched and wanted:
                ctx.decode_capturing(batch, wanted, np.arange(len(tokens)))
            else:
                ctx.decode(batch)
            logits.append(np.stack([logits_of(ctx.handle, i, model.n_vocab) for i in range(len(tokens))]))
        return logits
    finally:
        ctx.close_sequence(sequence)


def same(a: list[Array], b: list[Array]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def named(node: Node) -> Capture:
    return Capture.names([f"{node.name}#{node.occurrence}"])


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", DECODERS)
def test_any_single_node(name, precision, shared):
    """Each in turn, views of the cache included, in prompts and in passes of one token."""
    model: Model = shared(name, precision=precision)
    untapped = passes(model, None)
    catalog = model._context.catalog
    several = [node for node in catalog.several.nodes if node.computed]
    one = {(node.name, node.occurrence) for node in catalog.topology(1).nodes if node.computed}
    assert len(several) > 80
    for node in several:
        alone = named(node) if (node.name, node.occurrence) in one else HIDDEN
        assert same(passes(model, named(node), alone), untapped), node.key
    assert same(passes(model, None), untapped)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("capture", [HIDDEN, Capture.everything()], ids=["hidden", "everything"])
def test_many_nodes(name, precision, capture, shared):
    model: Model = shared(name, precision=precision)
    assert same(passes(model, capture), passes(model, None))


@pytest.mark.parametrize("name", DECODERS)
def test_without_taps_logits_are_those_of_plain_llama_cpp(name, shared):
    """So that "untapped" above means llama.cpp as it is, and not a callback that is wrong both times."""
    wanted = []
    with plain(name) as reference:
        for tokens, _ in PASSES:
            reference.decode(tokens)
            wanted.append(np.stack([reference.logits(i) for i in range(len(tokens))]))
    assert same(passes(shared(name), None), wanted)
    assert same(passes(shared(name), Capture.everything()), wanted)


def test_changing_the_capture_from_decode_to_decode(shared):
    """Decodes of one length share a graph: what one leaves in it must not reach the next."""
    model: Model = shared("llama", n_ubatch=16)
    ctx: Context = model._context
    captures = [
        Capture.all_layers(),
        None,
        Capture.layers([1]),
        Capture.everything(),
        Capture.names(["Qcur-*", "kqv_out-1"]),
        None,
        Capture.layers([0, -1], final=True),
        Capture.names(["cache_k_l0 (view)", "ffn_out-2"]),
    ]
    lengths = [1, 1, 1, 5, 5, 1, 8, 8, 1, 1]
    tokens = random_tokens(200, seed=3)

    def run(tapped: bool) -> list[Array]:
        sequence, at, logits = ctx.open_sequence(), 0, []
        try:
            for _, length, capture in zip(range(50), cycle(lengths), cycle(captures), strict=False):
                batch = Batch.of_one(np.array(tokens[at : at + length]), at, sequence)
                batch.outputs[:] = True
                at += length
                if tapped and capture:
                    ctx.decode_capturing(batch, capture, np.arange(length))
                else:
                    ctx.decode(batch)
                logits.append(np.stack([logits_of(ctx.handle, i, model.n_vocab) for i in range(length)]))
        finally:
            ctx.close_sequence(sequence)
        return logits

    assert same(run(True), run(False))


def test_rows_do_not_depend_on_what_was_captured_before(shared):
    """The same pass again and again, with other captures between, gives the same bits each time."""
    model: Model = shared("llama")
    wanted = model.forward(PROMPT, Capture.everything())
    for capture in (HIDDEN, Capture.layers([1]), Capture.names(["Qcur-0#0", "Qcur-0#1", "Qcur-0"])):
        for _ in range(3):
            states = model.forward(PROMPT, capture)
            for key in states:
                assert np.array_equal(states[key], wanted[key]), key
    again = model.forward(PROMPT, Capture.everything())
    assert all(np.array_equal(again[key], rows) for key, rows in wanted.items())


def test_rows_do_not_depend_on_what_is_captured_with_them(shared):
    """A node captured alone has the values that it has among all others: none overwrites another's memory."""
    for name in ("llama", "qwen2moe", "gemma2", "lfm2"):
        model: Model = shared(name)
        together = model.forward(PROMPT, Capture.everything())
        for key in together:
            assert np.array_equal(model.forward(PROMPT, Capture.names([key]))[key], together[key]), key


def test_captured_arrays_are_the_callers_own(shared):
    """Later passes must not write into rows that were handed out."""
    model: Model = shared("llama")
    states = model.forward(PROMPT, Capture.everything())
    copies = {key: rows.copy() for key, rows in states.items()}
    model.forward(PROMPT[::-1], Capture.everything())
    list(model.generate(PROMPT, capture=Capture.everything(), max_tokens=3))
    assert all(np.array_equal(states[key], rows) for key, rows in copies.items())


@pytest.mark.parametrize("name", DECODERS)
def test_stopping_early_gives_the_rows_of_the_whole_pass(name, shared):
    model: Model = shared(name)
    ctx: Context = model._context
    captures = [Capture.layers([il]) for il in range(model.n_layer)]
    captures += [Capture.layers([], embedding=True), Capture.layers([], final=True), Capture.names(["l_out-1"])]
    for capture in captures:
        rows = []
        for stop_early in (True, False):
            sequence = ctx.open_sequence()
            batch = Batch.of_one(np.array(PROMPT), 0, sequence)
            rows.append(ctx.decode_capturing(batch, capture, np.arange(len(PROMPT)), stop_early=stop_early).states())
            ctx.close_sequence(sequence)
        assert list(rows[0]) == list(rows[1])
        assert all(np.array_equal(rows[0][key], rows[1][key]) for key in rows[0])


@pytest.mark.parametrize("name", ["llama", "qwen2moe", "gemma2"])
def test_a_pass_that_stopped_early_leaves_the_graph_whole(name, shared):
    """Passes of other sequences, of the same length, run the same graph before and after."""
    model: Model = shared(name)
    ctx: Context = model._context
    # Attention weights cannot be had where two sequences share the cache.
    several = [node for node in ctx.catalog.several.nodes if node.computed and node.cell_axis is None]

    def run(captures: list[list[Capture]]) -> Array:
        mine, other, logits = ctx.open_sequence(), ctx.open_sequence(), []
        for at, between in enumerate(captures):
            for capture in between:
                batch = Batch.of_one(np.array(PROMPT), 0, other)
                ctx.decode_capturing(batch, capture, np.arange(len(PROMPT)), stop_early=True)
                ctx.close_sequence(other)
                assert ctx.open_sequence() == other
            batch = Batch.of_one(np.array(PROMPT), at * len(PROMPT), mine)
            batch.outputs[:] = True
            ctx.decode(batch)
            logits += [logits_of(ctx.handle, i, model.n_vocab) for i in range(len(PROMPT))]
        ctx.close_sequence(mine)
        ctx.close_sequence(other)
        return np.stack(logits)

    untouched = run([[], []])
    for node in several:
        # The second capture ends before the first one's node is asked about again.
        for between in ([named(node)], [named(node), Capture.layers([], embedding=True)]):
            assert np.array_equal(run([[], between]), untouched), node.key


@pytest.mark.parametrize("name", DECODERS)
def test_rows_left_in_place_are_those_that_are_copied_at_once(name, shared):
    """Two ways of reading: after the pass from memory of ours, or by cutting the graph behind each node."""
    model: Model = shared(name)
    states = []
    for in_place in ("host", "never"):
        ctx = Context(model._weights, ContextParams(512, n_threads=1, precision="exact", in_place=in_place))
        try:
            batch = Batch.of_one(np.array(PROMPT), 0, ctx.open_sequence())
            states.append(ctx.decode_capturing(batch, Capture.everything(), np.arange(len(PROMPT))).states())
        finally:
            ctx.close()
    left, copied = states
    assert left.values_by_key.keys() == copied.values_by_key.keys()
    for key in left.values_by_key:
        assert np.array_equal(left.tensor(key), copied.tensor(key), equal_nan=True), key


@pytest.mark.parametrize("name", DECODERS)
def test_nothing_of_a_forward_is_left_for_a_generation(name):
    """A forward that stopped early leaves cells unwritten: they must not be read by what comes after."""
    prompt = random_tokens(20, seed=5)
    with open_model(name, n_ubatch=8) as fresh:
        wanted = list(fresh.generate(prompt, capture=HIDDEN, max_tokens=12))
    with open_model(name, n_ubatch=8) as model:
        for capture in (Capture.layers([0]), Capture.layers([], embedding=True), HIDDEN):
            model.forward(random_tokens(30, seed=6), capture)
        steps = list(model.generate(prompt, capture=HIDDEN, max_tokens=12))
    assert [step.token_id for step in steps] == [step.token_id for step in wanted]
    for step, other in zip(steps, wanted, strict=True):
        assert all(np.array_equal(step.states[key], other.states[key]) for key in other.states)


@pytest.mark.parametrize("name", ["llama", "gemma2", "lfm2"])
def test_a_generation_that_is_watched_says_the_same(name, shared):
    model: Model = shared(name)
    tokens = [step.token_id for step in model.generate(PROMPT, max_tokens=20)]
    for capture in (Capture.layers([-1]), HIDDEN, Capture.everything()):
        watched = model.generate(PROMPT, capture=capture, max_tokens=20)
        assert [step.token_id for step in watched] == tokens
