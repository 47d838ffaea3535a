"""`loom-gguf lens`: what every layer would say if the model ended there."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..errors import NotCapturedError, PromptError
from .options import (
    add_loading_options,
    add_report_options,
    at_least,
    layer_list,
    load,
    prompt_text,
    report_files,
    token_ids,
)
from .output import console, progress_bars, say_written

if TYPE_CHECKING:
    from ..lens import LensResult
    from ..states import States


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "lens",
        help="the logit lens: what each layer would predict",
        usage="loom-gguf lens MODEL [PROMPT] [--out PATH ...] [options]",
        description="The logit lens: each layer's hidden state through the model's own final norm and output matrix, "
        "as if the model ended there. A terminal gets each layer's most probable next token at each position, coloured "
        "by its probability, and all top tokens at one position, with the rank and probability of the model's own "
        "choice and the divergence (KL, nats) from its prediction; a pipe or file gets every number in columns "
        "separated by tabs. Refused where the way from the last layer to the logits is not understood.",
        epilog="Example: loom-gguf lens demo 'One morning a fox' --out lens.html lens.png",
    )
    parser.add_argument("model", metavar="MODEL", help="name of a model, path of a .gguf file, or demo")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?",
        help="the text to read; - reads it from stdin, without a final line end",
    )  # fmt: skip
    reading = parser.add_argument_group("what to read, instead of a prompt")
    reading.add_argument(
        "--states", metavar="FILE",
        help="rows of this model that `loom-gguf run --out FILE` wrote, .safetensors or .npz",
    )  # fmt: skip
    reading.add_argument("--tokens", type=token_ids, metavar="LIST", help="token ids with commas, taken as they are")

    what = parser.add_argument_group("what to tell")
    what.add_argument("--top-k", type=at_least(1), default=5, metavar="N", help="tokens to tell per state (default: 5)")
    what.add_argument(
        "--layers", type=layer_list, metavar="LIST",
        help="only these blocks, and the final state: 0-based indices with commas (0,5,-1; -1 is the last), or all "
        "(default: all, and the embedding)",
    )  # fmt: skip
    what.add_argument(
        "--position", type=int, default=-1, metavar="P",
        help="which row to tell all top tokens of, counted from 0; -1 is the last (default: -1)",
    )  # fmt: skip

    results = parser.add_argument_group("results")
    add_report_options(results, "layers x positions")
    results.add_argument(
        "--measure", choices=("prob", "rank", "kl"), default="prob",
        help="colours of a picture: probability or rank of the model's own choice, or the KL divergence (default: "
        "prob)",
    )  # fmt: skip
    add_loading_options(parser.add_argument_group("how to load the model"))
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Compute, print, write."""
    from ..lens import lens

    files = report_files(args)
    source = _source(args)
    layers = None if args.layers == "all" else args.layers
    with load(args) as model, progress_bars() as progress:
        result = lens(model, source, top_k=args.top_k, layers=layers, progress=progress)
    _print(result, args)
    for file in files:
        result.save(file, measure=args.measure)
        say_written(file)
    return 0


def _source(args: argparse.Namespace) -> str | list[int] | States:
    from ..states import States

    given = [source for source in (args.prompt, args.states, args.tokens) if source is not None]
    if len(given) != 1:
        raise PromptError("give a PROMPT, or --states FILE, or --tokens LIST, and not both or all of them")
    if args.states is not None:
        return States.load(args.states)
    return prompt_text(args.prompt) if args.tokens is None else list(args.tokens)


def _print(result: LensResult, args: argparse.Namespace) -> None:
    from ..lens.terminal import detail, overview
    from ..report.files import csv_text, json_text

    n_tokens = result.n_tokens
    if not -n_tokens <= args.position < n_tokens:
        raise NotCapturedError(f"there is no row {args.position}: the lens has {n_tokens}, 0 to {n_tokens - 1}")
    if args.json:
        sys.stdout.write(json_text(result.to_dict()))
    elif sys.stdout.isatty():
        out = console()
        out.print(overview(result))
        out.print()
        out.print(detail(result, args.position % n_tokens))
    else:
        sys.stdout.write(csv_text(result.csv_rows(), "\t"))
    sys.stdout.flush()
