"""The command `loom-gguf serve` and its settings."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fakes import FakeManager, FakeRunner

from loom_gguf.cli import main, serve
from loom_gguf.errors import ModelClosedError
from loom_gguf.jobs import Token
from loom_gguf.requests import Started
from loom_gguf.server import create_app
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings


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


class Endless(FakeRunner):
    """Says much, until its manager is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.unloaded = False

    async def generate(self, request: Any) -> AsyncGenerator[Any, None]:
        yield Started((7,), None)
        for index in itertools.count():
            if self.unloaded:
                raise ModelClosedError("the model was unloaded")
            yield Token(50, "x" * 2**20, index, index, None)


class EndlessManager(FakeManager):
    async def close(self) -> None:
        self.runner.unloaded = True  # type: ignore[attr-defined]


async def _ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"model": "demo", "prompt": "x"}'
    head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    return reader, writer


def test_answers_that_are_under_way_when_the_server_stops(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who reads is told why the answer ends; who does not is cut, and the log tells so without a traceback."""
    monkeypatch.setattr(serve, "_GRACE", 0.1)
    monkeypatch.setattr(serve, "_LAST_WORDS", 0.5)

    async def scenario() -> None:
        manager = EndlessManager(Endless())
        app = create_app(Services(Models(folder), manager, ServerSettings()))
        server = serve._server(uvicorn.Config(app, log_level="warning", log_config=None, ws="none"), manager.close)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            running = asyncio.create_task(server.serve(sockets=[listening]))
            port = listening.getsockname()[1]
            reader, writer = await _ask(port)
            _, stalled = await _ask(port)
            server.should_exit = True
            end = b""
            while piece := await reader.read(2**20):
                end = (end + piece)[-200:]
            assert b'{"error":"the model was unloaded"}\n' in end
            await asyncio.wait_for(running, 60)
            for each in (writer, stalled):
                each.close()

    asyncio.run(scenario())
    said = [record for record in caplog.records if record.name == "uvicorn.error"]
    assert [record.exc_info for record in said] == [None]  # only how many were cut
