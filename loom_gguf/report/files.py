"""Reports as files: the suffix says what is written, and each file appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import StrPath, check_target, replacing
from .numbers import cell, plain

FORMATS = ("html", "png", "svg", "json", "csv")
SUFFIXES = tuple(f".{kind}" for kind in FORMATS)


def check_report(path: StrPath) -> Path:
    """The path, if a report may be written there; worth asking before a long computation."""
    return check_target(path, SUFFIXES)


def save_report(path: StrPath, content: Callable[[str], str | bytes], what: str) -> Path:
    """Write what `content` makes of the format that the path's suffix names, one of FORMATS.

    what: for the message where it cannot be written.
    """
    target = check_report(path)
    data = content(target.suffix.lower()[1:])
    # Half a surrogate pair, as a broken name has it, is no UTF-8.
    whole = data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace")
    with replacing(target, what) as temporary:
        temporary.write_bytes(whole)
    return target


def json_text(document: Any) -> str:
    """A document as JSON with a line end; null for what is no finite number."""
    return json.dumps(plain(document), ensure_ascii=False, allow_nan=False) + "\n"


def csv_text(rows: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    """Rows, the head first, as CSV; nothing for what is no number."""
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(map(cell, row) for row in rows)
    return out.getvalue()
