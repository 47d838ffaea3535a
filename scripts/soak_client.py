"""HTTP as clients really behave: some leave before or in the middle of an answer, some read slowly."""

from __future__ import annotations

import http.client
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

TIMEOUT = 60.0  # seconds without a byte after which a request counts as stuck
_FRESH = 2.0  # seconds that an idle connection is used again; the server closes it after 5
_SMALL_BUFFER = 4096  # bytes that the kernel takes for a slow reader
_PIECE = 65536  # bytes


@dataclass(frozen=True)
class Manner:
    """How a client behaves."""

    leaves: Literal["never", "while sending", "while waiting", "while reading"] = "never"
    after: float = 0.0  # waiting: seconds; reading: bytes
    reset: bool = False  # leaves with a reset in place of a proper end
    slow: float = 0.0  # seconds in all that it sleeps between pieces
    piece: int = _PIECE  # bytes read at a time


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int  # 0: it left before there was any
    content_type: str
    body: bytes
    whole: bool  # false: the client left first
    began: float  # time.monotonic()
    ended: float


@dataclass
class Client:
    """One client with one connection, which it keeps while nothing speaks against it. For one thread."""

    address: str
    timeout: float = TIMEOUT
    _connection: http.client.HTTPConnection | None = None
    _used: float = field(default=0.0)

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str], manner: Manner) -> Answer:
        """Send a request. Raises OSError or http.client.HTTPException where the server fails to answer it."""
        if time.monotonic() - self._used > _FRESH or manner.slow:
            self.close()
        began = time.monotonic()
        connection = self._connection or self.connect(small=bool(manner.slow))
        self._connection = None  # until it has ended well
        try:
            if manner.leaves == "while sending":
                connection.putrequest(method, path)
                connection.putheader("Content-Length", str(len(body or b"") + 10))
                connection.endheaders((body or b"x")[: max(1, len(body or b"") // 2)])
                return self._left(connection, manner, began)
            connection.request(method, path, body, headers)
            if manner.leaves == "while waiting":
                time.sleep(manner.after)
                return self._left(connection, manner, began)
            return self._read(connection, manner, began)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def connect(self, *, small: bool) -> http.client.HTTPConnection:
        where = urlsplit(self.address)
        assert where.hostname
        assert where.port
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=self.timeout)
        if small:
            opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
            opened.settimeout(self.timeout)
            opened.connect((where.hostname, where.port))
            connection.sock = opened
        return connection

    def _read(self, connection: http.client.HTTPConnection, manner: Manner, began: float) -> Answer:
        raw = connection.sock  # which the connection itself forgets, where the answer says that it is the last one
        response = connection.getresponse()
        kind = response.headers.get("Content-Type", "")
        pieces, n, slept = [], 0, 0.0
        while piece := response.read1(manner.piece):
            pieces.append(piece)
            n += len(piece)
            if manner.leaves == "while reading" and n >= manner.after:
                _cut(raw, manner)
                response.close()
                connection.close()
                return Answer(response.status, kind, b"".join(pieces), False, began, time.monotonic())
            if slept < manner.slow:
                pause = min(0.02, manner.slow - slept)
                time.sleep(pause)
                slept += pause
        length = response.headers.get("Content-Length")
        if length is not None and response.status != http.client.NO_CONTENT and n != int(length) and pieces:
            raise http.client.IncompleteRead(b"".join(pieces), int(length) - n)
        response.close()
        if connection.sock is not None:
            self._connection, self._used = connection, time.monotonic()
        return Answer(response.status, kind, b"".join(pieces), True, began, time.monotonic())

    def _left(self, connection: http.client.HTTPConnection, manner: Manner, began: float) -> Answer:
        _cut(connection.sock, manner)
        connection.close()
        return Answer(0, "", b"", False, began, time.monotonic())


def _cut(opened: socket.socket | None, manner: Manner) -> None:
    if manner.reset and opened is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
