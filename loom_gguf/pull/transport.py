"""GET over HTTP: redirects, tokens and errors, with suspicion of the other side."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlencode

import httpx

from ..errors import AccessDeniedError, DownloadError, ModelNotFoundError, RegistryError, UnsafeUrlError
from .progress import Progress, Watcher

Result = TypeVar("Result")

_MAX_REDIRECTS = 10
_MAX_TEXT = 4 * 2**20  # bytes of an answer that is no download
_REDIRECTS = (301, 302, 303, 307, 308)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
_SHOWN = 300  # characters of what a server says


@dataclass(frozen=True)
class Patience:
    """How long to wait, and how often. In seconds."""

    connect: float = 15.0
    read: float = 30.0  # without a single byte: the connection is taken for dead
    tries: int = 6  # without a single byte in any of them
    first_wait: float = 0.5  # doubled each time

    def wait(self, failures: int) -> float:
        """Before the try after so many failures."""
        return float(min(self.first_wait * 2 ** max(failures - 1, 0), _LONGEST_WAIT))


class TryAgainError(Exception):
    """Something that may be better in a while. Never leaves this package."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        """wait: seconds, where the server said so."""
        super().__init__(text)
        self.wait = wait


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass
class Session:
    """Requests to one server and to where it redirects. To be closed."""

    watcher: Watcher
    patience: Patience = field(default_factory=Patience)
    insecure: bool = False  # allow plain http, and certificates that nobody knows
    trusted: frozenset[str] = frozenset()  # origins that the user's own settings name, allowed over plain http
    tokens: dict[str, str] = field(default_factory=dict)  # by origin; never sent to another one

    def __post_init__(self) -> None:
        """Open the pool of connections."""
        from .. import __version__

        self._client = httpx.Client(
            verify=not self.insecure,
            timeout=httpx.Timeout(self.patience.read, connect=self.patience.connect),
            headers={"user-agent": f"loom_gguf/{__version__}", "accept-encoding": "identity"},
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    @contextmanager
    def stream(self, url: str, headers: Mapping[str, str], what: str) -> Iterator[httpx.Response]:
        """The answer 200, 206 or 416 to a GET. Raises TryAgainError where it may be another one in a while."""
        at = httpx.URL(url)
        first = origin(at)
        challenged = False
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(at, came_from=None if str(at) == url else url)
            sent = dict(headers)
            if origin(at) == first and first in self.tokens:
                sent["authorization"] = f"Bearer {self.tokens[first]}"
            with self._send(at, sent) as answer:
                if answer.status_code in _REDIRECTS and "location" in answer.headers:
                    at = at.join(answer.headers["location"])
                    continue
                if answer.status_code == 401 and not challenged and self._answered(answer, at, first):
                    challenged = True
                    continue
                self._judge(answer, at, what)
                yield answer
                return
        raise RegistryError(f"{httpx.URL(url).host} redirects {what} more than {_MAX_REDIRECTS} times")

    def text(self, url: str, headers: Mapping[str, str], what: str, tries: int | None = None) -> bytes:
        """A small answer; tries again where that may help."""
        return self.trying(lambda: self._text(url, headers, what), what, tries)

    def trying(self, attempt: Callable[[], Result], what: str, tries: int | None = None) -> Result:
        """What `attempt` gives, in several tries."""
        failures = 0
        while True:
            self.watcher.check()
            try:
                return attempt()
            except (TryAgainError, httpx.HTTPError, httpx.InvalidURL) as error:
                failures += 1
                self.pause(failures, error, what, tries)

    def pause(self, failures: int, error: Exception, what: str, tries: int | None = None) -> None:
        """Wait before the next try; DownloadError after the last one."""
        if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
            raise RegistryError(f"{what}: the server sent an address that is none: {error}") from None
        if failures >= (tries or self.patience.tries):
            raise DownloadError(
                f"{what}: {reason(error)}{_times(failures)}. Check the connection and pull again: "
                f"what has come so far is kept"
            ) from None
        asked = error.wait if isinstance(error, TryAgainError) else None
        seconds = min(asked, _LONGEST_WAIT) if asked is not None else self.patience.wait(failures)
        self.watcher.report(Progress(f"{reason(error)}: trying again in {seconds:.0f} s"))
        self.watcher.wait(seconds)

    # -- one request --------------------------------------------------------------------------------------------------

    @contextmanager
    def _send(self, url: httpx.URL, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        request = self._client.build_request("GET", url, headers=dict(headers))
        self._client.cookies.clear()
        try:
            answer = self._client.send(request, stream=True, follow_redirects=False)
        except httpx.RemoteProtocolError as error:
            if "location" in str(error):  # httpx reads it even where it is not to follow
                raise RegistryError(f"{url.host} redirects to what is no address") from None
            raise
        try:
            yield answer
        finally:
            answer.close()

    def _text(self, url: str, headers: Mapping[str, str], what: str) -> bytes:
        with self.stream(url, headers, what) as answer:
            if answer.status_code != 200:
                raise RegistryError(f"{what}: the server answers with status {answer.status_code}")
            return _bounded(answer, what)

    def _check(self, url: httpx.URL, came_from: str | None) -> None:
        if url.scheme == "https" and url.host:
            return
        # https to http is a downgrade even where http is this machine: a server must not send us there.
        plain_before = came_from is None or came_from.startswith("http://")
        if url.scheme == "http" and url.host and (self.insecure or (plain_before and self._may_be_plain(url))):
            return
        how = f"redirects to {url.scheme}://{url.host}" if came_from else f"is asked over {url.scheme or 'nothing'}"
        raise UnsafeUrlError(
            f"{httpx.URL(came_from).host if came_from else url.host} {how}, which anybody on the way can read and "
            f'change. If you trust that network, allow it with --insecure (over HTTP: "insecure": true)'
        )

    def _may_be_plain(self, url: httpx.URL) -> bool:
        return is_loopback(url.host) or origin(url) in self.trusted

    def _answered(self, answer: httpx.Response, at: httpx.URL, first: str) -> bool:
        """Whether there is a token now that the server asked for: the one that it gives to anybody."""
        scheme, _, rest = answer.headers.get("www-authenticate", "").partition(" ")
        asked = dict(_CHALLENGE.findall(rest))
        if scheme.lower() != "bearer" or "realm" not in asked or origin(at) != first or first in self.tokens:
            return False
        realm = httpx.URL(asked["realm"])
        self._check(realm, came_from=str(at) if origin(realm) != first else None)
        query = [(name, asked[name]) for name in ("service",) if name in asked]
        query += [("scope", scope) for scope in asked.get("scope", "").split()]
        url = str(realm) + ("&" if realm.query else "?") + urlencode(query)
        with self._send(httpx.URL(url), {}) as told:
            self._judge(told, realm, "the token for this model")
            found = _json(_bounded(told, "the token"), "the token")
        token = found.get("token") or found.get("access_token") if isinstance(found, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            return False
        self.tokens[first] = token
        return True

    def _judge(self, answer: httpx.Response, at: httpx.URL, what: str) -> None:
        """Raise for anything but a good answer."""
        status = answer.status_code
        if status in (200, 206, 416):
            return
        said = _said(answer)
        if status in (408, 425, 429) or status >= 500:
            raise TryAgainError(f"{at.host} answers with status {status}{said}", _retry_after(answer))
        if status in (401, 403):
            raise AccessDeniedError(f"{at.host} does not give {what} to you (status {status}){said}")
        if status == 404:
            raise ModelNotFoundError(f"{what} is not there: {at.host} does not have it. Check the name")
        raise RegistryError(f"{at.host} refuses {what} with status {status}{said}")


def _times(n: int) -> str:
    return f", {n} times one after the other" if n > 1 else ""


def origin(url: httpx.URL) -> str:
    """Scheme, host and port."""
    port = url.port or {"https": 443, "http": 80}.get(url.scheme, 0)
    return f"{url.scheme}://{url.host}:{port}"


def reason(error: Exception) -> str:
    """Why a try failed, for a person."""
    if isinstance(error, httpx.TimeoutException):
        return "the server does not answer" if isinstance(error, httpx.ConnectTimeout) else "nothing comes any more"
    if isinstance(error, httpx.ConnectError):
        return f"no connection ({error})"
    if isinstance(error, httpx.TransportError):
        return "the connection was cut"
    return str(error)


def _bounded(answer: httpx.Response, what: str) -> bytes:
    data = bytearray()
    for piece in answer.iter_raw():
        data += piece
        if len(data) > _MAX_TEXT:
            raise RegistryError(f"{what}: the answer has more than {_MAX_TEXT:,} bytes")
    return bytes(data)


def _json(data: bytes, what: str) -> object:
    import orjson

    try:
        found: object = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise RegistryError(f"{what}: the server's answer is no JSON") from None
    return found


def _said(answer: httpx.Response) -> str:
    """What a server says to an error, in one line."""
    try:
        text = _bounded(answer, "").decode("utf-8", "replace")
    except (RegistryError, httpx.HTTPError):
        return ""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f": {text[:_SHOWN]}" if text and not text.startswith("<") else ""


def _retry_after(answer: httpx.Response) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
