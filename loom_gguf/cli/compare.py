"""`loom-gguf compare`: where and how far two models, or two captures, part."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ComparisonError, PromptError
from .output import console, info, size_text
from .run import add_loading_options

if TYPE_CHECKING:
    from ..compare import Comparison


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "compare",
        help="the same tokens through two files: where their hidden states part",
        usage="loom-gguf compare A B [--prompt TEXT ...] [--out FILE ...] [options]",
        description="Read the same tokens with A and B, and compare every hidden state and the logits: relative error "
        "|a - b| / |a| and cosine of each layer, agreement of the most probable next token and KL(A||B) in nats, and "
        "the first layer where they part. A and B are models, or files of states (.safetensors or .npz) from "
        "`loom-gguf run --out` or from PyTorch. A is the reference. Without prompts, a few short texts that come with "
        "the package are read; a file of states has tokens of its own.",
        epilog="Example: loom-gguf compare model-f16.gguf model-q4_k_m.gguf --prompt 'Once upon a time' "
        "--out report.html",
    )
    parser.add_argument("a", metavar="A", help="path of a .gguf file, demo, or a file of states: the reference")
    parser.add_argument("b", metavar="B", help="what is compared with it")

    tokens = parser.add_argument_group("what to read")
    choice = tokens.add_mutually_exclusive_group()
    choice.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="texts. May be repeated")
    choice.add_argument(
        "--prompts-file", metavar="FILE", help="a text per line, empty lines left out; - reads them from stdin"
    )
    choice.add_argument(
        "--tokens", type=_token_ids, action="append", metavar="LIST",
        help="token ids with commas, taken as they are; for files whose vocabularies differ. May be repeated",
    )  # fmt: skip

    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", nargs="+", action="extend", default=[], metavar="FILE",
        help="also write FILE.html (a report in one file), FILE.png or FILE.svg (a picture), FILE.json or FILE.csv "
        "(every number). May be repeated",
    )  # fmt: skip
    results.add_argument("--json", action="store_true", help="print JSON instead of the table")
    results.add_argument(
        "--threshold", type=float, default=0.05, metavar="X",
        help="the relative error from which a row counts as parted (default: 0.05)",
    )  # fmt: skip
    results.add_argument(
        "--no-logits", action="store_true", help="hidden states alone: less time and memory for large vocabularies"
    )

    loading = parser.add_argument_group("how to load both models")
    add_loading_options(loading)
    each = parser.add_argument_group("how to load one of them, where it differs")
    for side in ("a", "b"):
        each.add_argument(
            f"--{side}-precision", choices=("fast", "exact"), help=f"for {side.upper()} instead of --precision"
        )
        each.add_argument(
            f"--{side}-gpu-layers", type=int, metavar="N", help=f"for {side.upper()} instead of --gpu-layers"
        )
        each.add_argument(f"--{side}-threads", type=int, metavar="N", help=f"for {side.upper()} instead of --threads")
    each.add_argument(
        "--one-at-a-time", action="store_true", default=None,
        help="load B only after A was closed, and keep A's rows in temporary files meanwhile (default: where the "
        "memory does not hold both)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, print, and write what was asked for."""
    from ..compare import compare
    from ..compare.report import check_targets

    targets = check_targets(args.out)  # before minutes of computing
    prompts = args.prompt if args.prompts_file is None else _read_prompts(args.prompts_file)
    with _progress() as progress:
        comparison = compare(
            args.a,
            args.b,
            prompts,
            tokens=args.tokens,
            a_options=_options(args, "a"),
            b_options=_options(args, "b"),
            logits=not args.no_logits,
            threshold=args.threshold,
            one_at_a_time=args.one_at_a_time,
            progress=progress,
        )
    _print(comparison, as_json=args.json)
    for target in targets:
        comparison.save(target)
        info(f"wrote {target}, {size_text(target.stat().st_size)}")
    return 0


def _print(comparison: Comparison, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console().print(comparison)
    sys.stdout.flush()


def _options(args: argparse.Namespace, side: str) -> dict[str, Any]:
    """How to open one side; only what differs from Model's own defaults, so that reports name no more."""

    def chosen(name: str) -> Any:
        own = getattr(args, f"{side}_{name}")
        return getattr(args, name) if own is None else own

    given = {
        "n_ctx": args.ctx,
        "n_threads": chosen("threads"),
        "n_gpu_layers": chosen("gpu_layers"),
        "precision": chosen("precision"),
    }
    usual = {"n_ctx": 4096, "n_threads": None, "n_gpu_layers": -1, "precision": "fast"}
    return {name: value for name, value in given.items() if value != usual[name]}


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token ids such as 1,15,7") from None


def _read_prompts(path: str) -> list[str]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{'stdin' if path == '-' else path} is not text in UTF-8: {error}") from None
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ComparisonError(f"{'stdin' if path == '-' else path} has no prompts: write one per line")
    return prompts


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("forward passes", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
