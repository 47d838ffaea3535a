"""Prometheus's numbers after many requests of all kinds at the same time: they add up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import httpx2
from fakes import FakeManager, FakeRunner
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from loom_gguf import errors

N = 200


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels' values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Moody(FakeRunner):
    """Fails where the prompt says so, and gives way to others in the middle of everything."""

    async def generate(self, request: Any) -> Any:
        text = request.prompt.text
        if "early" in text:
            raise errors.EngineBusyError("busy")
        async for event in super().generate(request):
            await asyncio.sleep(0)
            if "late" in text and getattr(event, "index", 0) == 2:
                raise errors.RunnerDiedError("died")
            yield event

    async def embed(self, request: Any) -> Any:
        await asyncio.sleep(0)
        if "early" in request.prompt.text:
            raise errors.EngineBusyError("busy")
        return await super().embed(request)


def test_they_add_up(client: TestClient, manager: FakeManager) -> None:
    manager.runner = Moody()
    rng = random.Random(5)
    wanted: Counter[tuple[str, str, int]] = Counter()
    n_tokens = n_embedded = n_finished = n_embeddings = 0
    asked: list[tuple[str, str, dict[str, Any] | None, int]] = []
    for _ in range(N):
        kind = rng.choice(["generate", "stream", "batch", "embed", "texts", "bad", "missing", "models", "unmatched"])
        mood = rng.choice(["", "", "early", "late"])
        n = rng.randint(1, 5)
        body: dict[str, Any] = {"model": "plain", "max_tokens": n}
        if kind in ("generate", "stream"):
            path = "/generate" if kind == "generate" else "/generate/stream"
            fails = mood == "early" or (mood == "late" and n > 2)
            # What was begun has the status 200, whatever comes later.
            late = 200 if kind == "stream" else 500
            status = 503 if mood == "early" else late if fails else 200
            asked.append(("POST", path, body | {"prompt": mood}, status))
            n_tokens += 0 if mood == "early" else 2 if fails else n
            n_finished += not fails
        elif kind == "batch":
            asked.append(("POST", "/generate/batch", body | {"prompts": ["x"] * n}, 200))
            n_tokens += n * n
            n_finished += n
        elif kind == "embed":
            asked.append(("POST", "/embed", body | {"text": mood}, 503 if mood == "early" else 200))
            n_embedded += mood != "early"
            n_embeddings += mood != "early"
        elif kind == "texts":
            asked.append(("POST", "/embed/batch", body | {"texts": ["x"] * n}, 200))
            n_embedded += n
            n_embeddings += 1
        elif kind == "bad":
            asked.append(("POST", "/generate", {"model": "plain"}, 422))
        elif kind == "missing":
            asked.append(("POST", "/embed", {"model": "nosuch", "text": "x"}, 404))
        elif kind == "models":
            asked.append(("DELETE", f"/models/no-{rng.random()}", None, 404))
        else:
            asked.append(("GET", f"/nothing/{rng.random()}", None, 404))

    async def run() -> str:
        transport = httpx2.ASGITransport(app=client.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as asking:

            async def one(method: str, path: str, body: dict[str, Any] | None, status: int) -> None:
                answer = await asking.request(method, path, json=body)
                assert answer.status_code == status, (path, body, answer.text)

            await asyncio.gather(*(one(*each) for each in asked))
            return (await asking.get("/metrics")).text

    got = samples(asyncio.run(run()))
    for method, path, _, status in asked:
        route = "/models/{model_id:path}" if path.startswith("/models/") else path
        wanted["unmatched" if path.startswith("/nothing/") else route, method, status] += 1
    assert len({status for _, _, status in wanted}) >= 5
    counted = {key[1:]: value for key, value in got.items() if key[0] == "loom_requests_total"}
    assert counted == {(route, method, str(status)): n for (route, method, status), n in wanted.items()}
    by_route: Counter[tuple[str, str]] = Counter()
    for (route, method, _), n in wanted.items():
        by_route[route, method] += n
    latencies = {key[1:]: n for key, n in got.items() if key[0] == "loom_request_latency_seconds_count"}
    assert latencies == by_route
    assert got["loom_tokens_generated_total", "plain"] == n_tokens
    assert got["loom_generation_latency_seconds_count", "plain"] == n_finished
    assert got["loom_embeddings_total",] == n_embedded
    assert got["loom_embedding_latency_seconds_count",] == n_embeddings
    assert manager.in_use == 0
