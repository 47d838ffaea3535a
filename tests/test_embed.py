"""One vector for a text, against PyTorch's pooled states; and what encoders may and may not do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from oracle import FIDELITY, fidelity_file, random_tokens, torch_says
from safetensors import safe_open

from loom_gguf import Capture, Model, NotGenerativeError, PromptTooLongError
from loom_gguf.embedding import normalized

ENCODERS = ("bert", "nomic-bert", "modern-bert")
POOLINGS = {
    "mean": "embedding_mean",
    "first_token": "embedding_first",
    "last_token": "embedding_last",
    "max": "embedding_max",
}


def texts(name: str) -> list[tuple[str, list[int]]]:
    """The oracle's texts and their token ids."""
    truth = torch_says(name)
    with safe_open(FIDELITY / f"{name}.safetensors", "numpy") as file:
        strings = json.loads(file.metadata()["texts"])
    ends = np.cumsum(truth["text_lengths"])[:-1]
    return [(s, ids.tolist()) for s, ids in zip(strings, np.split(truth["text_tokens"], ends), strict=True)]


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name, pooling, precision, shared):
    model = shared(name, precision=precision)
    for i, (text, ids) in enumerate(texts(name)):
        expected = torch_says(name)[POOLINGS[pooling]][i]
        assert model.embed(text, pooling) @ normalized(expected) >= 0.9999
        plain = model.embed(ids, pooling, normalize=False)
        assert np.abs(plain - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba"])
def test_decoders(name, shared):
    truth = torch_says(name)
    model, tokens = shared(name), truth["tokens"].tolist()
    for layer, rows in (("final", truth["hidden_states"][-1]), ("embedding", truth["hidden_states"][0])):
        assert model.embed(tokens, "mean", layer=layer) @ normalized(rows.mean(axis=0)) >= 0.9999
        assert model.embed(tokens, "max", layer=layer) @ normalized(rows.max(axis=0)) >= 0.9999
    for il in (0, -1):
        row = truth["block_outputs"][il][-1]
        assert model.embed(tokens, "last_token", layer=il) @ normalized(row) >= 0.9999


def test_length_one(shared):
    vector = shared("llama").embed(random_tokens(7))
    assert vector.shape == (64,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_unknown_pooling(shared):
    with pytest.raises(ValueError, match="mean, last_token, first_token, max"):
        shared("llama").embed([1], "average")


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_that_fills_the_context(name, shared):
    model = shared(name, n_ubatch=8)  # which means nothing here: an encoder's text is computed in one piece
    tokens = [int(t) for t in np.resize(texts(name)[0][1], model.n_ctx)]
    assert len(model.forward(tokens, Capture.all_layers()).tokens) == model.n_ctx
    with pytest.raises(PromptTooLongError, match=f"{model.n_ctx + 1} tokens"):
        model.forward([*tokens, tokens[0]], Capture.all_layers())


@pytest.mark.parametrize("name", ENCODERS)
def test_the_way_a_text_is_cut_cannot_be_set(name, shared):
    _, tokens = texts(name)[0]
    whole, cut = (shared(name, **how).forward(tokens, Capture.all_layers()) for how in ({}, {"n_ubatch": 8}))
    for il in whole.layers:
        np.testing.assert_array_equal(whole.layer(il), cut.layer(il))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_do_not_generate(name):
    with Model(fidelity_file(name)) as model:
        assert model.encoder
        with pytest.raises(NotGenerativeError, match="embed"):
            model.generate([1, 2, 3])
