"""From what a server sends to answers, tokens and errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import httpx
import orjson

from ..errors import ModelNotFoundError, ServerError, ServerUnreachableError
from .answers import Json, StreamingResult, StreamingToken

EVENT_STREAM = "text/event-stream"
_NOT_FOUND = 404


def answer(response: httpx.Response) -> Json:
    """The body of an answer that has been read; raises what the server refuses with."""
    told = _json(response.content)
    if response.is_error:
        _refuse(response, told)
    if response.is_redirect or not isinstance(told, dict):
        _foreign(response)
    return told


def check_stream(response: httpx.Response) -> None:
    """Whether a stream of events begins; raises what the server refuses with."""
    if response.is_error:
        response.read()
        _refuse(response, _json(response.content))
    if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
        _foreign(response)


def events(pieces: Iterable[bytes]) -> Iterator[StreamingToken | StreamingResult]:
    """Server-sent events to tokens and the result; ServerError for an error, or an end before the result."""
    kind, data, done = "", [], False
    for line in _lines(pieces):
        if line:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"event":
                kind = value.decode("utf-8", "replace")
            elif name == b"data":
                data.append(value)
            continue
        if data and not done:  # behind the result nothing counts; it is read so that the connection can be used again
            told = _json(b"\n".join(data))
            if kind == "error":
                raise ServerError(str(told.get("error", told)) if isinstance(told, dict) else str(told), None)
            if kind == "token":
                yield _made(StreamingToken, told)
            elif kind == "done":
                yield _made(StreamingResult, told)
                done = True
        kind, data = "", []
    if not done:
        raise ServerError("the stream ended before its result: the server stopped, or the model was unloaded", None)


def unreachable(base_url: str, timeout: float | None, error: httpx.HTTPError) -> ServerUnreachableError:
    """What a connection that failed is called."""
    if isinstance(error, httpx.TimeoutException):
        return ServerUnreachableError(f"{base_url} said nothing for {timeout} s: give LoomClient a longer timeout")
    why = str(error) or type(error).__name__
    if isinstance(error, (httpx.ConnectError, httpx.UnsupportedProtocol)):
        return ServerUnreachableError(
            f"cannot reach {base_url} ({why}): is the server running? Start it with `loom-gguf serve --port 8080`"
        )
    return ServerUnreachableError(
        f"the connection to {base_url} broke ({why}): the server stopped, or it is no HTTP server"
    )


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends. Python's own splitlines() also splits at U+2028 and others, which JSON may hold."""
    rest: list[bytes] = []  # of a line that is not over; a list, as a line of hidden states has many pieces
    for piece in pieces:
        *whole, last = piece.split(b"\n")
        for line in whole:
            yield b"".join((*rest, line)).removesuffix(b"\r")
            rest.clear()
        rest.append(last)


def _made(kind: type[Any], told: Any) -> Any:
    """A token or result; fields that this version does not know are left out, as a newer server may tell more."""
    try:
        return kind(**{name: told[name] for name in kind.__dataclass_fields__ if name in told})
    except TypeError:
        raise ServerError(f"an event of the stream is not as The Loom's API has it: {told!r:.200}", None) from None


def _json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _refuse(response: httpx.Response, told: Any) -> NoReturn:
    detail = told.get("detail") if isinstance(told, Mapping) else None
    if isinstance(detail, list):
        detail = "; ".join(_problem(each) for each in detail)
    if not isinstance(detail, str) or not detail:
        _foreign(response)
    if response.status_code == _NOT_FOUND and detail.lower().startswith("model ") and "not found" in detail:
        raise ModelNotFoundError(detail)
    raise ServerError(detail, response.status_code)


def _problem(each: Any) -> str:
    """One of the fields of a request that is wrong: {loc: ["body", field, ...], msg}."""
    if not isinstance(each, Mapping) or not isinstance(each.get("loc"), list):
        return str(each)
    where = ".".join(str(part) for part in each["loc"][1:])
    return f"{where}: {each.get('msg')}" if where else str(each.get("msg"))


def _foreign(response: httpx.Response) -> NoReturn:
    said = f"{response.status_code} {response.reason_phrase}".strip()
    text = response.text if response.is_stream_consumed else ""
    shown = f": {' '.join(text.split())[:200]}" if text else ""
    raise ServerError(
        f"{response.request.method} {response.request.url} is answered with {said}, but not as The Loom's API answers"
        f"{shown}. Is another server there?",
        response.status_code,
    )
