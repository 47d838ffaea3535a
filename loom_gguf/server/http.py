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

from .errors import BodyError, Dialect, dialect_of, first_problem, told

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


# Clients that split streams with splitlines(), Ollama's for Python among them, take these for the ends of lines.
_LINE_ENDS = {each.encode(): f"\\u{ord(each):04x}".encode() for each in "\x85\u2028\u2029"}


def dumps(content: Any) -> bytes:
    """JSON without ends of lines; lone surrogates, which text from a file may hold, become question marks."""
    try:
        data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:
        data = orjson.dumps(_sane(content), option=orjson.OPT_SERIALIZE_NUMPY)
    for end, escaped in _LINE_ENDS.items():  # UTF-8: these bytes are part of no other character
        if end in data:
            data = data.replace(end, escaped)
    return data


def _sane(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_sane(key): _sane(item) for key, item in value.items()}
    return [_sane(item) for item in value] if isinstance(value, (list, tuple)) else value


def error_response(error: Exception, path: str) -> Json:
    """What a client that asked for `path` is told of an error before the first byte."""
    status, body = told(error, dialect_of(path))
    return Json(body, status)


async def read(request: Request, schema: type[Body]) -> Body:
    """The request's body, whatever its content type says (curl's -d says it is a form); BodyError where it is none."""
    raw = await request.body()
    if not raw.strip():
        raise _bad_body("missing request body", "missing")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _bad_body(f"the request body is not JSON: {error}", "json_invalid") from None
    if not isinstance(value, dict):
        raise _bad_body("the request body must be a JSON object", "model_attributes_type")
    try:
        body = schema.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise BodyError(
            first_problem(error),
            [{"loc": ["body", *each["loc"]], "msg": each["msg"], "type": each["type"]} for each in problems],
        ) from None
    if "model" in schema.model_fields and not getattr(body, "model", None):
        raise _bad_body("model is required", "missing", "model")
    return body


def _bad_body(text: str, kind: str, *at: str) -> BodyError:
    return BodyError(text, [{"loc": ["body", *at], "msg": text, "type": kind}])


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`, which is cancelled where the client goes away; then None."""
    return await _first(work, request.receive)


class Streamed(Response):
    """Pieces as they come. The first one is there already: what goes wrong before it has a status of its own."""

    def __init__(
        self,
        first: bytes | None,
        rest: AsyncGenerator[bytes, None],
        media_type: str,
        on_error: Callable[[Exception], bytes],
    ) -> None:
        """`rest` is closed in the end, whatever happens. `on_error`: the last piece where it raises."""
        self.status_code = 200
        self.background = None
        self.body = b""
        # No length: it is not known. nginx would hold pieces back.
        self.raw_headers = [
            (b"content-type", media_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        self._first = first
        self._rest = rest
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, or stop when the client has gone."""
        with suppress(OSError):  # the connection broke while something was sent
            await _first(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            piece = self._first
            while piece is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                # Where neither side ever has to wait, others' turn, and the watch's for a client that has gone.
                await asyncio.sleep(0)
                piece = await self._next()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._rest.aclose()

    async def _next(self) -> bytes | None:
        """The next piece, which may be the error that ends them; None where there is none."""
        try:
            return await self._rest.__anext__()
        except StopAsyncIteration:
            return None
        except Exception as error:
            return self._on_error(error)


async def streamed(
    request: Request, pieces: AsyncGenerator[bytes, None], media_type: str, on_error: Callable[[Exception], bytes]
) -> Response:
    """An answer of pieces; an error before the first one is raised."""
    try:
        # In a task of its own: a generator must not be closed while another task waits in it.
        first = await unless_gone(request, _next(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    return Streamed(first, pieces, media_type, on_error)


async def ndjson(request: Request, lines: AsyncGenerator[dict[str, Any], None]) -> Response:
    """An answer of lines of JSON; an error behind the first one is a line too, in Ollama's form."""
    return await streamed(request, _encoded(lines), NDJSON, lambda error: error_line(error, "ollama"))


def error_line(error: Exception, dialect: Dialect) -> bytes:
    """An error as a line of JSON."""
    return dumps(told(error, dialect)[1]) + b"\n"


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return await pieces.__anext__()


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
