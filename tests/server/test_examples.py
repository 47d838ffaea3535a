"""Each program in examples/ against a real server: what it prints is what the library says."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIDELITY
from serving import real_server

from loom_gguf import Capture, Model

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PROMPT = "One morning a fox"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with real_server(FIDELITY) as real:
        yield real.address


@pytest.fixture(scope="module")
def steps() -> list[Any]:
    with Model("demo", n_ctx=256, precision="exact") as model:
        return list(model.generate(PROMPT, capture=Capture.all_layers(embedding=True, final=True), max_tokens=8))


def run(name: str, address: str, *, status: int = 0) -> str:
    """What it prints."""
    program = {".py": sys.executable, ".mjs": "node", ".sh": "sh"}[Path(name).suffix]
    for needed in (program, "curl") if name.endswith(".sh") else (program,):
        if shutil.which(needed) is None:
            pytest.skip(f"needs {needed}")
    command = [program, str(EXAMPLES / name), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def text(steps: list[Any]) -> str:
    return "".join(step.text for step in steps)


def length(row: Any) -> str:
    return f"{np.linalg.norm(row):.2f}"


def test_every_example_is_run_and_described() -> None:
    names = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    here = Path(__file__).read_text()
    assert all(f'run("{name}", address)' in here for name in names)
    assert set(re.findall(r"\]\((.*?)\)", (EXAMPLES / "README.md").read_text())) == names


def test_loom_client(address: str, steps: list[Any]) -> None:
    out = run("loom_client.py", address)
    assert out.startswith(PROMPT + text(steps))
    for key, rows in (("0", [s.states.embedding for s in steps]), ("-1", [s.states.final for s in steps])):
        lengths = ", ".join(map(length, rows))
        assert f"hidden state {key:>2}: 8 tokens of {len(rows[0])} values; lengths {lengths}" in out
    assert re.search(r"^(.*\|){8} 8 tokens, \d+ a second$", out, re.MULTILINE)
    assert len(re.findall(r"^  .* 1\.00", out, re.MULTILINE)) == 3


def test_openai_client(address: str) -> None:
    with Model("demo", n_ctx=256, precision="exact") as model:
        messages = [{"role": "user", "content": "Tell me a calm story."}]
        steps = list(model.chat(messages, capture=Capture.layers([], final=True), max_tokens=16))
        vectors = [model.embed(each, pooling="last_token") for each in ("a fox", "foxes")]
    lines = run("openai_client.py", address).splitlines()
    assert lines[0] == text(steps)
    assert lines[1].endswith(f"{len(steps)} written")
    final = steps[-1].states.final
    assert lines[2] == f"final state of the last token: {len(final)} values, length {length(final)}"
    assert lines[3].replace("|", "") == text(steps)
    assert lines[4] == f"cosine of `a fox` and `foxes`: {np.dot(*vectors):.3f}"


def test_ollama_client(address: str, steps: list[Any]) -> None:
    out = run("ollama_client.py", address)
    assert "demo:latest" in out.splitlines()[0]
    assert PROMPT + text(steps) in out
    for node, rows in (("l_out-0", [s.states.layer(0) for s in steps]), ("final", [s.states.final for s in steps])):
        assert f"{node}: 8 tokens of {len(rows[0])} values" in out
        shown = re.search(rf"{node}: .*\[([^]]*)\]", out)
        assert shown is not None
        changes = np.linalg.norm(np.diff(np.stack(rows), axis=0), axis=1)
        np.testing.assert_allclose([float(each) for each in shown[1].split()], changes, atol=0.05)


def test_hidden_states_in_javascript(address: str, steps: list[Any]) -> None:
    lines = run("hidden_states.mjs", address).splitlines()
    for part, compression in ((lines[:7], "float16"), (lines[7:], "none")):
        *tokens, end = part
        assert end == f"6 tokens, length, as {compression}"
        assert len(tokens) == 6
        for line, step in zip(tokens, steps, strict=False):
            said, _, _ = line.partition(" l_out-0 ")
            assert json.loads(said) == step.text
            for layer in (0, 7):
                n, told = re.search(rf"l_out-{layer} (\d+) values, length ([\d.]+)", line).groups()  # type: ignore[union-attr]
                row = step.states.layer(layer)
                assert int(n) == len(row)
                assert float(told) == pytest.approx(np.linalg.norm(row), rel=2e-3, abs=0.006)


def test_loom_stream_in_javascript(address: str, steps: list[Any]) -> None:
    lines = run("loom_stream.mjs", address).splitlines()
    ids = next(at for at, line in enumerate(lines) if line.startswith("8 tokens: "))
    assert "\n".join(lines[:ids]).replace("|", "") == text(steps)
    assert lines[ids] == f"8 tokens: {' '.join(str(step.token_id) for step in steps)}"
    told = {line.partition(":")[0]: line.rpartition("begins ")[2] for line in lines[ids + 1 :]}
    for key, row in (("hidden state 0", steps[-1].states.embedding), ("hidden state -1", steps[-1].states.final)):
        np.testing.assert_allclose([float(each) for each in told[key].split(", ")], row[:4], atol=2e-3)


def test_curl(address: str, steps: list[Any]) -> None:
    out = run("hidden_states.sh", address)
    ollama, loom, analysis, chat, loaded = (
        [json.loads(line) for line in part.splitlines()[1:] if line] for part in out.split("-- ")[1:]
    )
    assert "".join(line["response"] for line in ollama) == loom[0]["text"] == text(steps[:2])
    assert [record["compression"] for line in ollama for record in line.get("hidden_states", ())] == ["int8", "int8"]
    assert list(loom[0]["hidden_states"]) == ["-1"]
    assert analysis[0]["l2_norm"] > 0
    assert chat[0]["choices"][0]["message"]["content"]
    assert [model["model_id"] for model in loaded[0]["loaded_models"]] == ["demo"]


@pytest.mark.parametrize("name", ["loom_client.py", "hidden_states.mjs", "loom_stream.mjs", "hidden_states.sh"])
def test_nobody_is_there(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    error = run(name, f"http://127.0.0.1:{port}", status=7 if name.endswith(".sh") else 1)
    assert "127.0.0.1" in error
    assert "Traceback" not in error
