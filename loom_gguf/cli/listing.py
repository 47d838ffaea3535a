"""`loom-gguf list`: the models on this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ..errors import LoomError
from ..report.labels import printable
from .output import console, size_text

if TYPE_CHECKING:
    from ..library import Entry, Place

_COLUMNS = ("name", "place", "size", "quantization", "hidden states")


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "list",
        help="list the models on this machine",
        usage="loom-gguf list [--place PLACE] [--json]",
        description="List the models that have a name here: our own, loose files of $LOOM_MODELS_DIR, and those that "
        "Ollama, Hugging Face's programs and LM Studio have downloaded. Says where each lies, its size and "
        "quantization, and whether its hidden states can be had, or why not. Reads only headers and manifests. A "
        "terminal gets a table, a pipe or file columns separated by tabs.",
    )
    parser.add_argument(
        "--place",
        choices=("demo", "own", "folder", "ollama", "huggingface", "lmstudio"),
        help="only models of this place",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with paths and digests")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the models."""
    from ..library import Library, LibrarySettings
    from ..library.names import key

    taken: dict[str, Place] = {}
    names: set[str] = set()
    rows = []
    for entry in Library(LibrarySettings.read(os.environ)).entries():
        first = taken.setdefault(key(entry.name), entry.place)
        if args.place in (None, entry.place):
            hidden = first != entry.place or entry.name in names
            rows.append(facts(entry) | {"hidden_by": first if hidden else None})
        names.add(entry.name)
    if args.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _table(rows)
    else:
        for row in (_COLUMNS, *map(_row, rows)):
            print("\t".join(row))
    return 0


def facts(entry: Entry) -> dict[str, Any]:
    """An entry as plain values; reads its header."""
    from ..library.loose import agreed_quantization

    level, how, quantization = _header(entry)
    return {
        "name": _sane(entry.tag),
        "place": entry.place,
        "path": None if entry.path is None else _sane(str(entry.path)),
        "parts": len(entry.parts),
        "size": entry.size,
        "quantization": agreed_quantization(entry.quantization, quantization),
        "digest": entry.digest,
        "modified": entry.modified.isoformat(),
        "hidden_states": {"level": level, "how": _sane(how)},
        "problem": None if entry.problem is None else _sane(str(entry.problem)),
    }


def _header(entry: Entry) -> tuple[str, str, str | None]:
    """Whether hidden states can be had, how, and the quantization."""
    from ..gguf_file import read_model
    from ..support import support

    if entry.problem is not None or entry.path is None:
        return "refused", f"no: {entry.problem}", None
    try:
        file = read_model(entry.path)
    except LoomError as error:
        return "refused", f"no: {error}", None
    return *support(file), file.quantization


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    level, how = row["hidden_states"]["level"], row["hidden_states"]["how"]
    said = "yes" if level == "all" else how
    if row["hidden_by"]:
        said = f"(the name means the model of the place {row['hidden_by']}) {said}"
    name = printable(row["name"])
    return name, row["place"], size_text(row["size"]), printable(row["quantization"] or ""), printable(said)


def _sane(text: str) -> str:
    """Names of files may have bytes that are no text."""
    return text.encode("utf-8", "replace").decode()


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in _COLUMNS:
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for row in rows:
        table.add_row(*map(Text, _row(row)))
    console().print(table)
