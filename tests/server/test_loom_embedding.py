"""The Loom's ways to embed: fields, defaults, keys and errors, with a runner that has no model."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from fakes import N_EMBD, FakeManager, FakeRunner
from starlette.testclient import TestClient

from loom_gguf import errors
from loom_gguf.requests import Embedded, EmbedRequest, TextPrompt

VECTOR = np.arange(1, N_EMBD + 1, dtype=np.float32)  # of the fake runner, not normalised


def post(client: TestClient, path: str, **fields: Any) -> Any:
    return client.post(path, json={"model": "Bert", "text": "a", "texts": ["a", "b", "c"]} | fields)


def test_embed(client: TestClient, runner: FakeRunner, manager: FakeManager) -> None:
    told = post(client, "/embed").json()
    assert told["metadata"].pop("inference_time_ms") >= 0
    assert told == {
        "embedding": VECTOR.tolist(),
        "shape": [N_EMBD],
        "metadata": {"pooling": "last_token", "input_tokens": 3, "model_id": "Bert"},
    }
    assert runner.embeds == [EmbedRequest(TextPrompt("a"), "last_token", False, "final", False)]
    assert manager.uses[0][1] is None


@pytest.mark.parametrize("pooling", ["last_token", "mean", "first_token"])
def test_fields_arrive(client: TestClient, runner: FakeRunner, pooling: str) -> None:
    told = post(client, "/embed", pooling=pooling, normalize=True, loader="sentence_transformers").json()
    assert np.linalg.norm(told["embedding"]) == pytest.approx(1)
    assert told["metadata"]["pooling"] == pooling
    assert (runner.embeds[0].pooling, runner.embeds[0].normalize) == (pooling, True)


def test_embed_batch(client: TestClient, runner: FakeRunner, manager: FakeManager) -> None:
    texts = ["x" * n for n in (1, 500, 0, 30, 2)]
    told = post(client, "/embed/batch", texts=texts).json()
    assert told.pop("total_time_ms") >= 0
    assert told == {"embeddings": [VECTOR.tolist()] * 5, "shapes": [[N_EMBD]] * 5, "texts_processed": 5}
    assert [request.prompt.text for request in runner.embeds] == texts
    assert len(manager.uses) == 1


def test_analyze(client: TestClient, runner: FakeRunner) -> None:
    told = post(client, "/analyze").json()
    assert (told["shape"], told["embedding_shape"], told["layer"], told["dtype"]) == ([8], [8], -1, "float32")
    assert (told["mean"], told["min"], told["max"]) == (4.5, 1, 8)
    assert told["std"] == pytest.approx(21**0.5 / 2)
    assert told["l2_norm"] == pytest.approx(204**0.5)
    assert [told[f"percentile_{p}"] for p in (25, 50, 75)] == [2.75, 4.5, 6.25]
    assert told["sparsity"] == 0
    assert told["metadata"].items() <= told.items()  # as The Loom sends it, and as it documents it
    assert set(told["metadata"]) == {"pooling", "inference_time_ms", "input_tokens", "model_id"}


def test_sparsity(client: TestClient, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def embed(request: EmbedRequest) -> Embedded:
        return Embedded(np.array([0, 9e-7, -9e-7, 2e-6], np.float32), 1)

    monkeypatch.setattr(runner, "embed", embed)
    assert post(client, "/analyze").json()["sparsity"] == 0.75


@pytest.mark.parametrize("path", ["/embed", "/embed/batch", "/analyze"])
@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"model": None}, "model"),
        ({"pooling": "max"}, "pooling"),
        ({"pooling": None}, "pooling"),
        ({"normalize": "yes"}, "normalize"),
        ({"text": 5, "texts": 5}, "text"),
        ({"text": None, "texts": []}, "text"),
        ({"text": ["a"], "texts": ["a"] * 101}, "text"),
    ],
)
def test_wrong_fields(client: TestClient, path: str, fields: dict[str, Any], where: str) -> None:
    told = post(client, path, **fields)
    assert told.status_code == 422
    assert told.json()["detail"][0]["loc"][1].startswith(where)


@pytest.mark.parametrize("path", ["/embed", "/embed/batch", "/analyze"])
@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.PromptTooLongError("5 of 4"), 400, "the input length exceeds the context length: 5 of 4"),
        (
            errors.EngineBusyError("queue full"),
            503,
            "server busy, please try again.  maximum pending requests exceeded: queue full",
        ),
        (ZeroDivisionError("secret"), 500, "internal server error: ZeroDivisionError"),
    ],
)
def test_errors(
    client: TestClient, runner: FakeRunner, manager: FakeManager, path: str, error: Exception, status: int, text: str
) -> None:
    runner.fails_before = error
    told = post(client, path)
    assert told.status_code == status
    assert told.json()["detail"].startswith(("texts[0]: " if path.endswith("batch") else "") + text)
    assert manager.in_use == 0


def test_no_such_model(client: TestClient) -> None:
    for path in ("/embed", "/embed/batch", "/analyze"):
        assert post(client, path, model="nosuch").json() == {"detail": "model 'nosuch' not found"}


@pytest.mark.parametrize("path", ["/embed", "/embed/batch", "/analyze"])
def test_vectors_that_are_none(
    client: TestClient, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def embed(request: EmbedRequest) -> Embedded:
        return Embedded(np.array([np.nan, 1], np.float32), 1)

    monkeypatch.setattr(runner, "embed", embed)
    told = post(client, path)
    assert (told.status_code, told.json()) == (500, {"detail": "the embedding has NaN or infinite values"})


def test_a_batch_is_bounded_and_in_order(make_client: Any, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    async def embed(request: EmbedRequest) -> Embedded:
        nonlocal running, most
        running += 1
        most = max(most, running)
        n = int(request.prompt.text)  # type: ignore[union-attr]
        for _ in range(30 - n):
            await asyncio.sleep(0)
        running -= 1
        if n == 20:
            raise errors.TokenError("a bad token")
        return Embedded(np.array([n], np.float32), 1)

    monkeypatch.setattr(runner, "embed", embed)
    client = make_client(parallel=3)
    told = post(client, "/embed/batch", texts=[str(n) for n in range(10)]).json()
    assert told["embeddings"] == [[n] for n in range(10)]
    assert most == 3
    told = post(client, "/embed/batch", texts=["1", "20", "2"])
    assert (told.status_code, told.json()) == (400, {"detail": "texts[1]: a bad token"})
