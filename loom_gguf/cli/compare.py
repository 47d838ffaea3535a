"""`loom-gguf compare`: where and how far two models, or two captures, part."""

from __future__ import annotations

import argparse
import inspect
import sys
from typing import TYPE_CHECKING, Any

from .options import add_loading_options, add_prompt_options, add_report_options, loading, prompts, report_files
from .output import console, info, progress_bar, say_written

if TYPE_CHECKING:
    from ..compare import Comparison


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "compare",
        help="the same tokens through two files: where their hidden states part",
        usage="loom-gguf compare A B [--prompt TEXT ...] [--out PATH ...] [options]",
        description="Read the same tokens with A and B, and compare every hidden state and the logits: relative error "
        "|a - b| / |a| and cosine of each layer, agreement of the most probable next token and KL(A||B) in nats, and "
        "the first layer where they part. A and B are models, or files of states (.safetensors or .npz) from "
        "`loom-gguf run --out` or from PyTorch. A is the reference. Without prompts, a few short texts that "
        "come with the package are read. A terminal gets a table, a pipe or file every number in columns separated by "
        "tabs, with the findings on stderr.",
        epilog="Example: loom-gguf compare model-f16.gguf model-q4_k_m.gguf --prompt 'Once upon a time' "
        "--out report.html",
    )
    parser.add_argument(
        "a", metavar="A", help="name of a model, path of a .gguf file, demo, or a file of states: the reference"
    )
    parser.add_argument("b", metavar="B", help="what is compared with it")

    add_prompt_options(parser.add_argument_group("what to read; a file of states has tokens of its own"))

    results = parser.add_argument_group("results")
    add_report_options(results, "errors and cosines by layer, KL by token")
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
        each.add_argument(f"--{side}-device", metavar="NAME", help=f"for {side.upper()} instead of --device")
        each.add_argument(f"--{side}-threads", type=int, metavar="N", help=f"for {side.upper()} instead of --threads")
    each.add_argument(
        "--one-at-a-time", action="store_true", default=None,
        help="load B only after A was closed, and keep A's rows in temporary files meanwhile (default: where the "
        "memory does not hold both)",
    )  # fmt: skip
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Compare, print, and write what was asked for."""
    from ..compare import compare

    texts = prompts(args)
    files = report_files(args)
    with progress_bar("forward passes") as progress:
        comparison = compare(
            args.a,
            args.b,
            texts or None,
            tokens=args.tokens,
            a_options=_options(args, "a_"),
            b_options=_options(args, "b_"),
            logits=not args.no_logits,
            threshold=args.threshold,
            one_at_a_time=args.one_at_a_time,
            progress=progress,
        )
    _print(comparison, as_json=args.json)
    for file in files:
        comparison.save(file)
        say_written(file)
    return 0


def _print(comparison: Comparison, *, as_json: bool) -> None:
    from ..compare.report import csv_rows, findings
    from ..report.files import csv_text, json_text

    if as_json:
        sys.stdout.write(json_text(comparison.to_dict()))
    elif sys.stdout.isatty():
        console().print(comparison)
    else:
        sys.stdout.write(csv_text(csv_rows(comparison), "\t"))
        for sentence in findings(comparison):
            info(sentence)
    sys.stdout.flush()


def _options(args: argparse.Namespace, side: str) -> dict[str, Any]:
    """How to open one side; only what differs from Model's own defaults, so that reports name no more."""
    from ..model import Model

    usual = inspect.signature(Model).parameters
    return {name: value for name, value in loading(args, side).items() if value != usual[name].default}
