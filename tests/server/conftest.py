from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))  # for fakes.py

from fakes import FakeManager, FakeRunner

from loom_gguf.server import create_app
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

FIDELITY = Path(__file__).parent.parent / "fidelity"

MakeClient = Callable[..., TestClient]


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def manager(runner: FakeRunner) -> FakeManager:
    return FakeManager(runner)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A models' folder with a `plain` model (no chat template), a `bert` and one further down."""
    folder = tmp_path / "models"
    (folder / "Deep").mkdir(parents=True)
    for name, source in (("plain", "llama"), ("Bert", "bert"), ("Deep/Er.Q4_0", "llama-q4_0")):
        (folder / f"{name}.gguf").write_bytes((FIDELITY / f"{source}.gguf").read_bytes())
    return folder


@pytest.fixture
def make_client(manager: FakeManager, folder: Path) -> Iterator[MakeClient]:
    opened = []

    def make(**settings: Any) -> TestClient:
        app = create_app(Services(Models(folder), manager, ServerSettings(**settings)))
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()
