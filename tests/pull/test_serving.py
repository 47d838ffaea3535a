"""Pull, copy, delete and create with Ollama's own Python client, against a real server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from stand_ins import StandIn
from stores import OllamaStore

sys.path.append(str(Path(__file__).parent.parent / "server"))  # for fakes.py and serving.py

from fakes import FakeManager, FakeRunner
from serving import serving, until

from loom_gguf.library import Library, demo_path
from loom_gguf.pull import OwnStore, Patience, pull
from loom_gguf.pull.shared import SharedPulls
from loom_gguf.requests import ChatPrompt
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

QUICK = Patience(connect=5, read=5, tries=2, first_wait=0.01)


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def manager(runner: FakeRunner) -> FakeManager:
    return FakeManager(runner)


@pytest.fixture
def started() -> list[str]:
    """Names of pulls that were begun."""
    return []


@pytest.fixture
def address(
    library: Library,
    manager: FakeManager,
    server: StandIn,
    started: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    OllamaStore(tmp_path / "ollama").add("theirs", demo_path(), system="Be brief.", params={"temperature": 0.5})

    def start(*args: Any, **more: Any) -> Any:
        started.append(args[0])
        return pull(*args, **more, patience=QUICK, environ={"HF_ENDPOINT": server.url})

    services = Services(Models(library=library), manager, ServerSettings(), pulls=SharedPulls(start))
    with serving(services) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[ollama.Client]:
    with ollama.Client(address) as client:
        yield client


def names(client: ollama.Client) -> set[str]:
    return {model.model for model in client.list().models}


def test_pull(client: ollama.Client, server: StandIn, llama: bytes) -> None:
    server.add_model("a/b", llama, system="Hello.")
    server.rate = 2 * 10**6
    lines = list(client.pull(f"{server.host}/a/b", stream=True))
    digest = hashlib.sha256(llama).hexdigest()
    assert lines[0].status == "pulling manifest"
    assert [line.status for line in lines[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
    weights = [line for line in lines if line.digest == f"sha256:{digest}"]
    assert weights[-1].completed == weights[-1].total == len(llama)
    assert [line.completed for line in weights] == sorted(line.completed for line in weights)
    assert len(weights) > 2
    assert f"{server.host}/a/b:latest" in names(client)
    assert client.show(f"{server.host}/a/b").modelinfo
    server.add_repository("o/r", {"r-F32.gguf": llama})
    assert client.pull("hf.co/o/r").status == "success"
    assert "hf.co/o/r:F32" in names(client)


@pytest.mark.parametrize("stream", [True, False])
def test_a_pull_that_fails(client: ollama.Client, server: StandIn, llama: bytes, stream: bool) -> None:
    server.add_model("a/b", llama)
    server.faults.extend([("good",), *[("wrong bytes",)] * 4])
    with pytest.raises(ollama.ResponseError, match="damaged") as caught:
        list(client.pull(f"{server.host}/a/b", stream=True)) if stream else client.pull(f"{server.host}/a/b")
    assert caught.value.status_code == (-1 if stream else 502)
    assert f"{server.host}/a/b:latest" not in names(client)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": ""}, 400, "model is required"),
        ({"model": "../x"}, 400, "no model's name"),
        ({"model": "demo"}, 400, "comes with the package"),
        ({"model": "http://192.0.2.1/a/b", "stream": False}, 400, "--insecure"),
        ({"model": "hf.co/no/such", "stream": False}, 404, "no repository"),
        ({"model": "x", "username": "u"}, 400, "public models"),
        ({"model": 5}, 400, "model"),
    ],
)
def test_pulls_that_are_refused(address: str, body: dict[str, Any], status: int, words: str) -> None:
    answer = httpx.post(f"{address}/api/pull", json=body)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


def test_one_download_for_all(address: str, started: list[str], server: StandIn, llama: bytes) -> None:
    server.add_repository("o/r", {"r.gguf": llama})
    server.faults.append(("stall", 50_000))  # until all are there
    waiting: set[int] = set()

    async def talk() -> list[list[str]]:
        asked: Any = ollama.AsyncClient(address)

        async def one(number: int, name: str) -> list[str]:
            statuses = []
            async for line in await asked.pull(name, stream=True):
                statuses.append(line.status)
                waiting.add(number)
                if len(waiting) == 3:
                    server.release.set()
            return statuses

        try:
            # The server goes on with other things meanwhile.
            answers = await asyncio.gather(
                one(0, "hf.co/o/r"), one(1, "HF.co/o/r:latest"), one(2, "hf.co/o/r"), asked.generate("theirs", "hi")
            )
            return list(answers[:3])
        finally:
            await asked._client.aclose()

    for statuses in asyncio.run(talk()):
        assert statuses[0] == "pulling manifest"
        assert statuses[-1] == "success"
    assert server.ranges() == [None, "bytes=50000-"]
    assert len(started) == 1


def test_clients_that_go_away(client: ollama.Client, server: StandIn, store: OwnStore, llama: bytes) -> None:
    server.add_repository("o/r", {"r.gguf": llama})
    server.rate = 400_000
    for line in client.pull("hf.co/o/r", stream=True):
        if (line.completed or 0) > 50_000:
            break
    client._client.close()
    part = store.partial / f"sha256-{hashlib.sha256(llama).hexdigest()}"
    from loom_gguf.pull.locks import is_locked

    until(lambda: not is_locked(part))
    left = part.stat().st_size
    assert 50_000 < left < len(llama)
    server.rate = 0
    with ollama.Client(str(client._client.base_url)) as again:
        assert again.pull("hf.co/o/r").status == "success"
    assert server.ranges() == [None, f"bytes={left}-"]


def test_copy_and_delete(
    client: ollama.Client, server: StandIn, store: OwnStore, manager: FakeManager, llama: bytes
) -> None:
    server.add_model("a/b", llama)
    name = f"{server.host}/a/b"
    client.pull(name)
    assert client.copy(name, "mine").status == "success"
    assert "mine:latest" in names(client)
    assert client.delete(name).status == "success"
    assert manager.unloaded == []
    assert client.delete("mine").status == "success"
    assert manager.unloaded == [store.blob(hashlib.sha256(llama).hexdigest())]
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        client.delete("mine")
    assert caught.value.status_code == 404
    for name, words in (("theirs", "Ollama's"), ("demo", "comes with the package")):
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            client.delete(name)
        assert caught.value.status_code == 403
    with pytest.raises(ollama.ResponseError, match="comes with the package"):
        client.copy("theirs", "demo")


JINJA = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


def test_create(client: ollama.Client, store: OwnStore, runner: FakeRunner, library: Library, tmp_path: Path) -> None:
    lines = list(
        client.create(
            "mine", from_="theirs", system="Be long.", template=JINJA, parameters={"num_ctx": 128}, license=["MIT"],
            messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], stream=True,
        )
    )  # fmt: skip
    assert lines[-1].status == "success"
    entry = library.find("mine")
    theirs = library.find("theirs")
    assert entry.place == "own"
    assert entry.path.samefile(theirs.path)  # one file system: a link, no copy
    assert entry.details["model_family"] == "llama"
    extras = library.extras(entry)
    assert (extras.system, extras.jinja, extras.params) == ("Be long.", JINJA, {"temperature": 0.5, "num_ctx": 128})
    assert extras.licenses == ("MIT",)
    shown = client.show("mine")
    assert (shown.system if hasattr(shown, "system") else "Be long.") == "Be long."
    assert shown.template == JINJA
    client.chat("mine", [{"role": "user", "content": "c"}])
    prompt = runner.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.template == JINJA
    assert [message["content"] for message in prompt.messages] == ["Be long.", "a", "b", "c"]
    # Of a model of ours: the blob itself is shared.
    client.create("second", from_="mine", system="")
    assert library.find("second").path == entry.path
    assert library.extras(library.find("second")).system == ""
    assert library.extras(library.find("second")).jinja == JINJA
    client.delete("mine")
    assert library.find("second").path.read_bytes() == demo_path().read_bytes()
    # Of the package's own: a copy.
    client.create("third", from_="demo", system="x")
    assert library.find("third").path == library.find("second").path


def test_creating_a_copy_where_no_link_can_be(
    client: ollama.Client, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", link)
    client.create("mine", from_="theirs")
    assert not library.find("mine").path.samefile(library.find("theirs").path)
    assert library.find("mine").path.read_bytes() == demo_path().read_bytes()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"from": "demo"}, 400, "model is required"),
        ({"model": "x"}, 400, "from is required"),
        ({"model": "demo", "from": "theirs"}, 400, "comes with the package"),
        ({"model": "../x", "from": "theirs"}, 400, "no model's name"),
        ({"model": "x", "from": "nosuch"}, 404, "not found"),
        ({"model": "x", "files": {"a.gguf": "sha256:0"}}, 501, "files"),
        ({"model": "x", "from": "demo", "adapters": {"a": "sha256:0"}}, 501, "adapters"),
        ({"model": "x", "from": "demo", "quantize": "q4_0"}, 501, "loom-gguf quantize"),
        ({"model": "x", "modelfile": "FROM demo"}, 400, "modelfile"),
        ({"model": "x", "from": "demo", "parameters": {"temperature": "hot"}}, 400, "temperature"),
        ({"model": "x", "from": "demo", "messages": [{"role": "user"}]}, 400, "messages"),
        ({"model": "x", "from": "demo", "template": "{{ if .System }}{{ .System }}{{ end }}"}, 400, "Go's"),
        ({"model": "x", "from": "demo", "template": "{% if %}"}, 400, "broken"),
    ],
)
def test_creations_that_are_refused(address: str, body: dict[str, Any], status: int, words: str) -> None:
    answer = httpx.post(f"{address}/api/create", json=body)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/push"), ("POST", "/api/blobs/sha256:0")])
def test_the_rest_says_that_it_is_not_there(address: str, method: str, path: str) -> None:
    answer = httpx.request(method, address + path, content=b"{}")
    assert answer.status_code == 501
    assert "not supported" in answer.json()["error"]


def test_a_server_that_ends_stops_its_pulls(
    library: Library, manager: FakeManager, server: StandIn, store: OwnStore, llama: bytes, monkeypatch: Any
) -> None:
    server.add_repository("o/r", {"r.gguf": llama})
    server.rate = 100_000
    stopped = threading.Event()

    def start(*args: Any, **more: Any) -> Any:
        try:
            return pull(*args, **more, patience=QUICK, environ={"HF_ENDPOINT": server.url})
        finally:
            stopped.set()

    services = Services(Models(library=library), manager, ServerSettings(), pulls=SharedPulls(start))
    with serving(services) as address, httpx.stream("POST", f"{address}/api/pull", json={"model": "hf.co/o/r"}) as got:
        assert json.loads(next(got.iter_lines()))["status"] == "pulling manifest"
    assert stopped.wait(10)
    assert [entry for entry in library.entries() if entry.place == "own"] == []
