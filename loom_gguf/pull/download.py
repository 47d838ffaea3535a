"""One file: fetched in as many connections as it takes, and held against its checksum."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from ..errors import ChecksumError, DownloadError, ModelLoadError, RegistryError
from .locks import locked_file
from .own_store import OwnStore
from .progress import Progress
from .space import check_space, writing
from .transport import Session, TryAgainError

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_INTERVAL = 0.1  # seconds between two lines of progress
_FIRST_LOOK = 8 * 2**20  # bytes after which a file is looked at for the first time
_BLOCK = 2**20


@dataclass(frozen=True)
class Checksum:
    """What a server says of a file's content before it comes."""

    kind: Literal["sha256", "git"]  # git: the sha1 of a blob in a repository, for files that are not in LFS
    hex: str

    @property
    def label(self) -> str:
        """As progress has it."""
        return f"{'sha256' if self.kind == 'sha256' else 'sha1'}:{self.hex}"


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server."""

    url: str
    size: int  # in bytes
    checksum: Checksum
    what: str  # for errors: "the weights of llama3.2"

    @property
    def status(self) -> str:
        """As progress has it."""
        return f"pulling {self.checksum.hex[:12]}"

    def progress(self, completed: int) -> Progress:
        """So far."""
        return Progress(self.status, self.checksum.label, self.size, completed)


Look = Callable[[Path], bool]  # at a file that is still growing; True: it need not be looked at again


def partial_path(store: OwnStore, file: RemoteFile) -> Path:
    """Where the file lies until its model is whole."""
    return store.partial / f"{file.checksum.kind}-{file.checksum.hex}"


def fetch(store: OwnStore, session: Session, file: RemoteFile, look: Look | None = None) -> str:
    """Bring the file to partial_path(), or go on where an earlier try ended; its sha256 in hexadecimal.

    Raises DownloadError, ChecksumError, NoSpaceError and what Session.stream() does.
    """
    path = partial_path(store, file)
    with writing("a download was opened"), locked_file(path, session.watcher) as descriptor:
        if file.checksum.kind == "sha256" and store.has(file.checksum.hex, file.size):
            os.unlink(path)  # another process has just put it into the store
            return file.checksum.hex
        for more in (True, False):
            one = _One(session, file, path, descriptor, look)
            try:
                return one.run()
            except ModelLoadError:  # seen by `look`: no model that could be run here
                os.unlink(path)
                raise
            except ChecksumError:
                with writing("a broken download was emptied"):
                    os.ftruncate(descriptor, 0)
                if not (more and one.resumed):  # what an earlier try left may have been the broken part
                    os.unlink(path)
                    raise
    raise AssertionError


class _One:
    """One run over a file that is open and locked."""

    def __init__(self, session: Session, file: RemoteFile, path: Path, descriptor: int, look: Look | None) -> None:
        self._session = session
        self._file = file
        self._path = path
        self._descriptor = descriptor
        self._look = look
        self._next_look = _FIRST_LOOK
        self._told = 0.0
        self._restarts = 0
        self.resumed = False
        self._start_hash()

    def run(self) -> str:
        """All of it."""
        self._take_over()
        failures = 0
        while self._done < self._file.size:
            self._session.watcher.check()
            before = self._done
            try:
                self._go_on()
            except (TryAgainError, httpx.HTTPError, httpx.InvalidURL) as error:
                failures = 1 if self._done > before else failures + 1
                self._session.pause(failures, error, self._file.what)
        self._session.watcher.report(self._file.progress(self._done))
        if self._known.hexdigest() != self._file.checksum.hex:
            raise ChecksumError(
                f"{self._file.what} came damaged: its {self._file.checksum.kind} checksum is "
                f"{self._known.hexdigest()[:12]}..., announced was {self._file.checksum.hex[:12]}... It was thrown "
                f"away; pull again, and if that does not help, tell those who run the server"
            )
        with writing("a download was finished"):
            os.fsync(self._descriptor)
        return self._sha256.hexdigest()

    def _start_hash(self) -> None:
        self._done = 0
        self._sha256 = hashlib.sha256()
        self._known = self._sha256
        if self._file.checksum.kind == "git":
            self._known = hashlib.sha1(f"blob {self._file.size}\0".encode(), usedforsecurity=False)

    def _take_over(self) -> None:
        """What an earlier try has left."""
        with writing("an unfinished download was read"):
            size = os.fstat(self._descriptor).st_size
            if size > self._file.size:
                os.ftruncate(self._descriptor, 0)
                size = 0
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            while self._done < size:
                self._session.watcher.check()
                block = os.read(self._descriptor, _BLOCK)
                if not block:
                    break
                self._count(block)
        self.resumed = self._done > 0
        check_space(self._path.parent, self._file.size - self._done, self._file.what)

    def _go_on(self) -> None:
        """One connection."""
        headers = {"range": f"bytes={self._done}-"} if self._done else {}
        with self._session.stream(self._file.url, headers, self._file.what) as answer:
            if not self._fits(answer):
                return
            for piece in answer.iter_raw():
                self._session.watcher.check()
                if self._done + len(piece) > self._file.size:
                    raise ChecksumError(
                        f"{self._file.what} is longer than the {self._file.size:,} bytes that were announced; it was "
                        f"thrown away"
                    )
                with writing("a model came", "make room and pull again: what has come so far is kept"):
                    _write(self._descriptor, piece)
                self._count(piece)
        if self._done < self._file.size:
            raise TryAgainError("the connection ended too early")

    def _fits(self, answer: httpx.Response) -> bool:
        """Whether the answer goes on where we are; else we begin again."""
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise RegistryError(f"{self._file.what}: the server sends it compressed, though it was asked not to")
        if answer.status_code == 416:
            if not self._done:
                raise TryAgainError("the server has no such range")
            self._restart()
            return False
        if answer.status_code == 200:
            if self._done:
                self._restart()  # it does not know of ranges
            return True
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        total = found[3] if found else "*"
        if found is None or int(found[1]) != self._done or total not in ("*", str(self._file.size)):
            raise TryAgainError("the server sent another piece than it was asked for")
        return True

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > self._session.patience.tries:
            raise DownloadError(
                f"{self._file.what}: the server cuts the connection and cannot go on where it ended, "
                f"{self._restarts} times. Pull again on a better connection"
            )
        with writing("a download began again"):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.resumed = False
        self._start_hash()

    def _count(self, piece: bytes) -> None:
        self._sha256.update(piece)
        if self._known is not self._sha256:
            self._known.update(piece)
        self._done += len(piece)
        now = time.monotonic()
        if now - self._told >= _INTERVAL:
            self._told = now
            self._session.watcher.report(self._file.progress(self._done))
        if self._look is not None and self._done >= self._next_look:
            self._next_look *= 2
            if self._look(self._path):
                self._look = None


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
