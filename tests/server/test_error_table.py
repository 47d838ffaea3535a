"""Every error that Ollama's API and `expose_hidden` promise, over a socket and as Ollama's own client raises it.

Before the first byte an error is the status and the whole body; after it the status has been 200 already, and the error
is one more line.
"""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ollama
import pytest
from conftest import FIDELITY
from fakes import N_LAYER, FakeManager, FakeRunner
from serving import Stream, serving

from loom_gguf import errors
from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings
from loom_gguf.states import States

HEAD = "Invalid hidden state configuration: "
BUSY = "server busy, please try again.  maximum pending requests exceeded"
USER = [{"role": "user", "content": "hi"}]


@dataclass
class House:
    """One server for all tests of this file."""

    address: str
    runner: FakeRunner
    manager: FakeManager


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("models")
    for name, source in (("plain", "llama"), ("bert", "bert")):
        shutil.copy(FIDELITY / f"{source}.gguf", folder / f"{name}.gguf")
    runner = FakeRunner()
    manager = FakeManager(runner)
    with serving(Services(Models(folder), manager, ServerSettings())) as address:
        yield House(address, runner, manager)


@pytest.fixture
def runner(house: House) -> FakeRunner:
    vars(house.runner).update(vars(FakeRunner()))
    return house.runner


@pytest.fixture
def manager(house: House) -> FakeManager:
    return house.manager


@pytest.fixture
def address(house: House, runner: FakeRunner) -> str:
    return house.address


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[ollama.Client]:
    with ollama.Client(house.address) as client:
        yield client


def refused(address: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of an answer that is no stream; bytes are sent as they are."""
    host, _, port = address.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


# -- before the first byte: what requests get wrong ---------------------------------------------------------------

REFUSALS: dict[str, tuple[str, Any, int, str]] = {
    "no body": ("generate", b"", 400, "missing request body"),
    "no body for chat": ("chat", b"  ", 400, "missing request body"),
    "no body for embed": ("embed", b"", 400, "missing request body"),
    "no model": ("generate", {"prompt": "x"}, 400, "model is required"),
    "no model for chat": ("chat", {"messages": USER}, 400, "model is required"),
    "no model for embed": ("embed", {"input": "x"}, 400, "model is required"),
    "no model for embeddings": ("embeddings", {"prompt": "x"}, 400, "model is required"),
    "no model for show": ("show", {}, 400, "model is required"),
    "input": ("embed", {"model": "bert", "input": {"a": 1}}, 400, "invalid input type"),
    "inputs": ("embed", {"model": "bert", "input": [["a"]]}, 400, "invalid input type"),
    "logprobs": ("generate", {"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    "negative logprobs": ("chat", {"model": "demo", "messages": USER, "top_logprobs": -1}, 400,
                          "top_logprobs must be between 0 and 20"),
    "raw system": ("generate", {"raw": True, "system": "s"}, 400,
                   "raw mode does not support template, system, or context"),
    "raw template": ("generate", {"raw": True, "template": "t"}, 400,
                     "raw mode does not support template, system, or context"),
    "raw context": ("generate", {"raw": True, "context": [1]}, 400,
                    "raw mode does not support template, system, or context"),
    "chat": ("chat", {"model": "plain", "messages": USER}, 400, '"plain" does not support chat'),
    "thinking": ("generate", {"think": True}, 400, '"plain" does not support thinking'),
    "thinking in chat": ("chat", {"model": "demo", "messages": USER, "think": "high"}, 400,
                         '"demo" does not support thinking'),
    "not found": ("generate", {"model": "Nosuch:7b"}, 404, "model 'Nosuch:7b' not found"),
    "not found for chat": ("chat", {"model": "nosuch", "messages": USER}, 404, "model 'nosuch' not found"),
    "not found for embed": ("embed", {"model": "nosuch", "input": "x"}, 404, "model 'nosuch' not found"),
    "not found for show": ("show", {"model": "nosuch"}, 404, "model 'nosuch' not found"),
    # of expose_hidden
    "negative layer": ("generate", {"expose_hidden": {"layers": [0, -1]}}, 400, HEAD + "layers must be non-negative"),
    "negative layer, spelt otherwise": ("generate", {"hidden_states": {"layers": [-3]}}, 400,
                                        HEAD + "layers must be non-negative"),
    "large layer": ("generate", {"expose_hidden": {"layers": [N_LAYER]}}, 400,
                    HEAD + f"there is no layer {N_LAYER}; this model's layers are 0 to {N_LAYER - 1}"),
    "in chat": ("chat", {"model": "demo", "messages": USER, "expose_hidden": {"layers": [-1]}}, 400,
                HEAD + "layers must be non-negative"),
    "compression": ("generate", {"expose_hidden": {"compression": "zip"}}, 400, HEAD + "compression: "),
    "encoding": ("generate", {"expose_hidden": {"encoding": "hex"}}, 400, HEAD + "encoding: "),
    "scale_block": ("generate", {"expose_hidden": {"scale_block": 32}}, 400, HEAD + "scale_block belongs to int8"),
    "unknown field": ("generate", {"expose_hidden": {"layer": 1}}, 400, HEAD + "there is no field 'layer'"),
    "no object": ("generate", {"expose_hidden": "all"}, 400, HEAD + "it must be an object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("stream", [True, False])
def test_refused_before_the_first_byte(
    address: str, manager: FakeManager, runner: FakeRunner, case: str, stream: bool
) -> None:
    way, body, status, text = REFUSALS[case]
    if isinstance(body, dict):
        named = "no model" in case or "model" in body
        body = ({} if named else {"model": "plain", "prompt": "x"}) | {"stream": stream} | body
    told = refused(address, f"/api/{way}", body)
    assert told[0] == status
    assert list(told[1]) == ["error"]
    if status == 400 and (text.startswith(HEAD) or text.endswith("chat")):  # a reason may follow
        assert told[1]["error"].startswith(text)
    else:
        assert told[1]["error"] == text
    assert (manager.in_use, runner.requests) == (0, [])


def test_a_model_that_only_reads(address: str, runner: FakeRunner) -> None:
    runner.encoder = True
    for stream in (True, False):
        told = refused(address, "/api/generate", {"model": "bert", "prompt": "x", "stream": stream})
        assert told == (400, {"error": '"bert" does not support generate'})


# -- what goes wrong in a model's process -------------------------------------------------------------------------

FAILURES: dict[str, tuple[Exception, int, str]] = {
    "too long": (errors.PromptTooLongError("5 of 4"), 400, "the input length exceeds the context length"),
    "queue full": (errors.EngineBusyError("64 wait"), 503, BUSY),
    "stopping": (errors.ModelClosedError("the server is stopping"), 503, "the server is stopping"),
    "died": (errors.RunnerDiedError("the process ended (SIGKILL)"), 500, "the process ended (SIGKILL)"),
    "decode": (errors.DecodeError("llama.cpp says no"), 500, "llama.cpp says no"),
    "rows": (errors.RowMismatchError("3 rows for 4 tokens"), 500, "3 rows for 4 tokens"),
    "node": (errors.UnknownNodeError("there is no node 'x'"), 400, HEAD + "there is no node 'x'"),
    "layer": (errors.LayerRangeError("there is no layer 9"), 400, HEAD + "there is no layer 9"),
    "unsupported": (errors.CaptureUnsupportedError("no names"), 400,
                    "Hidden state capture not supported for this model type"),
    "memory": (errors.CaptureMemoryError("9 GB"), 500, "Failed to allocate memory for hidden state capture"),
    "attention": (errors.AttentionUnsupportedError("flash"), 400, HEAD + "attention weights"),
    "unforeseen": (ZeroDivisionError("secret"), 500, "internal server error: ZeroDivisionError; the server's log"),
}  # fmt: skip

Way = tuple[str, dict[str, Any]]
WAYS: tuple[Way, ...] = (
    ("/api/generate", {"model": "plain", "prompt": "x"}),
    ("/api/chat", {"model": "demo", "messages": USER}),
)


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize(("path", "body"), WAYS)
def test_failures_before_the_first_byte(
    address: str, runner: FakeRunner, manager: FakeManager, path: str, body: Any, case: str
) -> None:
    runner.fails_before, status, text = FAILURES[case]
    for stream in (True, False):
        told = refused(address, path, body | {"stream": stream, "expose_hidden": {}})
        assert told[0] == status
        assert told[1]["error"].startswith(text)
        assert told[1].get("detail") == detail(case)
    assert manager.in_use == 0


def detail(case: str) -> str | None:
    """What stands beside a text that is fixed."""
    fixed = ("too long", "queue full", "unsupported", "memory", "attention")
    return str(FAILURES[case][0]) if case in fixed else None


@pytest.mark.parametrize("case", FAILURES)
@pytest.mark.parametrize(("path", "body"), WAYS)
def test_failures_after_the_first_byte(
    address: str, runner: FakeRunner, manager: FakeManager, path: str, body: Any, case: str
) -> None:
    runner.fails_after = 2
    runner.error, status, text = FAILURES[case]
    with Stream(address, path, body | {"expose_hidden": {"layers": [0]}}) as stream:
        assert (stream.status, stream.content_type) == (200, "application/x-ndjson")
        first, second, last, *more = stream
    assert [r["token_index"] for line in (first, second) for r in line["hidden_states"]] == [0, 1]
    assert last["error"].startswith(text)
    assert set(last) == {"error"} | ({"detail"} if detail(case) else set())
    assert more == []
    # Where the answer is one piece, nothing was sent before.
    assert refused(address, path, body | {"stream": False})[0] == status
    assert manager.in_use == 0
    assert runner.closed == 2


def test_a_prompt_that_fails_after_some_of_its_rows(address: str, runner: FakeRunner) -> None:
    runner.fails_after, runner.pieces, runner.prompt = 0, 2, [7, 8, 9, 10, 11]
    runner.error, _, text = FAILURES["memory"]
    body = {"model": "plain", "prompt": "x", "expose_hidden": {"layers": [0], "prompt": True}}
    with Stream(address, "/api/generate", body) as stream:
        *rows, last = stream
        assert stream.status == 200
    assert [record["position"] for line in rows for record in line["hidden_states"]] == [0, 2]
    assert last["error"] == text


def test_what_json_cannot_hold(address: str, runner: FakeRunner) -> None:
    """In the first row it is a status, in a later one a line; base64 holds it."""

    def spoil(states: States, at: int) -> States:
        if states.positions[0] != at:
            return states
        arrays = {key: values.array.copy() for key, values in states.values_by_key.items()}
        arrays["l_out-0"].flat[0] = np.nan
        return states.with_numbers(arrays)

    body = {"model": "plain", "prompt": "x", "expose_hidden": {"layers": [0]}}
    runner.change = lambda states: spoil(states, 2)
    status, told = refused(address, "/api/generate", body)
    assert status == 400
    assert told["error"].startswith(HEAD + "l_out-0 has NaN")
    assert "base64" in told["error"]
    runner.change = lambda states: spoil(states, 4)
    with Stream(address, "/api/generate", body) as stream:
        lines = list(stream)
        assert (stream.status, len(lines), list(lines[-1])) == (200, 3, ["error"])
        assert lines[-1]["error"] == told["error"]
    with Stream(address, "/api/generate", body | {"expose_hidden": {"layers": [0], "encoding": "base64"}}) as stream:
        assert [*stream][-1]["done"] is True


# -- as Ollama's client raises them --------------------------------------------------------------------------------

Ask = Callable[[ollama.Client], Any]
ASKED: dict[str, tuple[Ask, int, str]] = {
    "not found": (lambda c: c.chat("nosuch", USER), 404, "model 'nosuch' not found"),
    "not found, streamed": (lambda c: list(c.generate("nosuch", "x", stream=True)), 404, "model 'nosuch' not found"),
    "show": (lambda c: c.show("nosuch"), 404, "model 'nosuch' not found"),
    "embed": (lambda c: c.embed("nosuch", "x"), 404, "model 'nosuch' not found"),
    "raw": (lambda c: c.generate("plain", "x", raw=True, system="s"), 400,
            "raw mode does not support template, system, or context"),
    "chat": (lambda c: c.chat("plain", USER), 400, '"plain" does not support chat: its file carries no chat template'),
    "thinking": (lambda c: c.chat("demo", USER, think=True), 400, '"demo" does not support thinking'),
    "thinking, streamed": (lambda c: list(c.chat("demo", USER, think=True, stream=True)), 400,
                           '"demo" does not support thinking'),
    "logprobs": (lambda c: c.generate("plain", "x", logprobs=True, top_logprobs=21), 400,
                 "top_logprobs must be between 0 and 20"),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_ollamas_client_raises_what_is_refused(client: ollama.Client, runner: FakeRunner, case: str) -> None:
    ask, status, text = ASKED[case]
    with pytest.raises(ollama.ResponseError) as caught:
        ask(client)
    assert (caught.value.status_code, caught.value.error) == (status, text)


@pytest.mark.parametrize("case", FAILURES)
def test_ollamas_client_raises_what_fails(client: ollama.Client, runner: FakeRunner, case: str) -> None:
    error, status, text = FAILURES[case]
    runner.fails_before = error
    for ask in (
        lambda: client.generate("plain", "x"),
        lambda: list(client.generate("plain", "x", stream=True)),
        lambda: client.chat("demo", USER),
        lambda: client.embed("bert", "x"),
        lambda: client.embeddings("bert", "x"),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == status
        assert caught.value.error.startswith(text)
    runner.fails_before, runner.fails_after, runner.error = None, 2, error
    for parts in (client.generate("plain", "x", stream=True), client.chat("demo", USER, stream=True)):
        assert [next(parts).done, next(parts).done] == [False, False]
        with pytest.raises(ollama.ResponseError) as caught:
            next(parts)
        assert caught.value.error.startswith(text)
