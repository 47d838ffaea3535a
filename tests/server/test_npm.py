"""Ollama's official client for JavaScript, against a real server: npm/talk.mjs says what it does."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIDELITY
from serving import real_server

from loom_gguf import Capture, Model

HERE = Path(__file__).parent / "npm"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and the client."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    folder = tmp_path_factory.mktemp("npm")
    shutil.copytree(HERE, folder, dirs_exist_ok=True)
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--prefer-offline"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not get the client within two minutes")
    if done.returncode:
        pytest.skip(f"npm cannot install the client: {done.stderr[-300:]}")
    return folder


@pytest.fixture(scope="module")
def said(installed: Path) -> dict[str, Any]:
    with real_server(FIDELITY, parallel=1) as real:
        command = ["node", "talk.mjs", real.address]
        done = subprocess.run(command, cwd=installed, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def steps() -> list[Any]:
    with Model("demo", n_ctx=256, precision="exact") as model:
        capture = Capture.layers([0, 7], final=True)
        return list(model.generate("One morning a fox", capture=capture, max_tokens=12, prompt_states=True))


def test_texts(said: dict[str, Any], steps: list[Any]) -> None:
    expected = "".join(step.text for step in steps)
    assert said["generate"]["response"] == said["after"]["response"] == expected
    assert (said["generate"]["eval_count"], said["generate"]["done_reason"]) == (12, "length")
    parts = said["generateStream"]
    assert "".join(part["response"] for part in parts) == expected
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 10
    with Model("demo", n_ctx=256, precision="exact") as model:
        messages = [{"role": "user", "content": "Tell me a calm story."}]
        told = "".join(step.text for step in model.chat(messages, max_tokens=12))
    assert said["chat"]["message"] == {"role": "assistant", "content": told}
    assert "".join(part["message"]["content"] for part in said["chatStream"]) == told
    assert not any("hidden_states" in part for part in (said["generate"], *parts, said["chat"], *said["chatStream"]))
    assert said["json"]["response"].lstrip().startswith(("{", "["))


def test_expose_hidden_passes_through(said: dict[str, Any], steps: list[Any]) -> None:
    streamed = [record for part in said["hiddenStream"] for record in part.get("hidden_states", ())]
    assert "".join(part["response"] for part in said["hiddenStream"]) == said["generate"]["response"]
    assert [{**r, "data": ""} for r in streamed] == [{**r, "data": ""} for r in said["hidden"]["hidden_states"]]
    n_prompt = steps[0].position + 1
    for records in (streamed, said["hidden"]["hidden_states"]):
        seen: dict[str, list[int]] = {"l_out-0": [], "l_out-7": [], "final": []}
        for record in records:
            rows = np.frombuffer(base64.b64decode(record["data"]), "<f2").reshape(record["shape"])[0].astype(np.float32)
            for r, row in enumerate(rows):
                position = record["position"] + r
                seen[record["node"]].append(position)
                index = position - (n_prompt - 1)
                states = steps[0].prompt_states if index < 0 else steps[index].states
                found = states.final if record["node"] == "final" else states.layer(record["layer"])
                exact = found[position] if index < 0 else found
                np.testing.assert_allclose(row, exact, rtol=0, atol=2e-3 * np.abs(exact).max())
                if index >= 0:
                    assert (record["token_index"], record["next_token_id"]) == (index, steps[index].token_id)
        assert all(positions == list(range(n_prompt - 1 + 12)) for positions in seen.values())
    of_chat = said["hiddenChat"]["hidden_states"]
    assert [record["layer"] for record in of_chat] == [7] * said["hiddenChat"]["eval_count"]
    assert all(len(record["data"]) == 128 for record in of_chat)


def test_embeddings(said: dict[str, Any]) -> None:
    with Model(FIDELITY / "bert.gguf", precision="exact") as model:
        for vector, text in zip(said["embed"]["embeddings"], ("a fox", "two foxes"), strict=True):
            np.testing.assert_allclose(vector, model.embed(text), atol=1e-5)
        np.testing.assert_allclose(said["embeddings"]["embedding"], model.embed("a fox", normalize=False), atol=1e-4)


def test_lists(said: dict[str, Any]) -> None:
    assert said["version"]["version"]
    assert {"demo:latest", "llama:latest", "bert:latest"} <= {model["name"] for model in said["list"]["models"]}
    assert said["show"]["details"]["family"] == "llama"
    assert "completion" in said["show"]["capabilities"]
    assert {model["name"] for model in said["ps"]["models"]} == {"demo:latest", "bert:latest"}


def test_who_aborts_frees_the_sequence(said: dict[str, Any]) -> None:
    assert said["aborted"]["n"] == 2
    assert said["aborted"]["error"]["name"] == "AbortError"


def test_errors(said: dict[str, Any]) -> None:
    for which in ("notFound", "notFoundStream"):
        assert said[which] == {"name": "ResponseError", "message": "model 'nosuch' not found", "status": 404}
    assert said["wrong"]["message"] == "Invalid hidden state configuration: layers must be non-negative"
    assert said["wrong"]["status"] == 400
    assert said["pull"]["status"] == 400
    assert said["unload"]["done_reason"] == "unload"
