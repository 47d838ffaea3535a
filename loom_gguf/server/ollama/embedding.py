"""/api/embed, and /api/embeddings, its old form."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...requests import EmbedRequest, TextPrompt
from ..errors import RequestError
from ..http import Json, gone, read, unless_gone
from ..running import Use, embedding
from ..services import services
from ..vectors import checked, pooling_of, shortened
from .options import keep_alive, load_wishes, parse_options
from .schemas import EmbedBody, EmbeddingsBody


async def embed(request: Request) -> Response:
    """POST /api/embed."""
    body = await read(request, EmbedBody)
    found = services(request)
    texts = _texts(body.input)
    seconds = keep_alive(body.keep_alive)
    if body.dimensions < 0:
        raise RequestError(400, "dimensions must not be negative")
    entry, facts, extras = await found.find(body.model)
    params = found.load_params(entry, facts, load_wishes(parse_options(body.options, extras.params)))
    make = [
        EmbedRequest(TextPrompt(text), pooling_of(facts), True, "final", body.truncate is not False) for text in texts
    ]
    started = time.perf_counter()
    done = await unless_gone(request, embedding(found, Use("/api/embed", entry.name, params, seconds), make))
    if done is None:
        return gone()
    embedded, load_seconds = done
    answer: dict[str, Any] = {
        "model": body.model,
        "embeddings": [shortened(each.vector, body.dimensions) for each in embedded],
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
    params = found.load_params(entry, facts, load_wishes(parse_options(body.options, extras.params)))
    make = [EmbedRequest(TextPrompt(body.prompt), pooling_of(facts), normalize=False)] if body.prompt else []
    done = await unless_gone(request, embedding(found, Use("/api/embeddings", entry.name, params, seconds), make))
    if done is None:
        return gone()
    return Json({"embedding": checked(done[0][0].vector) if done[0] else []})


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [] if value is None or value == "" else [value]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(400, "invalid input type")
    return texts
