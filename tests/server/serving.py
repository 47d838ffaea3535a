"""A server on a port of its own, with models in processes, and plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from loom_gguf.manager import Manager
from loom_gguf.requests import LoadParams
from loom_gguf.runner import Runner
from loom_gguf.server import create_app
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

HANGS = 60  # seconds; only against waiting for ever


@contextmanager
def serving(services: Services, unix: Path | None = None) -> Iterator[str]:
    """The address of the application on a free port, or on a Unix socket, until the end of the block."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(services), log_level="warning", ws="none", timeout_graceful_shutdown=5)
    )
    with _bound(unix) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        try:
            yield "http://{}:{}".format(*listening.getsockname()) if unix is None else f"unix://{unix}"
        finally:
            server.should_exit = True
            thread.join(HANGS)
            assert not thread.is_alive()


def _bound(unix: Path | None) -> socket.socket:
    if unix is None:
        return socket.create_server(("127.0.0.1", 0))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(unix))
    return listening


@dataclass
class Real:
    """A server with the real runner."""

    address: str = ""
    runners: list[Runner] = field(default_factory=list)  # all that were loaded, the last one last

    def post(self, path: str, body: Any) -> tuple[int, list[dict[str, Any]]]:
        """The status and the lines of an answer; one line where it is no stream."""
        with self.stream(path, body) as stream:
            return stream.status, list(stream)

    def stream(self, path: str, body: Any) -> Stream:
        """An answer that is read line by line, to be closed."""
        return Stream(self.address, path, body)

    def of(self, name: str) -> list[Runner]:
        """What was loaded of a file, by its name without .gguf."""
        return [runner for runner in self.runners if runner.params.path.stem == name]


class Stream:
    """An answer as it comes; an iterator over its lines."""

    def __init__(self, address: str, path: str, body: Any) -> None:
        """Ask, and wait for the status."""
        host, _, port = address.removeprefix("http://").partition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=HANGS)
        try:
            self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            self._answer = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise
        self.status = self._answer.status
        self.content_type = self._answer.headers["Content-Type"]

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()
        self._connection.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        line = self._answer.readline()
        if not line:
            raise StopIteration
        told: dict[str, Any] = json.loads(line)
        return told


@contextmanager
def real_server(folder: Path, **settings: Any) -> Iterator[Real]:
    """A server of the models in a folder; exact unless said otherwise."""
    real = Real()

    async def load(params: LoadParams) -> Runner:
        runner = await Runner.start(params)
        real.runners.append(runner)
        return runner

    chosen = ServerSettings(**({"precision": "exact", "ctx": 256, "models_dir": folder} | settings))
    manager = Manager(load, max_models=chosen.max_models)
    with serving(Services(Models(folder), manager, chosen)) as real.address:
        yield real
    assert not any(runner.alive for runner in real.runners)


def until(condition: Callable[[], Any]) -> None:
    """Wait for it."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
