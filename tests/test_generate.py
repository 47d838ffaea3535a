"""Generation: which token, which text, which rows, and when it ends."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DECODERS, EOS, open_model, plain, random_tokens, relative_error

from loom_gguf import Capture, ContextFullError, Model, ModelClosedError, Step
from loom_gguf.text import TextStream

HIDDEN = Capture.all_layers(embedding=True, final=True)
PROMPT = random_tokens(11)


def ids(steps: list[Step]) -> list[int]:
    return [step.token_id for step in steps]


def text(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max())
    return e / e.sum()


# -- which token ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_is_llama_cpps_own_argmax(name, precision, shared):
    steps = list(shared(name, precision=precision).generate(PROMPT, max_tokens=24))
    with plain(name, exact=precision == "exact") as reference:
        wanted = list(islice(reference.greedy(PROMPT), len(steps)))
    assert ids(steps) == wanted
    assert len(steps) == 24 or steps[-1].token_id == EOS


def test_a_seed_repeats_and_another_one_does_not(llama):
    runs = {seed: ids(list(llama.generate(PROMPT, temperature=1.0, seed=seed, max_tokens=20))) for seed in range(5)}
    assert ids(list(llama.generate(PROMPT, temperature=1.0, seed=3, max_tokens=20))) == runs[3]
    assert len({tuple(run) for run in runs.values()}) == 5


def test_no_seed_is_a_fresh_one_each_time(llama):
    runs = {tuple(ids(list(llama.generate(PROMPT, temperature=1.5, seed=None, max_tokens=20)))) for _ in range(5)}
    assert len(runs) == 5


def test_top_k_of_1_is_greedy(llama):
    greedy = ids(list(llama.generate(PROMPT, max_tokens=20)))
    assert ids(list(llama.generate(PROMPT, temperature=2.0, top_k=1, seed=5, max_tokens=20))) == greedy


def first_tokens(model: Model, n: int, **sampling: float) -> Counter[int]:
    """The first token of many generations."""
    return Counter(next(model.generate([5], max_tokens=1, seed=seed, **sampling)).token_id for seed in range(n))


def test_samples_follow_the_distribution(llama):
    """Frequencies over many seeds, against the softmax of llama.cpp's own logits."""
    with plain("llama") as reference:
        reference.decode([5])
        logits = reference.logits(0)
    n = 2000
    for temperature in (0.5, 1.0):
        counts = first_tokens(llama, n, temperature=temperature, top_k=0, top_p=1.0)
        wanted = softmax(logits / temperature)
        # The 40 likeliest tokens; five standard deviations of a binomial, and one count for the unlikely.
        for token in np.argsort(-wanted)[:40]:
            assert abs(counts[int(token)] - n * wanted[token]) <= 5 * np.sqrt(n * wanted[token]) + 1


def test_each_filter_keeps_the_tokens_that_it_names(llama):
    with plain("llama") as reference:
        reference.decode([5])
        wanted = softmax(reference.logits(0))
    order = np.argsort(-wanted)
    everything = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    nucleus = int(np.searchsorted(np.cumsum(wanted[order]), 0.3)) + 1
    likely = int((wanted >= 0.5 * wanted.max()).sum())
    assert 1 < nucleus < 100
    assert 1 < likely < 100
    for change, kept in (({"top_k": 3}, 3), ({"top_p": 0.3}, nucleus), ({"min_p": 0.5}, likely)):
        seen = set(first_tokens(llama, 500, **(everything | change)))
        assert seen <= set(order[:kept].tolist()), change
        assert len(seen) > min(kept, 20) // 2, change
    assert len(first_tokens(llama, 500, **everything)) > 100


# -- which rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen2moe", "olmo2", "mamba", "lfm2"])
def test_the_row_of_a_step_is_that_of_the_token_it_read(name, shared):
    model: Model = shared(name)
    steps = list(model.generate(PROMPT, capture=HIDDEN, max_tokens=10))
    read = PROMPT + ids(steps)
    states = model.forward(read, HIDDEN)
    for index, step in enumerate(steps):
        assert (step.index, step.position) == (index, len(PROMPT) - 1 + index)
        assert step.states.positions == [step.position]
        assert step.states.tokens == [read[step.position]]
        for key, rows in states.items():
            assert step.states[key].shape == rows.shape[1:]
            assert relative_error(step.states[key], rows[step.position]) <= 1e-5


def test_the_row_of_a_step_is_that_whose_logits_gave_its_token(shared):
    for name in DECODERS:
        capture = Capture.names(["result_output"])
        for step in shared(name).generate(PROMPT, capture=capture, max_tokens=12):
            assert int(step.states["result_output"].argmax()) == step.token_id


def test_without_a_capture_there_are_no_states(llama):
    assert all(step.states is None for step in llama.generate(PROMPT, max_tokens=3))
    assert all(step.states is None for step in llama.generate(PROMPT, capture=Capture(), max_tokens=3))


# -- which text -------------------------------------------------------------------------------------------------


def test_texts_together_are_the_detokenized_tokens(shared):
    """Random weights emit random bytes: halves of characters, and bytes that are never UTF-8."""
    broken = 0
    for name in DECODERS:
        model: Model = shared(name)
        for seed in range(6):
            steps = list(model.generate(PROMPT, temperature=1.2, seed=seed, max_tokens=40))
            tokens = [t for t in ids(steps) if t < 317]  # control tokens add no text
            assert text(steps) == model.detokenize(tokens)
            broken += text(steps).count("\ufffd")
    assert broken > 50


def test_a_model_without_a_vocabulary_generates_tokens(shared):
    wanted = ids(list(shared("llama").generate(PROMPT, max_tokens=8)))
    steps = list(shared("llama-no-vocab").generate(PROMPT, max_tokens=8))
    assert ids(steps) == wanted
    assert text(steps) == ""


PIECES = st.lists(
    st.one_of(st.binary(max_size=4), st.text(max_size=6).map(lambda s: s.encode("utf-8", "replace"))), max_size=12
)
STOPS = st.lists(st.text(st.sampled_from("abé\ufffd"), min_size=1, max_size=3), max_size=3)


@settings(max_examples=400, deadline=None)
@given(PIECES, STOPS)
def test_cuts_between_pieces_never_show(pieces, stop):
    """Whatever the pieces, the text is that of all their bytes, up to the stop string that is complete first."""
    check_stream(pieces, stop)


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from("abé€😀"), max_size=30), st.data(), STOPS)
def test_characters_and_stops_may_be_cut_anywhere(whole, data, stop):
    encoded = whole.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=10)))
    check_stream([encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)], stop)


def check_stream(pieces: list[bytes], stop: list[str]) -> None:
    stream, shown = TextStream(stop), ""
    for piece in pieces:
        shown += stream.feed(piece)
        if stream.stopped:
            break
    else:
        shown += stream.finish()
    whole = b"".join(pieces).decode(errors="replace")
    found = [(at + len(s), at) for s in stop if (at := whole.find(s)) >= 0]  # the first to be complete counts
    assert shown == whole[: min(found)[1] if found else None]
    assert stream.stopped == bool(found)


def test_of_two_stops_the_first_to_be_complete_counts_however_the_text_is_cut():
    for pieces in ([b"bab"], [b"b", b"a", b"b"], [b"ba", b"b"]):
        check_stream(pieces, ["a", "bab"])
    for pieces in ([b"xab"], [b"x", b"a", b"b"]):
        check_stream(pieces, ["b", "ab"])


def test_text_comes_as_soon_as_it_is_certain():
    stream = TextStream(["END"])
    assert stream.feed(b"ab") == "ab"
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.feed("é".encode()[1:] + b"E") == "é"
    assert stream.feed(b"N") == ""
    assert stream.feed(b"E") == "EN"
    assert stream.finish() == "E"


# -- when it ends -----------------------------------------------------------------------------------------------


def generated_text(model: Model, **how: object) -> tuple[list[Step], str]:
    steps = list(model.generate(PROMPT, max_tokens=40, temperature=1.0, seed=1, **how))
    return steps, text(steps)


def test_stop_strings_that_span_tokens(llama):
    steps, whole = generated_text(llama)
    assert len(whole) > 30
    # Any three characters of the text were made by two or more tokens; so are some made of broken ones.
    for at in range(2, len(whole) - 3, 4):
        stop = whole[at : at + 3]
        stopped, shown = generated_text(llama, stop=[stop])
        assert shown == whole[: whole.index(stop)]
        assert stopped[-1].finish_reason == "stop"
        assert ids(stopped) == ids(steps)[: len(stopped)]
        assert all(step.finish_reason is None for step in stopped[:-1])


def test_the_first_of_several_stops_counts(llama):
    _, whole = generated_text(llama)
    late, early = whole[20:23], whole[10:12]
    _, shown = generated_text(llama, stop=[late, early, "never in it"])
    assert shown == whole[: min(whole.index(late), whole.index(early))]
    assert generated_text(llama, stop=("never in it",))[1] == whole


def test_stop_at_the_very_first_token(llama):
    steps, whole = generated_text(llama)
    first = next(step for step in steps if step.text)
    stopped, shown = generated_text(llama, stop=[first.text[0]])
    assert shown == ""
    assert len(stopped) == first.index + 1
    assert stopped[-1].finish_reason == "stop"
    assert whole.startswith(first.text)


def test_the_token_that_ends_a_generation_is_a_step(shared):
    """With its row, and no text of its own."""
    model: Model = shared("llama")
    ended = 0
    for seed in range(60):
        steps = list(
            model.generate(PROMPT, capture=HIDDEN, temperature=1.5, top_k=0, top_p=1, seed=seed, max_tokens=30)
        )
        for step in steps[:-1]:
            assert step.token_id != EOS
            assert step.finish_reason is None
        assert (steps[-1].finish_reason == "stop") == (steps[-1].token_id == EOS)
        if steps[-1].token_id == EOS:
            ended += 1
            assert steps[-1].states["l_out-0"].shape == (model.n_embd,)
            assert text(steps) == model.detokenize([t for t in ids(steps) if t < 317])
    assert ended > 3


@pytest.mark.parametrize("n", [1, 2, 7])
def test_max_tokens(n, llama):
    steps = list(llama.generate(PROMPT, max_tokens=n))
    assert len(steps) == n
    assert [step.finish_reason for step in steps] == [None] * (n - 1) + ["length"]


@pytest.mark.parametrize("n_prompt", [250, 255, 256])
def test_the_end_of_the_context(n_prompt):
    """The last position may be read, and one token more is produced from it."""
    with open_model("llama", n_ctx=256, n_ubatch=64) as model:
        steps = list(model.generate(random_tokens(n_prompt), capture=HIDDEN, max_tokens=100))
        assert len(steps) == 257 - n_prompt
        assert steps[-1].position == 255
        assert steps[-1].finish_reason == "length"
        assert len(list(model.generate(PROMPT, max_tokens=5))) == 5  # its cells are free again


def test_leaving_half_way_frees_the_sequence(llama):
    """By close(), by break, by dropping the generator: far more of them than there are sequences."""
    for _ in range(12):
        generator = llama.generate(PROMPT, max_tokens=50)
        next(generator)
        generator.close()
        for _step in llama.generate(PROMPT, max_tokens=50):
            break
        generator = llama.generate(PROMPT, max_tokens=50)
        next(generator)
        del generator
    never_begun = [llama.generate(PROMPT, max_tokens=50) for _ in range(12)]
    assert len(list(never_begun[-1])) == 50


def test_eight_at_once_and_no_ninth():
    with open_model("llama", n_ubatch=16) as model:
        wanted = ids(list(model.generate(PROMPT, max_tokens=6)))
        running = [model.generate(PROMPT, max_tokens=6) for _ in range(8)]
        steps = [[next(generator)] for generator in running]
        ninth = model.generate(PROMPT, max_tokens=6)
        with pytest.raises(ContextFullError, match="sequence"):
            next(ninth)
        with pytest.raises(ContextFullError):
            model.forward(PROMPT, HIDDEN)
        for done, generator in zip(steps, running, strict=True):
            assert ids([*done, *generator]) == wanted
        assert ids(list(model.generate(PROMPT, max_tokens=6))) == wanted


def test_cells_that_other_sequences_hold():
    """All sequences share the context: a long one may find no room, and leaves the others whole."""
    with open_model("llama", n_ctx=512, n_ubatch=64) as model:
        wanted = ids(list(model.generate(random_tokens(200), max_tokens=20)))
        running = model.generate(random_tokens(200), max_tokens=20)
        steps = [next(running)]
        with pytest.raises(ContextFullError, match="cells"):
            model.forward(random_tokens(400), HIDDEN)
        with pytest.raises(ContextFullError, match="cells"):
            list(model.generate(random_tokens(400), max_tokens=1))
        assert ids(steps + list(running)) == wanted


def test_a_generation_after_close(llama):
    model = open_model("llama")
    running, never_begun = model.generate(PROMPT, max_tokens=9), model.generate(PROMPT, max_tokens=9)
    next(running)
    model.close()
    for generator in (running, never_begun):
        with pytest.raises(ModelClosedError):
            next(generator)
        assert list(generator) == []
    with pytest.raises(ModelClosedError):
        model.generate(PROMPT)
