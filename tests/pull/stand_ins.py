"""Servers that speak as Ollama's registry and Hugging Face's hub do, and misbehave when they are told to.

Ollama: docs/import of its repository and server/download.go, the parts of the OCI distribution specification that it
uses. Hugging Face: the answers of /api/models/<repo>?blobs=true and /<repo>/resolve/<revision>/<file>.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from loom_gguf.library.names import Name

IMAGE = "application/vnd.ollama.image."
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
COMMIT = "c" * 40
FIDELITY = Path(__file__).parent.parent / "fidelity"

Pull = Callable[..., Name]  # pull() of a test's store


@dataclass
class Asked:
    """A request as it came."""

    path: str
    query: str
    headers: dict[str, str]


@dataclass
class StandIn:
    """A server of files. `faults` are used up one by one, by requests for files that are downloads."""

    files: dict[str, bytes] = field(default_factory=dict)  # by path
    texts: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)  # other answers
    faults: deque[tuple[Any, ...]] = field(default_factory=deque)
    text_faults: deque[tuple[Any, ...]] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    token: str | None = None  # needed for texts and files
    open_to: tuple[str, ...] = ()  # paths that need no token
    challenge: str = ""
    rate: int = 0  # bytes a second; 0: as fast as it can
    release: threading.Event = field(default_factory=threading.Event)  # ends stalls
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ranges(self) -> list[str | None]:
        """The ranges of the requests for files."""
        return [each.headers.get("range") for each in self.asked if each.path in self.files]

    # -- Ollama's registry ----------------------------------------------------------------------------------------

    def blob(self, name: str, content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        self.files[f"/v2/{name}/blobs/sha256:{digest}"] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    def add_model(
        self, name: str, model: bytes | None, tag: str = "latest", config: dict[str, Any] | None = None, **layers: Any
    ) -> bytes:
        """A model of Ollama's registry; its manifest."""
        made = [] if model is None else [self.blob(name, model, IMAGE + "model")]
        for kind, content in layers.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            made.append(self.blob(name, content.encode() if isinstance(content, str) else data, IMAGE + kind))
        details = {"model_format": "gguf", "model_family": "llama", "file_type": "F32"} | (config or {})
        of_config = self.blob(name, json.dumps(details).encode(), CONFIG)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": of_config, "layers": made}
        return self.put_manifest(name, tag, manifest)

    def put_manifest(self, name: str, tag: str, manifest: Any) -> bytes:
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest, indent=1).encode()
        self.texts[f"/v2/{name}/manifests/{tag}"] = (200, {"content-type": MANIFEST}, data)
        return data

    # -- Hugging Face's hub ---------------------------------------------------------------------------------------

    def add_repository(self, name: str, files: dict[str, bytes], lfs: bool = True) -> None:
        siblings = []
        for file, content in files.items():
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            sibling: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": git}
            if lfs:
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 130}
            siblings.append(sibling)
            self.files[f"/{name}/resolve/{COMMIT}/{file}"] = content
        info = {"_id": "0" * 24, "id": name, "modelId": name, "sha": COMMIT, "private": False, "gated": False,
                "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}  # fmt: skip
        self.texts[f"/api/models/{name}"] = (200, {"content-type": "application/json"}, json.dumps(info).encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        here = self.stand_in
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        here.asked.append(Asked(path, parts.query, {key.lower(): value for key, value in self.headers.items()}))
        allowed = here.token is None or path in here.open_to
        if not allowed and self.headers.get("authorization") != f"Bearer {here.token}":
            self._say(401, {"www-authenticate": here.challenge} if here.challenge else {}, b"who are you")
        elif path in here.files:
            self._file(here.files[path])
        else:
            fault = here.text_faults.popleft() if here.text_faults else None
            if fault is not None and fault[0] == "status":
                self._say(fault[1], fault[2] if len(fault) > 2 else {}, b'{"error": "on purpose"}')
            else:
                self._say(*here.texts.get(path, (404, {}, b"")))

    def _say(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, data: bytes) -> None:
        here = self.stand_in
        fault = here.faults.popleft() if here.faults else ("good",)
        kind = fault[0]
        start = 0
        wanted = self.headers.get("range")
        if wanted and kind not in ("no ranges", "no ranges, cut"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        if kind == "status":
            self._say(fault[1], fault[2] if len(fault) > 2 else {}, b'{"error": "on purpose"}')
            return
        if kind == "redirect":
            self._say(307, {"location": fault[1]}, b"")
            return
        if start > len(data) or (wanted and kind == "416"):
            self._say(416, {"content-range": f"bytes */{len(data)}"}, b"")
            return
        if kind == "wrong range":
            start = max(start - 10, 0)
        rest = data[start:]
        if kind == "wrong bytes":
            rest = bytes(len(rest))
        if kind == "too long":
            rest += b"more"
        self.send_response(206 if wanted and not kind.startswith("no ranges") else 200)
        if wanted and not kind.startswith("no ranges"):
            self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        # Some servers do not know a file's length and just close the connection at its end.
        self.send_header("connection", "close") if kind == "short" else self.send_header(
            "content-length", str(len(rest))
        )
        self.end_headers()
        if kind in ("cut", "short", "stall", "no ranges, cut"):
            self._send(rest[: fault[1]])
            if kind == "stall":
                here.release.wait(60)
            self.close_connection = True
            return
        self._send(rest)

    def _send(self, data: bytes) -> None:
        here = self.stand_in
        try:
            if not here.rate:
                self.wfile.write(data)
                return
            for at in range(0, len(data), 4096):
                self.wfile.write(data[at : at + 4096])
                time.sleep(4096 / here.rate)
        except OSError:  # the client has gone
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A server on this machine."""
    here = StandIn()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": here}))
    here.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        here.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def content_of(root: Path) -> dict[str, bytes]:
    """All regular files of a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
