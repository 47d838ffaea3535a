"""Files of other programs, read with suspicion: bounded, regular, and inside of the folders that were configured."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import ManifestError

logger = logging.getLogger(__name__)

MAX_TEXT = 4 * 2**20  # bytes of a manifest, a configuration or a template
_MAX_FILES = 10_000  # models of one place
_MAX_FOLDERS = 50_000  # looked into, of one place


def read_bounded(path: Path, limit: int = MAX_TEXT) -> bytes:
    """A regular file of at most `limit` bytes. ManifestError for anything else; it never waits for a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ManifestError(f"{path} is no regular file")
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {reason(error)}") from None
    if len(data) > limit:
        raise ManifestError(f"{path} has {found.st_size:,} bytes; more than {limit:,} are not read")
    return data


def real_roots(folders: Iterable[Path]) -> tuple[str, ...]:
    """Folders with all links followed."""
    return tuple(dict.fromkeys(os.path.realpath(folder) for folder in folders))


def inside(path: Path, roots: Iterable[str]) -> bool:
    """Whether a file lies below one of the roots when all links are followed. False where it is not there."""
    try:
        real = os.path.realpath(path, strict=True)
    except (OSError, ValueError):  # gone, a circle of links, a NUL
        return False
    return any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots)


def regular(path: Path) -> bool:
    """Whether it is a file or a link to one."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def gguf_files(folder: Path, roots: Iterable[str], max_depth: int) -> Iterator[Path]:
    """The .gguf files in a folder and those below it, in order; not hidden ones, nor links out of the roots."""
    roots = tuple(roots)
    n_files = n_folders = 0
    for at, folders, files in os.walk(folder):
        depth = len(Path(at).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < max_depth else []
        n_folders += 1
        for file in sorted(files):
            if file.startswith(".") or not file.lower().endswith(".gguf"):
                continue
            path = Path(at) / file
            if not regular(path) or (path.is_symlink() and not inside(path, roots)):
                logger.debug("not offered: %s is no file, or a link out of the folders of models", path)
                continue
            n_files += 1
            if n_files > _MAX_FILES or n_folders > _MAX_FOLDERS:
                logger.warning("%s is too large: not all of its models are offered", folder)
                return
            yield path


def reason(error: Exception) -> str:
    """What the system says was wrong."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
