"""The Loom's routes on real models: HTTP, manager, a model's process, engine, rows; against PyTorch and Model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import FIDELITY
from oracle import relative_error, torch_says
from prometheus_client.parser import text_string_to_metric_families
from safetensors import safe_open
from starlette.testclient import TestClient

from loom_gguf import Capture, Model
from loom_gguf.manager import Manager
from loom_gguf.runner import Runner
from loom_gguf.server import create_app
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

N_TOKENS = 6
PROMPT = "Once there was a fox"


@pytest.fixture(scope="module")
def real() -> Iterator[TestClient]:
    """Started as attention weights need it."""
    settings = ServerSettings(precision="exact", ctx=256, parallel=1)
    services = Services(Models(FIDELITY), Manager(Runner.start), settings)
    with TestClient(create_app(services), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def parallel() -> Iterator[TestClient]:
    """Started as most are."""
    services = Services(Models(FIDELITY), Manager(Runner.start), ServerSettings(precision="exact", ctx=256))
    with TestClient(create_app(services), base_url="http://localhost") as client:
        yield client


def ask(client: TestClient, path: str = "/generate", **fields: Any) -> dict[str, Any]:
    body = {"model": "llama", "prompt": PROMPT, "temperature": 0, "max_tokens": N_TOKENS} | fields
    told = client.post(path, json=body)
    assert told.status_code == 200, told.text
    answer: dict[str, Any] = told.json()
    return answer


def numbers(values: dict[str, Any]) -> np.ndarray:
    if values["encoding"] == "base64":
        return np.frombuffer(base64.b64decode(values["data"]), "<f4").reshape(values["shape"])
    return np.array(values["data"], np.float32).reshape(values["shape"])


# -- hidden states ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefixes() -> dict[int, str]:
    """Beginnings of what PyTorch read that are text, by their number of tokens. (Most of it is no UTF-8.)"""
    tokens = torch_says("llama")["tokens"].tolist()
    found = {}
    with Model(FIDELITY / "llama.gguf", n_ctx=64) as model:
        for n in range(2, len(tokens) + 1):
            text = model.detokenize(tokens[1:n])  # the first one is the bos, which the tokenizer adds
            if model.tokenize(text) == tokens[:n]:
                found[n] = text
    assert len(found) >= 3
    return found


def test_indices_against_pytorch(real: TestClient, prefixes: dict[int, str]) -> None:
    """The last token of the prompt is read in step 0: its rows are PyTorch's of that position."""
    wanted = torch_says("llama")["hidden_states"]
    n_layer = len(wanted) - 1
    every = list(range(-n_layer - 1, n_layer + 1))  # each hidden state twice, by Python's own indices
    for n, text in prefixes.items():
        for layers, keys in ((every, every), ("all", range(-n_layer, 0))):
            told = ask(real, prompt=text, max_tokens=1, hidden_state_layers=layers)
            assert told["metadata"]["input_tokens"] == n
            assert list(told["hidden_states"]) == [str(key) for key in keys]
            for key in keys:
                row = numbers(told["hidden_states"][str(key)])
                assert row.shape == (1, wanted.shape[-1])
                assert relative_error(row[0], wanted[key][n - 1]) <= 1e-5, key


@pytest.mark.parametrize("form", ["list", "base64"])
def test_a_sequence_is_the_steps_rows(real: TestClient, form: str) -> None:
    told = ask(real, hidden_state_layers=[0, 1, -2, -1], return_full_sequence=True, hidden_state_format=form)
    with Model(FIDELITY / "llama.gguf", n_ctx=256, precision="exact", n_threads=1) as model:
        capture = Capture.all_layers(embedding=True, final=True)
        steps = list(model.generate(PROMPT, capture=capture, max_tokens=N_TOKENS))
        n_layer = model.n_layer
    assert told["text"] == "".join(step.text for step in steps)
    assert (told["token_count"], told["metadata"]["finish_reason"]) == (N_TOKENS, "length")
    wanted = {
        "0": [step.states.embedding for step in steps],
        "1": [step.states.layer(0) for step in steps],
        "-2": [step.states.layer(n_layer - 2) for step in steps],
        "-1": [step.states.final for step in steps],
    }
    for key, rows in wanted.items():
        sequence = numbers(told["sequence_hidden_states"][key])
        assert relative_error(sequence, np.stack(rows)) <= 1e-5
        assert np.array_equal(numbers(told["hidden_states"][key])[0], sequence[-1])


def test_the_stream_tells_the_same(real: TestClient) -> None:
    fields = {"return_hidden_states": True, "return_full_sequence": True, "hidden_state_layers": "all"}
    whole = ask(real, **fields)
    body = {"model": "llama", "prompt": PROMPT, "temperature": 0, "max_tokens": N_TOKENS} | fields
    blocks = real.post("/generate/stream", json=body).text.removesuffix("\n\n").split("\n\n")
    told = [block.removeprefix("event: ").split("\ndata: ") for block in blocks]
    tokens = [json.loads(data) for name, data in told if name == "token"]
    done = json.loads(told[-1][1])
    assert [token["token_id"] for token in tokens] == done["token_ids"]
    assert "".join(token["token"] for token in tokens) == done["text"] == whole["text"]
    assert [token["finish_reason"] for token in tokens] == [None] * (N_TOKENS - 1) + ["length"]
    for key, values in whole["sequence_hidden_states"].items():
        # The prompt lies in the cells already: other batches, other roundings.
        assert relative_error(numbers(done["sequence_hidden_states"][key]), numbers(values)) <= 1e-5


def test_attention_against_pytorch(real: TestClient, prefixes: dict[int, str]) -> None:
    n, text = max(prefixes.items())
    told = ask(real, prompt=text, max_tokens=1, return_attention=True, return_hidden_states=False)
    wanted = torch_says("llama")["attentions"]  # (blocks, heads, tokens, tokens)
    assert list(told["attention_weights"]) == [str(il) for il in range(len(wanted))]
    for il, theirs in enumerate(wanted):
        weights = numbers(told["attention_weights"][str(il)])
        assert weights.shape == (1, theirs.shape[0], 1, n)
        assert relative_error(weights[0, :, 0], theirs[:, n - 1, :n]) <= 1e-5


def test_attention_needs_its_flags(parallel: TestClient) -> None:
    told = parallel.post("/generate", json={"model": "llama", "prompt": "x", "return_attention": True})
    assert told.status_code == 400
    assert "`serve --parallel 1 --precision exact`" in told.json()["detail"]


def test_attention_of_a_model_that_has_none(real: TestClient) -> None:
    told = real.post("/generate", json={"model": "mamba", "prompt": "x", "return_attention": True})
    assert told.status_code == 400
    assert told.json()["detail"].endswith("this model computes no attention weights")


# -- lengths and batches ------------------------------------------------------------------------------------------


def test_lengths(real: TestClient) -> None:
    told = real.post("/generate", json={"model": "llama", "prompt": "x " * 900})
    assert told.status_code == 400
    assert told.json()["detail"].startswith("the input length exceeds the context length: ")
    assert "256" in told.json()["detail"]
    told = ask(real, max_tokens=8192)
    assert told["metadata"]["finish_reason"] in ("length", "stop")
    assert told["metadata"]["input_tokens"] + told["token_count"] <= 257
    assert real.post("/generate", json={"model": "bert", "prompt": "x"}).status_code == 400


def test_a_batch_says_what_single_requests_say(parallel: TestClient) -> None:
    prompts = [PROMPT, "x", "The hungry fox ran", "a " * 60, "One", "Two"]
    fields = {"return_hidden_states": True, "hidden_state_layers": [2, -1], "max_tokens": 8}
    told = ask(parallel, "/generate/batch", prompts=prompts, **fields)
    assert told["prompts_processed"] == len(prompts)
    assert told["total_tokens"] == sum(each["token_count"] for each in told["results"])
    for prompt, result in zip(prompts, told["results"], strict=True):
        single = ask(parallel, prompt=prompt, **fields)
        assert result["text"] == single["text"]
        for key in ("2", "-1"):
            ours, theirs = numbers(result["hidden_states"][key]), numbers(single["hidden_states"][key])
            assert relative_error(ours, theirs) <= 1e-5


def test_a_prompt_that_is_too_long_is_named(parallel: TestClient) -> None:
    told = parallel.post("/generate/batch", json={"model": "llama", "prompts": ["x", "x " * 900], "max_tokens": 2})
    assert told.status_code == 400
    assert told.json()["detail"].startswith("prompts[1]: the input length exceeds the context length")


# -- embeddings ---------------------------------------------------------------------------------------------------

POOLINGS = {"mean": "embedding_mean", "first_token": "embedding_first", "last_token": "embedding_last"}
ENCODERS = ("bert", "nomic-bert", "modern-bert")


def texts_of(name: str) -> list[str]:
    with safe_open(FIDELITY / f"{name}.safetensors", "np") as file:
        texts: list[str] = json.loads(file.metadata()["texts"])
    return texts


def cosine(a: Any, b: Any) -> float:
    a, b = np.float64(a), np.float64(b)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_against_pytorch(parallel: TestClient, name: str) -> None:
    texts = texts_of(name)
    lengths = torch_says(name)["text_lengths"].tolist()
    assert max(lengths) >= 3 * min(lengths)
    for pooling, key in POOLINGS.items():
        wanted = torch_says(name)[key]
        batch = parallel.post("/embed/batch", json={"model": name, "texts": texts, "pooling": pooling}).json()
        assert batch["shapes"] == [[wanted.shape[1]]] * len(texts)
        for at, text in enumerate(texts):
            single = parallel.post("/embed", json={"model": name, "text": text, "pooling": pooling}).json()
            assert single["metadata"]["input_tokens"] == lengths[at]
            for ours in (single["embedding"], batch["embeddings"][at]):
                assert cosine(ours, wanted[at]) >= 0.9999
                assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(wanted[at]), rel=1e-2)  # not normalised
            unit = parallel.post(
                "/embed", json={"model": name, "text": text, "pooling": pooling, "normalize": True}
            ).json()["embedding"]
            assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
            assert cosine(unit, wanted[at]) >= 0.9999


def test_texts_of_very_different_lengths(parallel: TestClient) -> None:
    """In whatever company, a text has the vector that it has alone."""
    texts = [" ".join(["fox"] * n) for n in (1, 40, 2, 35, 1, 20, 3, 40, 7)]
    batch = parallel.post("/embed/batch", json={"model": "bert", "texts": texts, "pooling": "mean"}).json()
    with Model(FIDELITY / "bert.gguf", precision="exact", n_threads=1) as model:
        for text, ours in zip(texts, batch["embeddings"], strict=True):
            assert cosine(ours, model.embed(text, pooling="mean", normalize=False)) >= 0.999999
    assert len({tuple(np.round(vector, 4)) for vector in batch["embeddings"]}) == 7
    told = parallel.post("/embed/batch", json={"model": "bert", "texts": [*texts, "fox " * 200]})
    assert told.status_code == 400
    assert told.json()["detail"].startswith("texts[9]: the input length exceeds the context length")


def test_a_decoders_embedding_is_its_last_final_row(real: TestClient) -> None:
    told = real.post("/embed", json={"model": "llama", "text": PROMPT}).json()
    row = numbers(ask(real, max_tokens=1)["hidden_states"]["-1"])[0]
    assert relative_error(np.float32(told["embedding"]), row) <= 1e-5
    analysis = real.post("/analyze", json={"model": "llama", "text": PROMPT}).json()
    assert analysis["l2_norm"] == pytest.approx(np.linalg.norm(row), rel=1e-5)


# -- models and counts --------------------------------------------------------------------------------------------


def test_load_and_unload(real: TestClient) -> None:
    told = real.post("/models/load", json={"model": "llama", "device": "cpu", "quantization": "8bit"})
    assert told.status_code == 200, told.text
    facts = told.json()
    assert (facts["model_id"], facts["device"], facts["quantization"]) == ("llama-q8_0", "cpu", "Q8_0")
    assert facts["load_time_seconds"] > 0
    listed = {model["model_id"]: model for model in real.get("/models").json()["loaded_models"]}
    assert listed["llama-q8_0"]["num_layers"] == facts["num_layers"]
    assert listed["llama-q8_0"]["idle_seconds"] < 60
    assert 0 < listed["llama-q8_0"]["auto_unload_in"] <= 300
    assert real.delete("/models/llama-q8_0").status_code == 200
    assert real.delete("/models/llama-q8_0").status_code == 404
    told = real.post("/models/load", json={"model": "llama", "device": "cuda:7"})
    assert (told.status_code, "there is no device" in told.json()["detail"]) == (400, True)


COUNTED = ("loom_tokens_generated_total", "loom_embeddings_total", "loom_generation_latency_seconds_count")


def test_counts_across_processes(parallel: TestClient) -> None:
    def counts() -> dict[str, float]:
        families = text_string_to_metric_families(parallel.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {
            name: sum(sample.value for sample in samples if sample.name == name)
            for name in (
                "loom_tokens_generated_total",
                "loom_embeddings_total",
                "loom_generation_latency_seconds_count",
            )
        }

    before = counts()
    generated = ask(parallel, "/generate/batch", prompts=["One", "Two", "Three"])["total_tokens"]
    parallel.post("/embed/batch", json={"model": "bert", "texts": ["a", "b"]})
    parallel.post("/generate", json={"model": "llama", "prompt": "x " * 900})
    after = counts()
    assert {name: after[name] - before[name] for name in after} == {
        "loom_tokens_generated_total": generated,
        "loom_embeddings_total": 2,
        "loom_generation_latency_seconds_count": 3,
    }
