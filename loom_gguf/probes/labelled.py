"""Labelled texts from a file: CSV with a header line, or one JSON object per line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LabelledFileError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_MAX_FIELD = 2**24  # characters: longer than any text that fits into a context


@dataclass(frozen=True)
class LabelledTexts:
    """N texts, each with a label and, where the file has them, a group."""

    texts: list[str]
    labels: list[str]
    groups: list[str] | None


def read_labelled(
    path: str | os.PathLike[str], *, text: str = "text", label: str = "label", group: str | None = None
) -> LabelledTexts:
    """Read a .csv, .tsv, .jsonl or .ndjson file (UTF-8).

    text, label, group: names of the columns (keys). With `group` None, a column "group" is used where there is one.
    Labels and groups are taken as strings; every line must have them.
    """
    source = Path(path)
    suffix = source.suffix.lower()
    if suffix not in _DELIMITERS and suffix not in _JSON_LINES:
        known = ", ".join((*_DELIMITERS, *_JSON_LINES))
        raise LabelledFileError(f"cannot tell the format of {source}: its name must end in one of {known}")
    found = LabelledTexts([], [], [])
    columns: list[str] = []
    lines = _json_lines(source) if suffix in _JSON_LINES else _csv_lines(source, _DELIMITERS[suffix])
    for where, record in lines:
        if not columns:
            columns = [text, label, *([group or "group"] if group is not None or "group" in record else [])]
        values = [_value(record, column, where) for column in columns]
        found.texts.append(values[0])
        found.labels.append(values[1])
        if found.groups is not None:
            found.groups.extend(values[2:])
    if not found.texts:
        raise LabelledFileError(f"{source} holds no texts: give one per line, under a header line in CSV")
    return found if found.groups else LabelledTexts(found.texts, found.labels, None)


def _value(record: Mapping[str, Any], column: str, where: str) -> str:
    if column not in record:
        have = ", ".join(str(key) for key in record if key is not None)
        raise LabelledFileError(f"{where} has no {column!r}, only {have or 'nothing'}: name the columns to use")
    value = record[column]
    if isinstance(value, bool | int | float):
        value = json.dumps(value)
    if not isinstance(value, str) or value == "":
        raise LabelledFileError(f"{where}: {column!r} is {'empty' if value in (None, '') else 'no text or number'}")
    return value


def _csv_lines(path: Path, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            for record in reader:
                where = f"{path}, line {reader.line_num}"
                if None in record:
                    raise LabelledFileError(f"{where} has more fields than the header: quote texts that hold commas")
                yield where, record
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise LabelledFileError(f"{where} is no JSON object")
                    yield where, record
    except (json.JSONDecodeError, RecursionError) as error:
        raise LabelledFileError(f"{path}, line {number} is no JSON ({error})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> LabelledFileError:
    reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
    return LabelledFileError(f"{path} cannot be read: {reason}")
