"""The whole way: HTTP, manager, a model's process, engine, rows; against Model.generate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIDELITY
from starlette.testclient import TestClient
from test_hidden import decode, post

from loom_gguf import Capture, Model
from loom_gguf.library import demo_path
from loom_gguf.manager import Manager
from loom_gguf.runner import Runner
from loom_gguf.server import create_app
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

FILES = {"demo": demo_path(), "llama": FIDELITY / "llama.gguf"}
N_TOKENS = 6


@pytest.fixture(scope="module")
def real() -> Iterator[TestClient]:
    settings = ServerSettings(precision="exact", ctx=256, parallel=1)
    app = create_app(Services(Models(FIDELITY), Manager(Runner.start), settings))
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("compression", "encoding"), [("none", "json"), ("float16", "base64"), ("int8", "json")])
def test_rows_are_those_of_the_library(
    real: TestClient, name: str, stream: bool, compression: str, encoding: str
) -> None:
    prompt = "Once there was a fox"
    capture = Capture.all_layers(embedding=True, final=True)
    with Model(FILES[name], n_ctx=256, precision="exact") as model:
        tokens = model.tokenize(prompt)
        steps = list(model.generate(prompt, capture=capture, max_tokens=N_TOKENS, prompt_states=True))
        n_layer = model.n_layer
    before = steps[0].prompt_states
    assert before is not None
    wanted = {"compression": compression, "encoding": encoding, "embedding": True, "final": True, "prompt": True}
    lines = post(
        real,
        model=name,
        prompt=prompt,
        raw=True,
        stream=stream,
        options={"temperature": 0, "num_predict": N_TOKENS},
        expose_hidden=wanted,
    )
    assert "".join(line["response"] for line in lines) == "".join(step.text for step in steps)
    seen: dict[str, list[int]] = {}
    for record in (record for line in lines for record in line.get("hidden_states", [])):
        rows = decode(record)
        for r, token in enumerate(record["token_ids"]):
            position = record["position"] + r
            seen.setdefault(record["node"], []).append(position)
            if position < len(tokens):
                assert token == tokens[position]
            index = position - (len(tokens) - 1)
            states = before if index < 0 else steps[index].states
            if index >= 0:
                assert (record["token_index"], record["next_token_id"]) == (index, steps[index].token_id)
            exact: Any = getattr(states, record["node"], None) if record["layer"] is None else None
            exact = states[record["node"]] if exact is None else exact
            exact = exact[position] if index < 0 else exact
            largest = np.abs(exact).max()
            tolerance = {"none": 1e-5, "float16": 1e-3, "int8": 5e-3}[compression] * largest
            np.testing.assert_allclose(rows[r], exact, rtol=0, atol=tolerance)
    assert set(seen) == {"embedding", "final", *(f"l_out-{il}" for il in range(n_layer))}
    assert all(positions == list(range(len(tokens) - 1 + N_TOKENS)) for positions in seen.values())


def test_chat_uses_the_template_and_options_stop_it(real: TestClient) -> None:
    messages = [{"role": "user", "content": "Tell of a hungry fox"}]
    with Model("demo", n_ctx=256, precision="exact") as model:
        expected = "".join(step.text for step in model.chat(messages, max_tokens=12))
    body = {"model": "demo", "messages": messages, "stream": False, "options": {"temperature": 0, "num_predict": 12}}
    told = real.post("/api/chat", json=body).json()
    assert told["message"]["content"] == expected
    assert told["eval_count"] <= 12


def test_logprobs(real: TestClient) -> None:
    body = {"model": "demo", "prompt": "One", "raw": True, "stream": False, "logprobs": True, "top_logprobs": 3}
    told = real.post("/api/generate", json=body | {"options": {"temperature": 0, "num_predict": 5}}).json()
    assert b"".join(bytes(token["bytes"]) for token in told["logprobs"]).decode() == told["response"]
    assert all(token["top_logprobs"][0]["logprob"] == token["logprob"] <= 0 for token in told["logprobs"])


def test_only_the_prompt_is_read(real: TestClient) -> None:
    wanted = {"prompt": True, "layers": [0]}
    body = {"model": "llama", "prompt": "One fox", "stream": False, "options": {"num_predict": 0}}
    told = real.post("/api/generate", json=body | {"expose_hidden": wanted}).json()
    assert told["response"] == ""
    positions = [r["position"] + i for r in told["hidden_states"] for i in range(r["shape"][1])]
    assert positions == list(range(told["prompt_eval_count"]))


def test_embed(real: TestClient) -> None:
    told = real.post("/api/embed", json={"model": "bert", "input": ["a fox", "two foxes"]}).json()
    with Model(FIDELITY / "bert.gguf", precision="exact") as model:
        np.testing.assert_allclose(told["embeddings"][1], model.embed("two foxes"), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"model": "llama", "prompt": "x " * 900}, 400, "the input length exceeds the context length"),
        ({"model": "bert", "prompt": "x"}, 400, '"bert" does not support generate'),
        ({"model": "llama", "prompt": "x", "expose_hidden": {"nodes": ["nosuch"]}}, 400, "Invalid hidden state"),
        ({"model": "llama", "prompt": "x", "expose_hidden": {"layers": [9]}}, 400, "Invalid hidden state"),
        ({"model": "demo", "prompt": "x", "template": "{{ raise_exception('no') }}"}, 400, "the chat template refuses"),
        ({"model": "demo", "prompt": "x", "format": {"type": "nosuch"}}, 400, ""),
        ({"model": "t5", "prompt": "x", "expose_hidden": {}}, 400, "Hidden state capture not supported for this model"),
    ],
)
def test_errors(real: TestClient, fields: dict[str, Any], status: int, text: str) -> None:
    answer = real.post("/api/generate", json=fields)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"].startswith(text)


def test_nothing_stays_behind(real: TestClient, tmp_path: Path) -> None:
    for model in real.get("/api/ps").json()["models"]:
        real.post("/api/generate", json={"model": model["name"], "keep_alive": 0})
    assert real.get("/api/ps").json() == {"models": []}
