"""`loom-gguf where`: which model a name means."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from ..errors import ModelNotFoundError
from ..report.labels import printable

_ORDER = "a file's path, demo, our own store, $LOOM_MODELS_DIR, Ollama, Hugging Face's cache, LM Studio"


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "where",
        help="the file that a model's name means, and others of that name",
        usage="loom-gguf where NAME [--json]",
        description="Print the place and the file of every model that NAME may mean, the one that it does mean first. "
        f"Places have this order: {_ORDER}.",
    )
    parser.add_argument("name", metavar="NAME", help="e.g. llama3.2, llama3.2:1b or hf.co/org/repo:Q4_K_M")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the places."""
    from ..library import Library, LibrarySettings, find
    from .listing import facts

    entries = Library(LibrarySettings.read(os.environ)).where(args.name)
    first = _found(find, args.name)
    if first is not None and first.place == "file":
        entries.insert(0, first)
    if not entries:
        raise ModelNotFoundError(f"no model '{args.name:.200}': `loom-gguf list` shows those that are there")
    if args.json:
        print(json.dumps([facts(entry) for entry in entries], indent=2, ensure_ascii=False))
        return 0
    for entry in entries:
        said = entry.problem if entry.problem is not None else entry.path
        print("\t".join(printable(str(text)) for text in (entry.place, entry.tag, said)))
    return 0


def _found(find: Any, name: str) -> Any:
    """What resolve() takes it for, where that is a path."""
    from ..errors import LoomError

    try:
        return find(name)
    except LoomError:
        return None
