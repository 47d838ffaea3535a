"""/api/embed, and /api/embeddings, its old form."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ..errors import LoomError
from ..requests import Embedded, EmbedRequest, LoadParams, TextPrompt
from .errors import RequestError
from .http import Json, gone, read, unless_gone
from .interfaces import RunnerLike
from .models import Facts
from .options import keep_alive, parse_options
from .schemas import EmbedBody, EmbeddingsBody
from .services import Services, Summary, services

Pooling = Literal["mean", "last_token", "first_token", "max"]

_POOLING: dict[int, Pooling] = {1: "mean", 2: "first_token", 3: "last_token"}  # <arch>.pooling_type in GGUF files


async def embed(request: Request) -> Response:
    """POST /api/embed."""
    body = await read(request, EmbedBody)
    found = services(request)
    texts = _texts(body.input)
    seconds = keep_alive(body.keep_alive)
    if body.dimensions < 0:
        raise RequestError(400, "dimensions must not be negative")
    entry, facts, extras = await found.find(body.model)
    params = found.load_params(entry, facts, parse_options(body.options, extras.params))
    make = [
        EmbedRequest(TextPrompt(text), _pooling(facts), True, "final", body.truncate is not False) for text in texts
    ]
    started = time.perf_counter()
    done = await unless_gone(request, _embed(found, params, seconds, make, body.model, "/api/embed"))
    if done is None:
        return gone()
    embedded, load_seconds = done
    answer: dict[str, Any] = {
        "model": body.model,
        "embeddings": [_shortened(each.vector, body.dimensions) for each in embedded],
        "total_duration": round((time.perf_counter() - started) * 1e9),
        "load_duration": round(load_seconds * 1e9),
        "prompt_eval_count": sum(each.n_prompt for each in embedded),
    }
    return Json({key: value for key, value in answer.items() if value or key == "embeddings"})


async def embeddings(request: Request) -> Response:
    """POST /api/embeddings."""
    body = await read(request, EmbeddingsBody)
    found = services(request)
    seconds = keep_alive(body.keep_alive)
    entry, facts, extras = await found.find(body.model)
    params = found.load_params(entry, facts, parse_options(body.options, extras.params))
    make = [EmbedRequest(TextPrompt(body.prompt), _pooling(facts), normalize=False)] if body.prompt else []
    done = await unless_gone(request, _embed(found, params, seconds, make, body.model, "/api/embeddings"))
    if done is None:
        return gone()
    return Json({"embedding": _checked(done[0][0].vector) if done[0] else []})


async def _embed(
    found: Services, params: LoadParams, seconds: float | None, make: list[EmbedRequest], name: str, path: str
) -> tuple[list[Embedded], float]:
    """Vectors in order, and how long loading took."""
    summary = Summary(name, path)
    try:
        async with found.manager.use(params, seconds) as runner:
            load_seconds = time.perf_counter() - summary.started
            # No more at once than the model computes at once: the queue is other clients' too.
            embedded = await _in_order(runner, make, found.settings.parallel)
        summary.n_prompt = sum(each.n_prompt for each in embedded)
        summary.outcome = "done"
        return embedded, load_seconds
    except LoomError as error:
        summary.outcome = f"error {error}"
        raise
    finally:
        summary.write()


async def _in_order(runner: RunnerLike, make: list[EmbedRequest], at_once: int) -> list[Embedded]:
    done: dict[int, Embedded] = {}
    left = iter(enumerate(make))

    async def work() -> None:
        for at, request in left:
            done[at] = await runner.embed(request)

    tasks = [asyncio.create_task(work()) for _ in range(min(at_once, len(make)))]
    try:
        await asyncio.gather(*tasks)
    finally:  # after an error or a cancellation nobody goes on
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [done[at] for at in range(len(make))]


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [] if value is None or value == "" else [value]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(400, "invalid input type")
    return texts


def _pooling(facts: Facts) -> Pooling:
    """As the file says; else encoders take the mean, and others the last token, which has seen all of the text."""
    said = facts.hparam("pooling_type")
    if isinstance(said, int) and said in _POOLING:
        return _POOLING[said]
    return "mean" if facts.hidden_level == "prompt" else "last_token"


def _shortened(vector: Any, dimensions: int) -> Any:
    vector = _checked(vector)
    if not 0 < dimensions < len(vector):
        return vector
    cut = vector[:dimensions]
    norm = float(np.linalg.norm(cut))
    return np.ascontiguousarray(cut / np.float32(norm) if norm else cut)


def _checked(vector: Any) -> Any:
    vector = np.ascontiguousarray(vector, np.float32)
    if not np.isfinite(vector).all():
        raise RequestError(500, "the embedding has NaN or infinite values")
    return vector
