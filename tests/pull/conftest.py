from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Behind all others: their folders have a conftest.py too.
sys.path.append(str(Path(__file__).parent))  # for stand_ins.py

from stand_ins import FIDELITY, Pull, StandIn, stand_in

from loom_gguf.library import Library, LibrarySettings
from loom_gguf.library.names import Name
from loom_gguf.pull import OwnStore, Patience, Progress, Watcher, nobody, pull

QUICK = Patience(connect=5, read=5, tries=3, first_wait=0.01)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as here:
        yield here


@pytest.fixture
def other() -> Iterator[StandIn]:
    """Another server."""
    with stand_in() as here:
        yield here


@pytest.fixture
def store(tmp_path: Path) -> OwnStore:
    return OwnStore(tmp_path / "own")


@pytest.fixture
def library(store: OwnStore, tmp_path: Path) -> Library:
    return Library(LibrarySettings(own=store.root, ollama=(tmp_path / "ollama",), hugging_face=tmp_path / "hub"))


@pytest.fixture
def said() -> list[Progress]:
    """What pulls told."""
    return []


@pytest.fixture
def do_pull(store: OwnStore, server: StandIn, said: list[Progress], monkeypatch: pytest.MonkeyPatch) -> Pull:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(store.root / "no token"))

    def do(name: str, patience: Patience = QUICK, **more: Any) -> Name:
        watcher = Watcher(said.append, more.pop("cancelled", nobody().cancelled))
        environ = {"HF_ENDPOINT": server.url}
        return pull(name, store, watcher, patience=patience, environ=environ, **more)

    return do


@pytest.fixture(scope="session")
def llama() -> bytes:
    return (FIDELITY / "llama.gguf").read_bytes()
