"""Captured rows against PyTorch, which ran the same weights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from oracle import DECODERS, GELU, plain, random_tokens, relative_error, torch_says

from loom_gguf import Capture, Model, States

EVERYTHING_HIDDEN = Capture.all_layers(embedding=True, final=True) | Capture.names(["result_output"])
PRECISIONS = ("exact", "fast")


def bound(name: str, precision: str) -> float:
    """Flash attention computes in float16; OLMo-2's norms behind each branch make that grow (measured: 3.2e-3)."""
    if precision == "exact" and name not in GELU:
        return 1e-5
    return 6e-3 if (name, precision) == ("olmo2", "fast") else 2e-3


@pytest.fixture(params=[f"{name}-{precision}" for name in DECODERS for precision in PRECISIONS])
def case(request, shared) -> tuple[str, States, float]:
    """A decoder's name, its states on the oracle's prompt, and how far they may be off."""
    name, precision = request.param.split("-")
    tokens = torch_says(name)["tokens"].tolist()
    return name, shared(name, precision=precision).forward(tokens, EVERYTHING_HIDDEN), bound(name, precision)


def test_every_block(case):
    name, states, limit = case
    wanted = torch_says(name)["block_outputs"]
    assert states.layers == list(range(len(wanted)))
    for il, block in enumerate(wanted):
        assert relative_error(states.layer(il), block) <= limit, f"layer {il}"
        assert states.layer(il).dtype == np.float32


def test_embedding_is_exact(case):
    """Rows of the table: Gemma's are multiplied, GPT-2's have a position added, no more."""
    name, states, _ = case
    assert relative_error(states.embedding, torch_says(name)["hidden_states"][0]) <= 1e-6


def test_final(case):
    name, states, limit = case
    assert relative_error(states.final, torch_says(name)["hidden_states"][-1]) <= limit


def test_hidden_states_in_the_order_of_hugging_face(case):
    name, states, limit = case
    wanted = torch_says(name)["hidden_states"]
    assert isinstance(states.hidden_states, tuple)
    assert len(states.hidden_states) == len(wanted)
    for i, (ours, theirs) in enumerate(zip(states.hidden_states, wanted, strict=True)):
        assert relative_error(ours, theirs) <= limit, f"hidden_states[{i}]"


def test_logits(case):
    name, states, limit = case
    assert relative_error(states["result_output"], torch_says(name)["logits"]) <= limit


def test_states_say_what_they_are_of(case):
    name, states, _ = case
    tokens = torch_says(name)["tokens"].tolist()
    assert states.tokens == tokens
    assert states.positions == list(range(len(tokens)))


def test_blocks_differ_enough_for_a_mistaken_layer_to_show():
    """The bounds above mean something only where neighbouring states are far apart, and so are tokens."""
    for name in DECODERS:
        states = torch_says(name)["hidden_states"]
        for a, b in pairwise(states):
            assert relative_error(a, b) > 0.1
        rows = states[-1]
        apart = np.abs(rows[:, None] - rows[None]).max(-1) / np.abs(rows).max()
        same_token = torch_says(name)["tokens"][:, None] == torch_says(name)["tokens"][None]
        assert apart[~same_token].min() > 0.05


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "mamba"])
def test_attention_weights(name, shared):
    wanted, model = torch_says(name), shared(name)
    layers = wanted["attention_layers"].tolist()
    keys = [f"kq_soft_max-{il}" for il in layers]
    states = model.forward(wanted["tokens"].tolist(), Capture.names(keys))
    assert list(states) == keys
    n_tokens = len(wanted["tokens"])
    for key, theirs in zip(keys, wanted["attentions"], strict=True):
        ours = states[key][..., :n_tokens]  # [token, head, cell]; cells beyond the prompt's are padding
        assert relative_error(ours, theirs.transpose(1, 0, 2)) <= bound(name, "exact"), key
        assert not states[key][..., n_tokens:].any()


@pytest.mark.parametrize("name", DECODERS)
def test_final_and_logits_as_llama_cpp_gives_them_itself(name, shared):
    """Its embedding output is the state after the final norm; no loom_gguf code takes part in reading it."""
    tokens = random_tokens(21)
    states = shared(name).forward(tokens, Capture.names(["result_norm", "result_output"]))
    with plain(name, embeddings=True) as reference:
        reference.decode(tokens)
        final = np.stack([reference.final(i) for i in range(len(tokens))])
    with plain(name) as reference:
        reference.decode(tokens)
        logits = np.stack([reference.logits(i) for i in range(len(tokens))])
    assert relative_error(states["result_norm"], final) <= 1e-6
    assert relative_error(states["result_output"], logits) <= 1e-6


@pytest.mark.parametrize(("name", "limit"), [("llama-f16", 2e-3), ("llama-q8_0", 3e-2), ("llama-q4_0", 0.4)])
def test_rounded_weights_stay_near_those_they_were_made_of(name, limit, shared):
    """How near is a matter of the weights; that the order is F16, Q8_0, Q4_0 says that the file was read as it is."""
    tokens, model = torch_says("llama")["tokens"].tolist(), shared(name)
    states = model.forward(tokens, Capture.all_layers(final=True))
    errors = [relative_error(states.layer(il), block) for il, block in enumerate(torch_says("llama")["block_outputs"])]
    assert limit / 40 < max(errors) <= limit


def test_a_model_with_no_vocabulary_gives_the_same_rows(shared):
    tokens = torch_says("llama")["tokens"].tolist()
    with_text, without = shared("llama"), shared("llama-no-vocab")
    for key, rows in with_text.forward(tokens, EVERYTHING_HIDDEN).items():
        assert np.array_equal(without.forward(tokens, EVERYTHING_HIDDEN)[key], rows)


def test_facts(shared):
    model: Model = shared("gemma2")
    assert (model.arch, model.n_layer, model.n_embd, model.n_vocab, model.n_ctx) == ("gemma2", 4, 64, 320, 512)
    assert "gemma2" in repr(model)
