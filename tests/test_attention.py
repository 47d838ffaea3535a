"""Attention weights: rows of [n_head, n_past], padding and other sequences' cells cut away."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import GELU, random_tokens, relative_error, torch_says

from loom_gguf import AttentionUnsupportedError, Capture, UnknownNodeError

ATTENTION = Capture.names(["kq_soft_max-*"])
NAMES = (
    "llama",
    "mixtral",
    "qwen2moe",
    "qwen3",
    "olmo2",
    "gemma2",
    "gpt2",
    "lfm2",
    "bert",
    "nomic-bert",
    "modern-bert",
)


def truth(name: str) -> dict[str, np.ndarray]:
    """PyTorch's weights by node, (n_tokens, n_head, n_tokens)."""
    found = torch_says(name)
    weights = found["attentions"]
    layers = found.get("attention_layers", np.arange(len(weights)))
    return {f"kq_soft_max-{il}": weights[i].transpose(1, 0, 2) for i, il in enumerate(layers)}


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_pytorchs(name, shared):
    states = shared(name).forward(torch_says(name)["tokens"].tolist(), ATTENTION)
    expected = truth(name)
    assert set(states) == set(expected)
    bound = 2e-3 if name in GELU or name in ("bert", "modern-bert") else 1e-5
    for key, weights in expected.items():
        assert relative_error(states[key], weights) <= bound


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_prompt_in_pieces(name, shared):
    """Earlier pieces saw fewer positions: their rows are filled up with the zeros that they would have had."""
    tokens = torch_says(name)["tokens"].tolist()
    whole = shared(name).forward(tokens, ATTENTION)
    pieces = shared(name, n_ubatch=8).forward(tokens, ATTENTION)
    for key in whole:
        assert relative_error(pieces[key], whole[key]) <= 1e-5
        assert not pieces[key][0, :, 1:].any()


def test_past_the_padding(shared):
    """llama.cpp pads to 256 cells: prompts on both sides of that."""
    for n in (255, 256, 257):
        states = shared("llama").forward(random_tokens(n), ATTENTION, keep="last")
        assert states["kq_soft_max-0"].shape == (1, 4, n)
        np.testing.assert_allclose(states["kq_soft_max-0"].sum(axis=-1), 1, rtol=1e-5)


def test_rows_of_a_generation_grow(shared):
    prompt = random_tokens(6)
    model = shared("llama")
    steps = list(model.generate(prompt, capture=ATTENTION, max_tokens=4))
    read = [*prompt, *(step.token_id for step in steps[:-1])]
    whole = model.forward(read, ATTENTION)
    for step in steps:
        row = step.states["kq_soft_max-1"]
        assert row.shape == (4, step.position + 1)
        assert relative_error(row, whole["kq_soft_max-1"][step.position, :, : step.position + 1]) <= 1e-5


def test_two_generations_cannot_share_a_cache(shared):
    model = shared("llama")
    other = model.generate(random_tokens(3), max_tokens=4)
    next(other)
    with pytest.raises(AttentionUnsupportedError, match="close"):
        model.forward([1, 2], ATTENTION)
    other.close()
    assert model.forward([1, 2], ATTENTION)["kq_soft_max-0"].shape == (2, 4, 2)


def test_flash_attention_has_no_weights(shared):
    model = shared("llama", precision="fast")
    for name in ("kq_soft_max-0", "kq_soft_max-0#0", "kq_soft_max-*", "kq-1", "*soft_max*"):
        with pytest.raises(AttentionUnsupportedError, match='precision="exact"'):
            model.forward([1, 2], Capture.names([name]))
    for name in ("kqv_nonsense", "nonsense-*"):
        with pytest.raises(UnknownNodeError):
            model.forward([1, 2], Capture.names([name]))


def test_compressed_without_the_padding(shared):
    """Scales must come from the row, not from what lies in the padding."""
    states = shared("llama").forward(random_tokens(5), ATTENTION)
    back = states.compress("int8").decompress()
    assert relative_error(back["kq_soft_max-0"], states["kq_soft_max-0"]) <= 1 / 127
