"""`loom-gguf rm`: away with models of our own store."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..report.labels import printable
from .output import info, size_text


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "rm",
        help="remove models from our own store",
        usage="loom-gguf rm NAME ... | --partial",
        description="Remove models from our own store, and those of their files that no other name needs. Models of "
        "other places (Ollama, Hugging Face, LM Studio, folders) are never touched.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model that `loom-gguf list --place own` shows")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="remove downloads that ended early, which a pull could go on with",
    )
    parser.set_defaults(run=lambda args: run(parser, args))


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Remove."""
    from ..library import Library, LibrarySettings
    from ..pull.managing import own_store, remove

    if not args.names and not args.partial:
        parser.error("name a model, or say --partial")
    library = Library(LibrarySettings.read(os.environ))
    for name in args.names:
        entry, freed = remove(library, name)
        info(f"removed {printable(entry.name)} ({size_text(freed)} freed)")
        if others := library.where(name):
            info(f"{printable(name)} now means a model of the place {others[0].place}")
    if args.partial:
        info(f"removed unfinished downloads ({size_text(own_store(library).remove_partial())} freed)")
    return 0
