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


def test_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is taken" in error
    assert "--port" in error


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["nosuch.gguf"], 1),
        (["--models-dir", "nosuch"], 1),
        (["--port", "70000"], 2),
        (["--keep-alive", "soon"], 2),
        (["--transport", "pigeon"], 2),
        (["--config", "nosuch.yaml"], 1),
        (["--log-file", "nosuch/log"], 1),
        (["--device", "tpu", "demo"], 1),
    ],
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


def test_preloading_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--preload", "demo", "nosuch"]) == 1
    assert "model 'nosuch' not found" in capsys.readouterr().err


def test_a_unix_socket_and_a_file_of_settings(tmp_path: Path) -> None:
    import httpx2

    (tmp_path / "any.yaml").write_text(
        f"server: {{transport: unix, unix_socket: {tmp_path}/s}}\nmodels: {{preload: [demo]}}\n"
    )
    command = [sys.executable, "-m", "loom_gguf", "serve", "--config", "any.yaml", "--log-file", "log"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            while " at unix://" not in (line := process.stderr.readline()):
                assert line, process.wait()
            transport = httpx2.HTTPTransport(uds=str(tmp_path / "s"))
            with httpx2.Client(transport=transport, base_url="http://any.name", timeout=30) as client:
                assert [m["name"] for m in client.get("/api/ps").json()["models"]] == ["demo:latest"]
                body = {"model": "demo", "prompt": "One", "stream": False, "options": {"num_predict": 2}}
                assert client.post("/api/generate", json=body).json()["eval_count"] == 2
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert not (tmp_path / "s").exists()
    assert "/api/generate demo: done" in (tmp_path / "log").read_text()


def test_a_model_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    assert main(["serve", "--port", "0", str(tmp_path / "broken.gguf")]) == 1
    assert "broken.gguf" in capsys.readouterr().err
