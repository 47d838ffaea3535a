"""Bodies in, lines out: what all routes share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import RequestError, describe
from .hidden import first_problem

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")

NDJSON = "application/x-ndjson"
_CLOSED_BY_CLIENT = 499  # as nginx logs it; nobody reads it


class Json(Response):
    """JSON that may hold numpy arrays."""

    media_type = "application/json; charset=utf-8"

    def render(self, content: Any) -> bytes:
        """By orjson."""
        return dumps(content)


def dumps(content: Any) -> bytes:
    """JSON; lone surrogates, which text from a file may hold, become question marks."""
    try:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:
        return orjson.dumps(_sane(content), option=orjson.OPT_SERIALIZE_NUMPY)


def _sane(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_sane(key): _sane(item) for key, item in value.items()}
    return [_sane(item) for item in value] if isinstance(value, (list, tuple)) else value


def error_response(error: Exception) -> Json:
    """What a client is told of an error before the first byte."""
    status, body = describe(error)
    return Json(body, status)


async def read(request: Request, schema: type[Body]) -> Body:
    """The request's body; 400 where it is none."""
    raw = await request.body()
    if not raw.strip():
        raise RequestError(400, "missing request body")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the request body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(400, "the request body must be a JSON object")
    try:
        body = schema.model_validate(value)
    except ValidationError as error:
        raise RequestError(400, first_problem(error)) from None
    if not getattr(body, "model", None):
        raise RequestError(400, "model is required")
    return body


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`, which is cancelled where the client goes away; then None."""
    return await _first(work, request.receive)


class Lines(Response):
    """Lines of JSON as they come. The first one is there already: what goes wrong before it has a status of its own."""

    media_type = NDJSON

    def __init__(self, first: bytes | None, rest: AsyncGenerator[bytes, None]) -> None:
        """`rest` is closed in the end, whatever happens."""
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers()
        self._first = first
        self._rest = rest

    def init_headers(self, headers: Any = None) -> None:
        """No length: it is not known."""
        self.raw_headers = [(b"content-type", NDJSON.encode())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, or stop when the client has gone."""
        with suppress(OSError):  # the connection broke while something was sent
            await _first(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            line = self._first
            while line is not None:
                await send({"type": "http.response.body", "body": line, "more_body": True})
                # Where neither side ever has to wait, others' turn, and the watch's for a client that has gone.
                await asyncio.sleep(0)
                line = await self._next()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._rest.aclose()

    async def _next(self) -> bytes | None:
        """The next line, which may be the error that ends them; None where there is none."""
        try:
            return await self._rest.__anext__()
        except StopAsyncIteration:
            return None
        except Exception as error:
            return dumps(describe(error)[1]) + b"\n"


async def streamed(request: Request, lines: AsyncGenerator[dict[str, Any], None]) -> Response:
    """An answer of lines; an error before the first one is raised."""
    encoded = _encoded(lines)
    try:
        # In a task of its own: a generator must not be closed while another task waits in it.
        first = await unless_gone(request, _next(encoded))
    except BaseException:
        await encoded.aclose()
        raise
    return Lines(first, encoded)


async def _next(lines: AsyncGenerator[bytes, None]) -> bytes:
    return await lines.__anext__()


async def _encoded(lines: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    try:
        async for line in lines:
            yield dumps(line) + b"\n"
    finally:
        await lines.aclose()


async def _first(work: Coroutine[Any, Any, Result], receive: Callable[[], Awaitable[Any]]) -> Result | None:
    """The result of `work`, cancelled where the client disconnects first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def gone() -> Response:
    """For a client that has gone."""
    return Response(status_code=_CLOSED_BY_CLIENT)
