"""/generate/stream: one prompt, server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...jobs import Token
from ..errors import told
from ..http import dumps, read, streamed
from ..services import services
from .generation import Answer, use_of
from .hidden import Budget
from .schemas import StreamBody, StreamedToken

EVENT_STREAM = "text/event-stream"


async def stream(request: Request) -> Response:
    """POST /generate/stream."""
    body = await read(request, StreamBody)
    found = services(request)
    use = await use_of(request, found, body)
    answer = Answer(found, use, body, body.prompt, Budget(found.settings.max_answer))
    return await streamed(request, _events(answer), EVENT_STREAM, _error)


async def _events(answer: Answer) -> AsyncGenerator[bytes, None]:
    async with aclosing(answer.events()) as events:
        async for event in events:
            if isinstance(event, Token):
                token: StreamedToken = {
                    "token": event.text,
                    "token_id": event.token_id,
                    "is_finished": event.reason is not None,
                    "finish_reason": event.reason,
                }
                yield _event("token", token)
    whole: dict[str, Any] = {key: value for key, value in answer.whole().items() if value is not None}
    yield _event("done", whole | {"token_ids": answer.token_ids})


def _error(error: Exception) -> bytes:
    return _event("error", {"error": told(error, "loom")[1]["detail"]})


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), dumps(data))  # JSON has no line ends of its own
