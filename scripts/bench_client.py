"""A `loom-gguf serve` to be measured, and a client that costs it little: sockets, and no parsing before the end."""

from __future__ import annotations

import json
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RECEIVE = 1 << 18  # bytes at a time


class Server:
    """`loom-gguf serve` as a child process, on a free port of 127.0.0.1."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start it and wait until it serves."""
        command = [sys.executable, "-m", "loom_gguf", "serve", "--port", "0", *arguments]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit(f"the server did not start:\n{''.join(said)}")
        threading.Thread(target=self._process.stderr.read, daemon=True).start()  # its log must not fill the pipe

    def ask(self, bodies: Sequence[Mapping[str, Any]], path: str = "/api/generate") -> list[Answer]:
        """Post all of them at once, each over a connection of its own, and read the answers until the last is done."""
        began, events = 0.0, []
        with selectors.DefaultSelector() as selector:
            opened = [socket.create_connection(("127.0.0.1", self.port)) for _ in bodies]
            requests = [_request(path, body) for body in bodies]
            for connection in opened:
                events.append(_Received([], []))
                selector.register(connection, selectors.EVENT_READ, events[-1])
            began = time.perf_counter()
            for connection, request in zip(opened, requests, strict=True):
                connection.sendall(request)
            while selector.get_map():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    data = key.fileobj.recv(_RECEIVE)
                    if data:
                        key.data.pieces.append(data)
                        key.data.times.append(time.perf_counter())
                    else:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
        return [received.answer(began) for received in events]

    def resident(self) -> dict[str, tuple[int, int]]:
        """Bytes in memory of the server and each process below it, by name: (all, those not of files)."""
        found = {"server": _memory(self._process.pid)}
        for pid in _children(self._process.pid):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found["the model's process" if name.startswith("loom ") else "multiprocessing's helper"] = _memory(pid)
        return found

    def close(self) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


@dataclass(frozen=True)
class Answer:
    """Lines of an answer, without the last one, and when each was there; times of time.perf_counter."""

    began: float
    lines: list[bytes]
    times: list[float]
    last: dict[str, Any]


@dataclass(frozen=True)
class _Received:
    pieces: list[bytes]
    times: list[float]

    def answer(self, began: float) -> Answer:
        """Take the chunks of HTTP apart."""
        ends, n = [], 0
        for piece in self.pieces:
            n += len(piece)
            ends.append(n)
        raw = b"".join(self.pieces)
        at = raw.index(b"\r\n\r\n") + 4
        head = raw[:at].lower()
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise SystemExit(f"the server answered:\n{raw[:2000].decode('utf-8', 'replace')}")
        if b"transfer-encoding: chunked" not in head:
            return Answer(began, [], [], json.loads(raw[at:]))
        lines, times = [], []
        while True:
            begin = raw.index(b"\r\n", at) + 2
            size = int(raw[at : begin - 2], 16)
            if size == 0:
                break
            chunk = raw[begin : begin + size]
            at = begin + size + 2
            assert chunk.endswith(b"\n"), "a chunk is one line or several"
            for line in chunk.splitlines():
                lines.append(line)
                times.append(self.times[bisect_left(ends, begin + size)])
        return Answer(began, lines[:-1], times[:-1], json.loads(lines[-1]))


def _request(path: str, body: Mapping[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid:
            found.append(int(path.parent.name))
    return found


def _memory(pid: int) -> tuple[int, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return kilobytes["VmRSS"] * 1024, kilobytes["RssAnon"] * 1024
