"""What answers of OpenAI's API are made of: names, counts, events."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from ...jobs import Finished
from ...sampling import MAX_SEED, Sampling
from ..errors import RequestError, told
from ..http import dumps
from .schemas import Sampled

SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What begins every answer, and every chunk of it."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def usage(*ended: Finished) -> dict[str, Any]:
    """Counts of tokens."""
    prompt, generated = (sum(getattr(each, name) for each in ended) for name in ("n_prompt", "n_generated"))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(each.n_reused for each in ended)},
    }


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + dumps(data) + b"\n\n"


def error_event(error: Exception) -> bytes:
    """What ends a stream in place of the rest."""
    return event(told(error, "openai")[1])


async def events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Chunks as server-sent events, and the one that ends them."""
    try:
        async for chunk in chunks:
            yield event(chunk)
        yield DONE
    finally:
        await chunks.aclose()


def sampling(body: Sampled, *, logprobs: int | None, json_schema: dict[str, Any] | None = None) -> Sampling:
    """How to choose tokens, with OpenAI's defaults; refuses what cannot be done, in words."""
    if body.n not in (None, 1):
        raise RequestError(400, "n must be 1: send the request several times, which are then computed together")
    if body.logit_bias:
        raise RequestError(400, "logit_bias is not supported")
    if body.expose_hidden is not None:
        raise RequestError(400, "expose_hidden belongs to /api/chat and /api/generate; here, use return_hidden_states")
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=0,
        top_p=1.0 if body.top_p is None else body.top_p,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repeat_last_n=-1,  # OpenAI's penalties look at the whole text
        seed=None if body.seed is None else body.seed % MAX_SEED,
        json_schema=json_schema,
        logprobs=logprobs,
    )


def stop_texts(body: Sampled) -> tuple[str, ...]:
    """Texts that end the answer."""
    texts = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return tuple(text for text in texts if text)


def wants_usage(body: Sampled) -> bool:
    """Whether a stream ends with the counts of tokens."""
    return bool(body.stream_options and body.stream_options.include_usage)
