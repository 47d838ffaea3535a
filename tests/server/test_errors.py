"""What is refused and what fails: status and text, before the first byte and after it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asking import generate, lines
from conftest import MakeClient
from fakes import FakeManager, FakeRunner
from starlette.testclient import TestClient

from loom_gguf import errors


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("generate", b"", 400, "missing request body"),
        ("generate", b"{", 400, "the request body is not JSON"),
        ("generate", b"[]", 400, "the request body must be a JSON object"),
        ("generate", {}, 400, "model is required"),
        ("chat", {"model": ""}, 400, "model is required"),
        ("show", {}, 400, "model is required"),
        ("embed", {"model": "bert", "input": 5}, 400, "invalid input type"),
        ("embed", {"model": "bert", "input": ["a", 5]}, 400, "invalid input type"),
        ("embed", {"model": "bert", "input": "a", "dimensions": -1}, 400, "dimensions"),
        ("generate", {"model": "nosuch", "prompt": "x"}, 404, "model 'nosuch' not found"),
        ("show", {"model": "nosuch"}, 404, "model 'nosuch' not found"),
        ("generate", {"model": "plain", "prompt": 5}, 400, "prompt: "),
        ("generate", {"model": "plain", "prompt": "x", "stream": "no"}, 400, "stream: "),
        ("generate", {"model": "plain", "prompt": "x", "options": {"top_k": "4"}}, 400, "option top_k: "),
        ("generate", {"model": "plain", "prompt": "x", "options": {"top_p": 3}}, 400, "top_p must be"),
        ("generate", {"model": "plain", "prompt": "x", "options": {"num_ctx": 0}}, 400, "option num_ctx: "),
        ("generate", {"model": "plain", "prompt": "x", "keep_alive": "soon"}, 400, "keep_alive: 'soon'"),
        ("generate", {"model": "plain", "prompt": "x", "keep_alive": True}, 400, "keep_alive"),
        ("generate", {"model": "plain", "prompt": "x", "top_logprobs": 21}, 400,
         "top_logprobs must be between 0 and 20"),
        ("generate", {"model": "plain", "prompt": "x", "raw": True, "system": "s"}, 400,
         "raw mode does not support template, system, or context"),
        ("generate", {"model": "plain", "prompt": "x", "context": [1]}, 400, "context is not supported"),
        ("generate", {"model": "plain", "prompt": "x", "suffix": "y"}, 400, '"plain" does not support insert'),
        ("generate", {"model": "plain", "prompt": "x", "images": ["aa"]}, 400, '"plain" does not support images'),
        ("generate", {"model": "plain", "prompt": "x", "template": "{{ .Prompt }}"}, 400, "template: this is a Go"),
        ("generate", {"model": "plain", "prompt": "x", "template": "{{- if .System }}"}, 400, "template: this is a Go"),
        ("generate", {"model": "plain", "prompt": "x", "format": "xml"}, 400, 'invalid format: "xml"'),
        ("generate", {"model": "plain", "prompt": "x", "think": True}, 400, '"plain" does not support thinking'),
        ("chat", {"model": "plain", "messages": [{"role": "user", "content": "x"}]}, 400,
         '"plain" does not support chat'),
        ("chat", {"model": "demo", "messages": [{"content": "x"}]}, 400, 'messages[0] needs a "role"'),
        ("chat", {"model": "demo", "messages": [{"role": "user", "content": "x", "images": ["a"]}]}, 400,
         "messages[0] has images"),
    ],
)  # fmt: skip
def test_refusals(client: TestClient, path: str, body: Any, status: int, text: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(f"/api/{path}", content=raw)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"].startswith(text)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.EngineBusyError("9 wait"), 503, "server busy, please try again.  maximum pending requests exceeded"),
        (errors.ModelClosedError("stopping"), 503, "stopping"),
        (errors.PromptTooLongError("5 of 4"), 400, "the input length exceeds the context length"),
        (errors.EmptyPromptError("empty"), 400, "empty"),
        (errors.GrammarError("bad"), 400, "bad"),
        (errors.ChatTemplateError("bad"), 400, "bad"),
        (errors.RunnerDiedError("died"), 500, "died"),
        (errors.RowMismatchError("rows"), 500, "rows"),
        (errors.DecodeError("decode"), 500, "decode"),
        (errors.NotGenerativeError("encoder"), 400, '"plain" does not support generate'),
        (ZeroDivisionError("secret"), 500, "internal server error: ZeroDivisionError; the server's log tells more"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_before_the_first_byte(
    client: TestClient, runner: FakeRunner, manager: FakeManager, error: Exception, status: int, text: str, stream: bool
) -> None:
    runner.fails_before = error
    answer = generate(client, stream=stream)
    assert (answer.status_code, answer.json()["error"]) == (status, text)
    assert manager.in_use == 0


def test_errors_of_loading(client: TestClient, manager: FakeManager) -> None:
    manager.fails = errors.ModelLoadError("no memory")
    assert generate(client).status_code == 500
    assert generate(client, prompt="").json() == {"error": "no memory"}
    assert client.post("/api/embed", json={"model": "bert", "input": "a"}).status_code == 500


@pytest.mark.parametrize("error", [errors.RunnerDiedError("it died"), errors.ModelLoadError("it died")])
def test_errors_after_the_first_byte(
    client: TestClient, runner: FakeRunner, manager: FakeManager, error: Exception
) -> None:
    runner.fails_after, runner.error = 2, error
    told = lines(generate(client))
    assert [line.get("response") for line in told] == ["One", " fox", None]
    assert told[-1] == {"error": "it died"}
    assert manager.in_use == 0
    whole = generate(client, stream=False)
    assert (whole.status_code, whole.json()) == (500, {"error": "it died"})


def test_every_error_of_the_tree_has_a_status_and_words_in_every_api() -> None:
    from loom_gguf.server.errors import told

    for name in errors.__all__:
        error = getattr(errors, name)("text")
        for dialect, words in (
            ("ollama", lambda body: body["error"]),
            ("loom", lambda body: body["detail"]),
            ("openai", lambda body: body["error"]["message"]),
        ):
            status, body = told(error, dialect)
            assert status in (400, 403, 404, 500, 502, 503, 507), name
            assert words(body)


def test_a_client_that_goes_while_it_sends(make_client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    heard = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(heard)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/generate", "headers": [(b"host", b"localhost")]}
    asyncio.run(make_client().app({**scope, "query_string": b""}, receive, send))
    assert sent[0]["status"] == 499
    assert not caplog.records
