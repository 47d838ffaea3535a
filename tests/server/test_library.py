"""Models of a store over HTTP: what lists say of them, and what their manifests add to requests."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_edit
import ollama
import pytest
import uvicorn
from fakes import FakeManager, FakeRunner
from starlette.testclient import TestClient
from stores import FIDELITY, LLAMA, HuggingFaceCache, OllamaStore

from loom_gguf import Model
from loom_gguf.cli import main
from loom_gguf.library import Library, LibrarySettings, demo_path
from loom_gguf.manager import Manager
from loom_gguf.requests import ChatPrompt, TextPrompt
from loom_gguf.runner import Runner
from loom_gguf.server import create_app
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

LICENSE = "MIT"
PARAMS = {"temperature": 0.25, "num_ctx": 96, "stop": ["<a>", "<b>"], "num_gqa": 8}
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]


@pytest.fixture
def store(tmp_path: Path) -> OllamaStore:
    """`full` has everything; `plain` has no chat template, `go` only Ollama's own."""
    store = OllamaStore(tmp_path / "store")
    store.add("full", demo_path(), system="Be brief.", template="{{ .System }} {{ .Prompt }}", params=PARAMS,
              messages=MESSAGES, license=[LICENSE])  # fmt: skip
    store.add("plain", system="Be brief.", template="{{ .Prompt }}")
    store.add("go", template="{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}")
    store.add("adapted", adapter=LLAMA)
    blob = gguf_edit.read(LLAMA).as_architecture("gemma3").with_tensor("v.blk.0.norm.weight")
    store.add("gemma3", blob.write(tmp_path / "blob"))
    store.put("broken", b"{")
    return store


@pytest.fixture
def library(store: OllamaStore, tmp_path: Path) -> Library:
    return Library(LibrarySettings(ollama=(store.root,), hugging_face=tmp_path / "hub"))


@pytest.fixture
def client(library: Library, manager: FakeManager) -> Iterator[TestClient]:
    app = create_app(Services(Models(library=library), manager, ServerSettings()))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, way: str, **body: Any) -> Any:
    return client.post(f"/api/{way}", json={"stream": False, **body})


CHAT = [{"role": "user", "content": "hi"}]


def test_tags_and_show(client: TestClient, store: OllamaStore) -> None:
    listed = {model["name"]: model for model in client.get("/api/tags").json()["models"]}
    assert set(listed) == {f"{name}:latest" for name in ("demo", "full", "gemma3", "go", "plain")}
    assert listed["gemma3:latest"]["hidden_states"]["level"] == "refused"
    full = listed["full:latest"]
    manifest = store.path("full").read_bytes()
    layers = json.loads(manifest)
    assert full["digest"] == hashlib.sha256(manifest).hexdigest()
    assert full["size"] == sum(layer["size"] for layer in [layers["config"], *layers["layers"]])
    assert full["details"] == {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "97.54K",
        "quantization_level": "F32",
    }  # fmt: skip
    assert (full["place"], full["hidden_states"]["level"]) == ("ollama", "all")
    shown = ask(client, "show", model="FULL").json()
    assert (shown["system"], shown["license"], shown["messages"]) == ("Be brief.", "MIT", MESSAGES)
    assert shown["template"].startswith("{{ bos_token }}")  # the file's own
    assert shown["parameters"].split() == [
        "temperature", "0.25", "num_ctx", "96", "stop", '"<a>"', "stop", '"<b>"', "num_gqa", "8",
    ]  # fmt: skip
    for line in ("FROM full:latest", 'SYSTEM "Be brief."', "PARAMETER stop <a>", "LICENSE MIT", "MESSAGE user Hello"):
        assert line in shown["modelfile"].splitlines()
    assert ask(client, "show", model="go").json()["template"].startswith("{{ if .System }}")


def test_a_models_own_parameters_are_defaults(client: TestClient, runner: FakeRunner, manager: FakeManager) -> None:
    assert ask(client, "chat", model="full", messages=CHAT).status_code == 200
    assert ask(client, "chat", model="full", messages=CHAT, options={"temperature": 1, "stop": []}).status_code == 200
    first, second = runner.requests
    assert (first.sampling.temperature, first.stop) == (0.25, ("<a>", "<b>"))
    assert (second.sampling.temperature, second.stop) == (1, ())
    assert ask(client, "embed", model="full", input="x").status_code == 200
    assert {params.n_ctx for params, _ in manager.uses} == {96}  # one load for all


def test_wrong_parameters_are_the_models_fault(client: TestClient, store: OllamaStore) -> None:
    store.add("wrong", params={"temperature": "hot"})
    told = ask(client, "generate", model="wrong", prompt="hi")
    assert told.status_code == 500
    assert "the model's own parameters are wrong: temperature" in told.json()["error"]


def _said(runner: FakeRunner) -> list[tuple[str, str]]:
    prompt = runner.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return [(message["role"], message["content"]) for message in prompt.messages]


def test_a_models_own_system_prompt_and_messages(client: TestClient, runner: FakeRunner) -> None:
    before = [("user", "Hello"), ("assistant", "Hi.")]
    ask(client, "chat", model="full", messages=CHAT)
    assert _said(runner) == [("system", "Be brief."), *before, ("user", "hi")]
    ask(client, "chat", model="full", messages=[{"role": "system", "content": "Sing."}, *CHAT])
    assert _said(runner) == [*before, ("system", "Sing."), ("user", "hi")]
    ask(client, "generate", model="full", prompt="hi")
    assert _said(runner) == [("system", "Be brief."), *before, ("user", "hi")]
    ask(client, "generate", model="full", prompt="hi", system="Sing.")
    assert _said(runner) == [("system", "Sing."), *before, ("user", "hi")]
    ask(client, "generate", model="full", prompt="hi", raw=True)
    assert runner.requests[-1].prompt == TextPrompt("hi")
    ask(client, "generate", model="plain", prompt="hi")
    assert runner.requests[-1].prompt == TextPrompt("Be brief.\n\nhi")


@pytest.mark.parametrize(("way", "body"), [("chat", {"messages": CHAT}), ("generate", {"prompt": "hi"})])
def test_a_go_template_alone(client: TestClient, way: str, body: Any) -> None:
    told = ask(client, way, model="go", **body)
    assert told.status_code == 400
    assert "Go template" in told.json()["error"]
    assert ask(client, "generate", model="go", prompt="hi", raw=True).status_code == 200


@pytest.mark.parametrize(("name", "status", "said"), [("adapted", 400, "LoRA"), ("broken", 500, "no JSON")])
def test_models_that_cannot_be_used(client: TestClient, name: str, status: int, said: str) -> None:
    for way, body in (
        ("chat", {"messages": CHAT}),
        ("generate", {"prompt": "x"}),
        ("show", {}),
        ("embed", {"input": "x"}),
    ):
        told = ask(client, way, model=name, **body)
        assert (told.status_code, said in told.json()["error"]) == (status, True)


@pytest.mark.parametrize("name", [str(LLAMA), "../fidelity/llama.gguf", "/etc/passwd", "~/x.gguf"])
def test_paths_are_opened_only_with_leave(client: TestClient, name: str, manager: FakeManager) -> None:
    told = ask(client, "generate", model=name, prompt="x")
    assert told.status_code == 404
    assert "--allow-paths" in told.json()["error"]
    assert not manager.uses


def test_with_leave(store: OllamaStore, manager: FakeManager) -> None:
    library = Library(LibrarySettings(ollama=(store.root,)), allow_paths=True)
    with TestClient(
        create_app(Services(Models(library=library), manager, ServerSettings())), base_url="http://localhost"
    ) as client:
        assert ask(client, "generate", model=str(LLAMA), prompt="x").status_code == 200
        assert manager.uses[0][0].path == LLAMA
        assert [model["name"] for model in client.get("/api/ps").json()["models"]] == ["llama:latest"]
        assert ask(client, "generate", model="/etc/passwd", prompt="x").status_code == 500
        assert ask(client, "generate", model="/etc/nosuch", prompt="x").status_code == 404


def test_settings() -> None:
    assert ServerSettings.read({"LOOM_ALLOW_PATHS": "1"}, {}).allow_paths
    assert not ServerSettings.read({"LOOM_ALLOW_PATHS": "no"}, {}).allow_paths
    assert not ServerSettings.read({}, {"allow_paths": None}).allow_paths


# -- the whole way ----------------------------------------------------------------------------------------------


@pytest.fixture
def address(library: Library, store: OllamaStore) -> Iterator[str]:
    """A server with a store, and processes that run its models."""
    HuggingFaceCache(store.root.parent / "hub").add("org/Tiny-GGUF", "tiny-Q4_0.gguf", FIDELITY / "llama-q4_0.gguf")
    app = create_app(Services(Models(library=library), Manager(Runner.start), ServerSettings(ctx=96, parallel=1)))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    yield "http://{}:{}".format(*listening.getsockname())
    server.should_exit = True
    thread.join(30)
    listening.close()


def test_ollamas_client_with_a_store(address: str) -> None:
    options = {"temperature": 0, "num_predict": 4}
    with ollama.Client(address) as client:
        names = {model.model for model in client.list().models}
        assert {"demo:latest", "full:latest", "hf.co/org/Tiny-GGUF:Q4_0"} < names
        shown = client.show("hf.co/org/tiny-gguf")
        assert shown.details is not None
        assert shown.details.quantization_level == "Q4_0"
        told = client.generate("plain", "Once", raw=True, options=options)
        with Model(LLAMA, n_ctx=96) as model:
            assert told.response == "".join(step.text for step in model.generate("Once", max_tokens=4))
        assert client.generate("HF.co/org/tiny-gguf:q4_0", "Once", raw=True, options=options).done
        said = client.chat("full", CHAT, options=options)
        assert said.message.content
        # Be brief., Hello, Hi., hi: the template has all of them.
        assert (said.prompt_eval_count or 0) > (client.chat("demo", CHAT, options=options).prompt_eval_count or 0)
        for name in ("nosuch", "../full", "full:other"):
            with pytest.raises(ollama.ResponseError) as caught:
                client.generate(name, "x")
            assert caught.value.status_code == 404
        for name, said_of_it in (("adapted", "LoRA"), ("gemma3", "Ollama's own engine.*hf.co")):
            with pytest.raises(ollama.ResponseError, match=said_of_it) as caught:
                client.generate(name, "x", raw=True)
            assert caught.value.status_code == 400


def test_serve_takes_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nosuch", "--port", "0"]) == 1
    assert "no model 'nosuch'" in capsys.readouterr().err
