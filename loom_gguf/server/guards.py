"""Who may ask, and how much: checked before any route.

A web page anywhere can make its reader's browser send requests to this machine. The Host check stops names that an
attacker's DNS points here; the Origin check stops pages from elsewhere.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..settings import ServerSettings
from .errors import RequestError
from .http import error_response

_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
_ALLOWED_HEADERS = "Authorization, Content-Type, User-Agent, Accept, X-Requested-With"
_TOO_LARGE = 413


class Guards:
    """Middleware."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        """`app`: what comes behind it."""
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        over_tcp = (scope.get("server") or ("", None))[1] is not None
        try:
            if over_tcp:  # no browser reaches a Unix socket, and its clients write any name
                self._check_host(headers.get("host"))
            self._check_origin(origin)
        except RequestError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        answering = _with_cors(send, origin, headers.get("access-control-request-headers")) if origin else send
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await answering({"type": "http.response.start", "status": 204, "headers": []})
            await answering({"type": "http.response.body", "body": b""})
            return
        try:
            if scope["path"] != "/":  # which only says that somebody is here
                self._check_key(headers.get("authorization"))
            limited = self._limited(headers.get("content-length"), receive)
        except RequestError as error:
            await error_response(error, scope["path"])(scope, receive, answering)
            return
        await self._app(scope, limited, answering)

    def _check_host(self, host: str | None) -> None:
        # Bound to a network, the server may have any name; that is where a key belongs.
        if host is None or not is_loopback(self._settings.host) or is_loopback(_without_port(host)):
            return
        raise RequestError(403, f"the host {host!r:.100} is not this machine's: ask for localhost or 127.0.0.1")

    def _check_origin(self, origin: str | None) -> None:
        allowed = self._settings.origins
        if origin is None or "*" in allowed or origin.rstrip("/") in allowed:
            return
        try:
            parts = urlsplit(origin)
            if parts.scheme in ("http", "https") and is_loopback(parts.hostname or ""):
                return
        except ValueError:
            pass
        raise RequestError(403, f"pages of {origin!r:.100} may not ask here: start the server with --origins to allow")

    def _check_key(self, authorization: str | None) -> None:
        key = self._settings.api_key
        if key is None:
            return
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            raise RequestError(401, "unauthorized: send the server's key as `Authorization: Bearer KEY`")

    def _limited(self, length: str | None, receive: Receive) -> Receive:
        limit = self._settings.max_body
        too_large = RequestError(_TOO_LARGE, f"the request body has more than {limit:,} bytes")
        if length is not None and length.isdigit() and int(length) > limit:
            raise too_large
        n = 0

        async def limited() -> Message:
            nonlocal n
            message = await receive()
            n += len(message.get("body", b""))
            if n > limit:
                raise too_large
            return message

        return limited


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0]
    return host.partition(":")[0]


def _with_cors(send: Send, origin: str, asked: str | None) -> Send:
    """`asked`: headers that a page wants to send. Clients have many of their own, and the origin is checked already."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Methods"] = _METHODS
            headers["Access-Control-Allow-Headers"] = asked or _ALLOWED_HEADERS
            headers.add_vary_header("Origin")
        await send(message)

    return sending
