"""Whether captured rows will fit, before they are computed."""

from __future__ import annotations

import re
from pathlib import Path

from .catalog import Selection
from .errors import CaptureMemoryError


def capture_bytes(selection: Selection, n_rows: int) -> int:
    """Size of the float32 rows of a capture, in bytes; dimensions that vary count as one."""
    total = 0
    for node in selection.nodes:
        values = n_rows if node.token_axis is not None else 1
        for axis, size in enumerate(node.shape):
            if axis != node.token_axis and isinstance(size, int):
                values *= size
        total += 4 * values
    return total


def available_bytes() -> int | None:
    """Memory that this machine can still give, in bytes; None where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def out_of_memory(what: str, size: int) -> CaptureMemoryError:
    """The error for rows of this size, in bytes, for which there was no memory after all."""
    return CaptureMemoryError(
        f"no memory for {what}, {size / 2**20:,.1f} MiB: capture fewer nodes, a shorter prompt, or only its last row "
        f'(keep="last")'
    )


def need_memory(selection: Selection, n_rows: int) -> None:
    """Raise CaptureMemoryError where the rows cannot fit.

    Linux promises more memory than it has and ends the process when it is used: it must be asked first.
    """
    size, available = capture_bytes(selection, n_rows), available_bytes()
    if available is not None and size > available:
        raise CaptureMemoryError(
            f"the rows of {len(selection.nodes)} nodes at {n_rows:,} tokens need {size / 2**30:,.1f} GiB, but "
            f"{available / 2**30:,.1f} GiB are free: capture fewer nodes, a shorter prompt, or only its last row "
            f'(keep="last")'
        )
