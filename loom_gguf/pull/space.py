"""Room on the disk: asked for before a download, and missed in the middle of one."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..cli.output import size_text
from ..errors import LoomError, NoSpaceError, StoreError

_MARGIN = 32 * 2**20  # bytes that are left to others
_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_space(folder: Path, n_bytes: int, what: str) -> None:
    """NoSpaceError where `n_bytes` more do not fit. The folder, or one above it, must be there."""
    if n_bytes <= 0:
        return
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError:  # a file system that does not tell; writing will
        return
    if n_bytes + _MARGIN > free:
        raise NoSpaceError(
            f"{what} needs {size_text(n_bytes)} more, but the disk of {folder} has {size_text(free)} free: make room, "
            f"or choose another disk with LOOM_HOME",
        )


@contextmanager
def writing(what: str, hint: str = "make room and try again") -> Iterator[None]:
    """Errors of the file system as ours."""
    try:
        yield
    except LoomError:  # some of ours are errors of the system too
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpaceError(f"the disk became full while {what}: {hint}") from None
        where = f" ({error.filename})" if error.filename else ""
        raise StoreError(f"cannot write while {what}: {error.strerror or error}{where}") from None
