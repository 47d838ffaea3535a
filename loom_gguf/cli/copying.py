"""`loom-gguf copy`: a second name for a model of our own store."""

from __future__ import annotations

import argparse
import os
from typing import Any


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "copy",
        help="give a model of our own store a second name",
        usage="loom-gguf copy NAME NEW",
        description="Give a model of our own store a second name. Both share their files, so it takes no space. Models "
        "of other places (Ollama, Hugging Face, LM Studio, folders) are left as they are.",
    )
    parser.add_argument("name", metavar="NAME", help="a model that `loom-gguf list --place own` shows")
    parser.add_argument("new", metavar="NEW", help="its second name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Copy."""
    from ..library import Library, LibrarySettings
    from ..pull.managing import copy

    print(copy(Library(LibrarySettings.read(os.environ)), args.name, args.new).short)
    return 0
