"""Ollama's own Python client, against a real server with a runner that has no model."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from fakes import FakeManager, FakeRunner
from serving import serving, until

from loom_gguf.server.models import Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings


@pytest.fixture
def address(manager: FakeManager, folder: Path) -> Iterator[str]:
    with serving(Services(Models(folder), manager, ServerSettings())) as address:
        yield address
    assert manager.closed


@pytest.fixture
def client(address: str) -> Iterator[ollama.Client]:
    with ollama.Client(address) as client:
        yield client


MESSAGES = [{"role": "user", "content": "hi"}]


def test_generate(client: ollama.Client) -> None:
    told = client.generate("plain", "hi", options={"seed": 1, "num_predict": 3}, keep_alive="5m")
    assert (told.response, told.done, told.done_reason) == ("One fox", True, "stop")
    assert told.context == [7, 8, 9, 50, 51, 52]
    parts = list(client.generate("plain", "hi", stream=True))
    assert "".join(part.response for part in parts) == "One fox é."
    assert [part.done for part in parts] == [False] * 4 + [True]


def test_texts_that_look_like_the_ends_of_lines(client: ollama.Client, runner: FakeRunner) -> None:
    runner.texts = ["a\n\r\n", "\u2028b\u2029", "\x85\x0b\x0c\x1c\x1e"]
    parts = list(client.generate("plain", "hi", stream=True))
    assert [part.response for part in parts[:3]] == runner.texts


def test_chat(client: ollama.Client) -> None:
    assert client.chat("demo", MESSAGES).message.content == "One fox é."
    parts = list(client.chat("demo", MESSAGES, stream=True, format="json"))
    assert "".join(part.message.content or "" for part in parts) == "One fox é."


def test_calls_of_tools(client: ollama.Client, runner: FakeRunner) -> None:
    def look(at: int) -> int:
        """Look.

        Args:
            at: where
        """
        return at

    runner.texts = ['{"name": "look", "parameters": {"at": 1}}']
    (call,) = client.chat("demo", MESSAGES, tools=[look]).message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("look", {"at": 1})


def test_embed(client: ollama.Client) -> None:
    assert len(client.embed("bert", ["a", "b"]).embeddings) == 2
    assert list(client.embeddings("bert", "a").embedding) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_lists(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models][-1] == "plain:latest"
    assert client.ps().models == []
    client.generate("plain", "")
    (model,) = client.ps().models
    assert model.name == "plain:latest"
    assert model.expires_at is not None
    shown = client.show("plain")
    assert shown.details is not None
    assert shown.details.family == "llama"
    assert shown.capabilities == ["completion"]


def test_errors(client: ollama.Client, runner: FakeRunner) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nosuch' not found") as caught:
        client.generate("nosuch", "hi")
    assert caught.value.status_code == 404
    runner.fails_after = 1
    with pytest.raises(ollama.ResponseError, match="internal server error"):
        list(client.generate("plain", "hi", stream=True))
    with pytest.raises(ollama.ResponseError, match="not supported"):
        client.pull("plain")


def test_async(address: str) -> None:
    async def talk() -> None:
        client: Any = ollama.AsyncClient(address)
        told, chatted, embedded = await asyncio.gather(
            client.generate("plain", "hi"), client.chat("demo", MESSAGES), client.embed("bert", "a")
        )
        assert told.response == chatted.message.content == "One fox é."
        assert len(embedded.embeddings) == 1
        parts = [part.response async for part in await client.generate("plain", "hi", stream=True)]
        assert "".join(parts) == "One fox é."
        parts = [part.message.content async for part in await client.chat("demo", MESSAGES, stream=True)]
        assert "".join(parts) == "One fox é."
        assert len((await client.list()).models) == 4
        assert (await client.show("demo")).template
        assert len((await client.ps()).models) == 3
        await client.close()

    asyncio.run(talk())


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_the_runner(address: str, runner: FakeRunner, manager: FakeManager, stream: bool) -> None:
    runner.hold = asyncio.Event()
    body = b'{"model": "plain", "prompt": "hi", "stream": %s}' % (b"true" if stream else b"false")
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        until(lambda: manager.in_use == 1)
    until(lambda: manager.in_use == 0 and runner.closed == 1)


def test_who_goes_away_in_the_middle_frees_the_runner(
    address: str, runner: FakeRunner, manager: FakeManager, client: ollama.Client
) -> None:
    runner.texts = ["x"] * 10_000_000
    for part in client.generate("plain", "hi", stream=True):
        assert part.response == "x"
        break
    client.close()
    until(lambda: manager.in_use == 0 and runner.closed == 1)
