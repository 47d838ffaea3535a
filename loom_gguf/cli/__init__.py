"""The command `loom-gguf`: one module per subcommand, each with `add_parser` and `run`.

The parsers import nothing heavy; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import LoomError
from . import (
    analyze,
    compare,
    copying,
    demo,
    lens,
    listing,
    nodes,
    probe,
    pull,
    quantizing,
    removing,
    run,
    serve,
    show,
    where,
)

PROGRAM = "loom-gguf"
INTERRUPTED = 130  # what shells report after Ctrl-C: 128 + SIGINT
BROKEN_PIPE = 141  # and after a closed pipe: 128 + SIGPIPE


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Hidden states of any GGUF model, every layer and every token, while it generates.",
        epilog=f"`{PROGRAM} COMMAND --help` tells more. MODEL is a name that `{PROGRAM} list` shows, the path "
        f"of a .gguf file, or `demo`, a small model that comes with the package.",
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(prog=PROGRAM, title="commands", metavar="COMMAND", dest="command", required=True)
    models = (listing, where, pull, copying, removing, quantizing, show, nodes)
    for command in (demo, run, analyze, lens, compare, probe, *models, serve):
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    arguments = _joined(sys.argv[1:] if argv is None else argv)
    _never_fail_on_characters()
    try:
        args = parser().parse_args(arguments)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except SystemExit as error:  # argparse: 0 after --help, 2 after wrong usage
        return error.code if isinstance(error.code, int) else 2
    except BrokenPipeError:
        # The reader has gone, e.g. `| head`; nor may Python complain when it flushes at its exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except LoomError as error:
        return _error(str(error))
    except OSError as error:
        return _error(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))


def _error(text: str) -> int:
    print(f"{PROGRAM}: error: {' '.join(text.split())}", file=sys.stderr)
    return 1


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--layers -1,0` as `--layers=-1,0`: argparse would take "-1,0" for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--layers" and re.match(r"-\d", argument):
            joined[-1] += "=" + argument
        else:
            joined.append(argument)
    return joined


def _never_fail_on_characters() -> None:
    """In a locale without UTF-8, show what cannot be written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if (getattr(stream, "encoding", None) or "utf-8").lower() != "utf-8" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _Version(argparse.Action):
    """Prints the version; looked up only then, because the package's own import loads llama.cpp."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .. import __version__

        print(PROGRAM, __version__)
        parser.exit()
