"""Locks between processes. The kernel frees them when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .progress import Progress, Watcher, nobody

_POLL = 0.2  # seconds


@contextmanager
def locked_file(path: Path, watcher: Watcher | None = None) -> Iterator[int]:
    """The file at `path`, made if it is not there, opened to be read and written by one process and thread at a time.

    Waits for whoever has it. The descriptor belongs to the block.
    """
    watcher = watcher or nobody()
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            while not _try_lock(descriptor):
                if not told:
                    watcher.report(Progress("waiting for another download of the same file"))
                    told = True
                watcher.wait(_POLL)
            if _same(descriptor, path):  # else its last owner has renamed or deleted it
                yield descriptor
                return
        finally:
            os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody has the file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
