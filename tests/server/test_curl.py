"""The curl commands of the README, as they stand there but for the port, against `loom-gguf serve`."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loom_gguf import Capture, Model

README = (Path(__file__).parent.parent.parent / "README.md").read_text()
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
# A command goes on to the end of its quotes.
COMMANDS = re.findall(r"^curl [^'\n]*(?:'[^']*'[^'\n]*)*$", SHELL, re.MULTILINE)

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [sys.executable, "-m", "loom_gguf", "serve", "--port", "0"]
    away = tmp_path_factory.mktemp("away")  # from the checkout, whose package has no extension
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=away) as process:
        assert process.stderr is not None
        try:
            line = ""
            while "http://" not in line:
                line = process.stderr.readline()
                assert line, process.wait()
            yield line.split(" at ")[1].split()[0]
        finally:
            process.terminate()
            process.communicate(timeout=60)


def curl(command: str, address: str) -> str:
    assert "http://127.0.0.1:11434" in command
    command = command.replace("http://127.0.0.1:11434", address).replace("curl ", "curl -sS --max-time 60 ", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=90, check=True)
    return done.stdout


def test_there_are_some() -> None:
    assert len(COMMANDS) >= 1
    assert SHELL.count("\ncurl ") == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_it_answers(command: str, address: str) -> None:
    lines = [json.loads(line) for line in curl(command, address).splitlines()]
    assert lines
    assert not any("error" in line for line in lines)


def test_the_first_one_shows_hidden_states(address: str) -> None:
    body = json.loads(COMMANDS[0].partition("-d '")[2].rpartition("'")[0])
    wanted, options = body["expose_hidden"], body["options"]
    # Greedy, to be compared; at the default temperature every run is another one.
    command = COMMANDS[0].replace('"options": {', '"options": {"temperature": 0, ')
    lines = [json.loads(line) for line in curl(command, address).splitlines()]
    assert lines[-1]["eval_count"] == options["num_predict"]
    with Model(body["model"]) as model:
        wish: dict[str, Any] = {"capture": Capture.layers(wanted["layers"]), "max_tokens": options["num_predict"]}
        steps = list(model.generate(body["prompt"], **wish))
    assert "".join(line["response"] for line in lines) == "".join(step.text for step in steps)
    records = [record for line in lines for record in line.get("hidden_states", ())]
    assert [(r["token_index"], r["layer"]) for r in records] == [
        (i, layer) for i in range(len(steps)) for layer in wanted["layers"]
    ]
    for record in records:
        row = np.frombuffer(base64.b64decode(record["data"]), "<f2").astype(np.float32)
        exact = steps[record["token_index"]].states.layer(record["layer"])
        np.testing.assert_allclose(row, exact, rtol=0, atol=1e-2 * np.abs(exact).max())
