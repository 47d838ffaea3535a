"""Options that several commands have, and what they mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PromptError

if TYPE_CHECKING:
    from ..model import Model

_FORMATS = ("html", "png", "svg", "json", "csv")  # report.files has them too, but takes numpy with it

# -- how to load models -----------------------------------------------------------------------------------------


def add_loading_options(group: Any) -> None:
    """The options that `loading` reads."""
    group.add_argument("--ctx", type=int, default=4096, metavar="N", help="tokens of the context (default: 4096)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: by the machine)")
    group.add_argument(
        "--gpu-layers", type=int, default=-1, metavar="N", help="blocks to keep on the GPU, -1 for all (default: -1)"
    )
    group.add_argument(
        "--device", default="auto", metavar="NAME",
        help="auto (all GPUs, else the CPU), cpu, cuda, cuda:1, metal (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=("fast", "exact"), default="fast",
        help="fast: as the model runs in practice; exact: float32 attention and cache, to compare with other "
        "implementations, and attention weights (kq_soft_max) as nodes (default: fast)",
    )  # fmt: skip


def loading(args: argparse.Namespace, side: str = "") -> dict[str, Any]:
    """Keyword arguments of Model; side: "a_" for what --a-device and its like say instead."""

    def chosen(name: str) -> Any:
        own = getattr(args, side + name, None)
        return getattr(args, name) if own is None else own

    return {
        "n_ctx": chosen("ctx"),
        "n_threads": chosen("threads"),
        "n_gpu_layers": chosen("gpu_layers"),
        "precision": chosen("precision"),
        "device": chosen("device"),
    }


def load(args: argparse.Namespace, model: str | None = None) -> Model:
    """The model that the options ask for; model: another one than MODEL."""
    from ..model import Model

    return Model(args.model if model is None else model, **loading(args))


# -- what is read -----------------------------------------------------------------------------------------------


def add_prompt_options(group: Any) -> None:
    """The options that `prompts` reads."""
    group.add_argument(
        "--prompt", nargs="+", action="extend", default=[], metavar="TEXT", dest="prompts",
        help="texts to read. May be repeated",
    )  # fmt: skip
    group.add_argument(
        "--prompts-file", metavar="FILE", help="more texts, one to a line, in UTF-8; - reads them from stdin"
    )
    group.add_argument(
        "--tokens", type=token_ids, action="append", metavar="LIST",
        help="instead of texts: token ids with commas, taken as they are. May be repeated",
    )  # fmt: skip


def prompts(args: argparse.Namespace) -> list[str]:
    """All texts that were given, in this order: those of the command line, those of the file."""
    if args.tokens is not None and (args.prompts or args.prompts_file is not None):
        args.parser.error("--tokens is not allowed with --prompt and --prompts-file: give the one or the other")
    return [*args.prompts, *(_lines(args.prompts_file) if args.prompts_file is not None else [])]


def prompt_text(text: str) -> str:
    """A PROMPT as it was given, or all of stdin for `-`."""
    if text != "-":
        return text
    try:
        # `echo` ends its line; that the prompt ends so too is hardly ever meant.
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise PromptError(f"stdin is not text in UTF-8: {error}") from None


def _lines(path: str) -> list[str]:
    name = "stdin" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not text in UTF-8: {error}") from None
    # Not str.splitlines: it also breaks at characters that belong to texts, such as U+2028.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    found = [line for line in lines if line.strip()]
    if not found:
        raise PromptError(f"{name} has no prompts: write one to a line")
    return found


# -- where results go -------------------------------------------------------------------------------------------


def add_report_options(group: Any, picture: str, *, more: str = "") -> None:
    """The options that `report_files` reads; picture: what a .png or .svg file shows; more: what else a folder gets."""
    group.add_argument(
        "--out", nargs="+", action="extend", default=[], metavar="PATH",
        help=f"also write files: NAME.html (a page of its own), NAME.png or NAME.svg ({picture}), NAME.json or "
        f"NAME.csv (every number); or, where PATH has no such ending, a folder with all of them as report.html and so "
        f"on{more}, made if need be. May be repeated",
    )  # fmt: skip
    group.add_argument(
        "--format", type=formats, action="extend", metavar="LIST", dest="formats",
        help=f"which files a folder gets, with commas: {','.join(_FORMATS)} (default: all)",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="print JSON instead of the table")


def report_targets(args: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Files and folders to write to, checked; worth asking before minutes of computing."""
    from ..files import check_folder
    from ..report.files import check_report

    paths = [Path(path) for path in args.out]
    folders = [path for path in paths if path.is_dir() or not path.suffix]
    if args.formats and not folders:
        args.parser.error("--format says what to write into a folder: give --out FOLDER too")
    return [check_report(path) for path in paths if path not in folders], [check_folder(path) for path in folders]


def report_files(args: argparse.Namespace) -> list[Path]:
    """The same as files alone, for a result with one file of each format."""
    files, folders = report_targets(args)
    return [*files, *(folder / f"report.{kind}" for folder in folders for kind in args.formats or _FORMATS)]


# -- values of options ------------------------------------------------------------------------------------------


def layer_list(text: str) -> str | list[int]:
    """`all`, or indices of blocks with commas."""
    if text == "all":
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither `all` nor a list of block indices such as 0,5,-1"
        ) from None


def token_ids(text: str) -> list[int]:
    """Token ids with commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token ids such as 1,15,7") from None


def formats(text: str) -> Sequence[str]:
    """Formats of reports with commas."""
    found = text.split(",")
    unknown = [each for each in found if each not in _FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_FORMATS)}")
    return found


def at_least(smallest: int) -> Callable[[str], int]:
    """A whole number that is no smaller."""

    def number(text: str) -> int:
        if text.isascii() and text.isdigit() and int(text) >= smallest:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {smallest}")

    return number
