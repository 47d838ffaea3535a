"""/v1/embeddings."""

from __future__ import annotations

import base64
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...requests import EmbedRequest
from ..http import Json, gone, read, unless_gone
from ..running import Use, embedding
from ..services import services
from ..vectors import pooling_of, shortened
from .prompts import prompts
from .schemas import EmbeddingInputBody


async def embeddings(request: Request) -> Response:
    """POST /v1/embeddings."""
    body = await read(request, EmbeddingInputBody)
    found = services(request)
    entry, facts, _ = await found.find(body.model)
    use = Use("/v1/embeddings", entry.name, found.load_params(entry, facts), None)
    make = [EmbedRequest(prompt, pooling_of(facts)) for prompt in prompts(body.input)]
    done = await unless_gone(request, embedding(found, use, make))
    if done is None:
        return gone()
    n_tokens = sum(each.n_prompt for each in done[0])
    as_text = body.encoding_format == "base64"
    return Json({
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": _written(each.vector, body.dimensions or 0, as_text)}
            for at, each in enumerate(done[0])
        ],
        "model": body.model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    })  # fmt: skip


def _written(vector: Any, dimensions: int, as_text: bool) -> Any:
    """float32 (n,): numbers, or base64 of their little-endian bytes."""
    short = shortened(vector, dimensions)
    return base64.b64encode(short.astype("<f4").tobytes()).decode("ascii") if as_text else short
