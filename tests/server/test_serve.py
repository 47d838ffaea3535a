"""The command `loom-gguf serve` and its settings."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from loom_gguf.cli import main
from loom_gguf.errors import LoomError
from loom_gguf.settings import ServerSettings, duration


def test_flags_beat_the_environment_which_beats_defaults() -> None:
    environ = {"LOOM_PORT": "80", "LOOM_KEEP_ALIVE": "1h", "LOOM_ORIGINS": "https://a.example/, b", "LOOM_API_KEY": "k"}
    settings = ServerSettings.read(environ, {"port": 90, "host": None})
    assert (settings.port, settings.host, settings.keep_alive) == (90, "127.0.0.1", 3600)
    assert (settings.origins, settings.api_key) == (("https://a.example", "b"), "k")
    assert ServerSettings.read({"LOOM_PORT": ""}, {}) == ServerSettings()


@pytest.mark.parametrize("name", ["PORT", "PARALLEL", "KEEP_ALIVE", "PRECISION", "CTX"])
def test_a_wrong_variable_is_named(name: str) -> None:
    with pytest.raises(LoomError, match=f"LOOM_{name}"):
        ServerSettings.read({f"LOOM_{name}": "much"}, {})


@pytest.mark.parametrize("text", ["", "5", "5x", "m", "1h 30m", "nan", "inf", "1e300", "5m5", "--5m", "9" * 40 + "h"])
def test_durations(text: str) -> None:
    if text == "5":
        assert duration(text) == 5
    else:
        with pytest.raises(ValueError, match=r".+"):
            duration(text)


def test_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is taken" in error
    assert "--port" in error


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["nosuch.gguf"], 1), (["--models-dir", "nosuch"], 1), (["--port", "70000"], 2), (["--keep-alive", "soon"], 2)],
)
def test_wrong_arguments(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", *arguments]) == status
    assert capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving_until_a_signal(number: int) -> None:
    command = [sys.executable, "-m", "loom_gguf", "serve", "demo", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"LOOM_CTX": "64"}) as process:
        assert process.stderr is not None
        try:
            line = ""
            while "http://" not in line:
                line = process.stderr.readline()
                assert line, process.wait()
            address = line.split(" at ")[1].split()[0]
            assert [m["name"] for m in _get(address, "/api/ps")["models"]] == ["demo:latest"]
            asked = {"model": "demo", "prompt": "One", "stream": False, "options": {"num_predict": 3, "temperature": 0}}
            told = _get(address, "/api/generate", asked | {"expose_hidden": {"layers": [0]}})
            assert len(told["hidden_states"]) == told["eval_count"] == 3
            process.send_signal(number)
            assert process.wait(30) == 0
        finally:
            process.kill()


def _get(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(address + path, data, timeout=30) as answer:
        return json.load(answer)


def test_a_model_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    assert main(["serve", "--port", "0", str(tmp_path / "broken.gguf")]) == 1
    assert "broken.gguf" in capsys.readouterr().err
