"""Server-sent events as an independent client reads them, over a real connection."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import httpx2
import numpy as np
import pytest
from fakes import FakeManager, FakeRunner, row
from httpx_sse import EventSource, ServerSentEvent
from starlette.testclient import TestClient
from test_client import address  # noqa: F401

from loom_gguf import errors
from loom_gguf.jobs import Token


def events(address: str, **fields: Any) -> list[ServerSentEvent]:  # noqa: F811
    body = {"model": "plain", "prompt": "hi"} | fields
    with httpx2.Client() as client, client.stream("POST", f"{address}/generate/stream", json=body) as response:
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-cache"
        return list(EventSource(response).iter_sse())  # type: ignore[arg-type]  # which asks for a text/event-stream


def test_tokens_and_the_end(address: str, runner: FakeRunner) -> None:  # noqa: F811
    told = events(address)
    assert [event.event for event in told] == ["token"] * 5 + ["done"]
    tokens = [event.json() for event in told[:-1]]
    assert [token["token"] for token in tokens] == ["One", " fox", "", " é", "."]
    assert [token["token_id"] for token in tokens] == [50, 51, 52, 53, 54]
    assert [(token["is_finished"], token["finish_reason"]) for token in tokens] == [(False, None)] * 4 + [
        (True, "stop")
    ]
    done = told[-1].json()
    assert set(done) == {"text", "token_count", "token_ids", "metadata"}
    assert (done["text"], done["token_count"], done["token_ids"]) == ("One fox é.", 5, [50, 51, 52, 53, 54])
    assert (done["metadata"]["input_tokens"], done["metadata"]["finish_reason"]) == (3, "stop")
    assert runner.requests[0].capture is None  # here, hidden states are asked for


def test_hidden_states_come_last(address: str) -> None:  # noqa: F811
    done = events(address, return_hidden_states=True, return_full_sequence=True, hidden_state_layers=[0, -1])[-1].json()
    assert list(done["hidden_states"]) == ["0", "-1"]
    assert np.array_equal(np.float32(done["hidden_states"]["0"]["data"]), row("embd", 6))
    assert done["sequence_hidden_states"]["-1"]["shape"] == [5, 8]


def test_text_with_line_ends_is_one_event(address: str, runner: FakeRunner) -> None:  # noqa: F811
    runner.texts = ["a\n\nevent: done\ndata: {}\n\n", "\r\nb\u2028"]
    told = events(address)
    assert [event.event for event in told] == ["token", "token", "done"]
    assert [event.json()["token"] for event in told[:2]] == runner.texts
    assert told[2].json()["text"] == "".join(runner.texts)


def test_an_error_after_the_first_token(address: str, runner: FakeRunner, manager: FakeManager) -> None:  # noqa: F811
    runner.fails_after, runner.error = 2, errors.RunnerDiedError("it died")
    told = events(address)
    assert [event.event for event in told] == ["token", "token", "error"]
    assert told[-1].json() == {"error": "it died"}
    assert manager.in_use == 0


def test_an_error_before_it_has_a_status(client: TestClient, runner: FakeRunner) -> None:
    runner.fails_before = errors.PromptTooLongError("5 of 4")
    told = client.post("/generate/stream", json={"model": "plain", "prompt": "x"})
    assert (told.status_code, told.headers["content-type"]) == (400, "application/json; charset=utf-8")
    assert told.json()["detail"].endswith("5 of 4")


class Endless(FakeRunner):
    """Says one token, and then nothing more."""

    async def generate(self, request: Any) -> Any:
        async with aclosing(super().generate(request)) as told:
            async for event in told:
                yield event
                if isinstance(event, Token):
                    await asyncio.Event().wait()


@pytest.mark.parametrize("path", ["/generate/stream", "/generate", "/generate/batch"])
def test_who_hangs_up_frees_the_sequence(address: str, manager: FakeManager, path: str) -> None:  # noqa: F811
    manager.runner = runner = Endless()
    body = json.dumps({"model": "plain", "prompt": "hi", "prompts": ["hi", "ho"]}).encode()
    host, _, port = address.removeprefix("http://").partition(":")
    n = 2 if path.endswith("batch") else 1
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % path.encode())
        connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        if path == "/generate/stream":
            received = b""
            while b"event: token" not in received:
                received += connection.recv(4096)
        _wait_until(lambda: len(runner.requests) == n)
    _wait_until(lambda: runner.closed == n and not manager.in_use)


def _wait_until(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not ready() and time.monotonic() < until:
        time.sleep(0.01)
    assert ready()
