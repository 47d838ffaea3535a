"""`loom-gguf lens`: what every layer would say if the model ended there."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import NotCapturedError, PromptError
from .output import console, info, size_text
from .run import _layers, _prompt, add_loading_options, load

if TYPE_CHECKING:
    from ..lens import LensResult
    from ..model import Model


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "lens",
        help="the logit lens: what each layer would predict",
        usage="loom-gguf lens MODEL [PROMPT] [options]",
        description="The logit lens: each layer's hidden state through the model's own final norm and output matrix, "
        "as if the model ended there. Prints each layer's most probable next token at each position, coloured by its "
        "probability, and all top tokens at one position, with the rank and probability of the model's own choice and "
        "the divergence (KL, nats) from its prediction. Refused where the way from the last layer to the logits is "
        "not understood.",
        epilog="Example: loom-gguf lens demo 'One morning a fox' --out lens.html --out lens.png",
    )
    parser.add_argument("model", metavar="MODEL", help="path of a .gguf file, or demo")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?",
        help="the text to read; - reads it from stdin, without a final line end",
    )  # fmt: skip
    parser.add_argument(
        "--states", metavar="FILE",
        help="instead of a prompt: rows of this model that `loom-gguf run --out FILE` wrote, .safetensors or .npz",
    )  # fmt: skip
    parser.add_argument("--top-k", type=_positive, default=5, metavar="N", help="tokens to tell per state (default: 5)")
    parser.add_argument(
        "--layers", type=_layers, metavar="LIST",
        help="only these blocks, and the final state: 0-based indices with commas (0,5,-1; -1 is the last), or all "
        "(default: all, and the embedding)",
    )  # fmt: skip
    parser.add_argument(
        "--position", type=int, default=-1, metavar="P",
        help="which row to tell all top tokens of, counted from 0; -1 is the last (default: -1)",
    )  # fmt: skip
    parser.add_argument(
        "--out", action="append", default=[], metavar="FILE",
        help="write FILE.html (a page to click through), FILE.png or FILE.svg (a picture), FILE.json or FILE.csv (all "
        "numbers). May be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--measure", choices=("prob", "rank", "kl"), default="prob",
        help="colours of a picture: probability or rank of the model's own choice, or the KL divergence (default: "
        "prob)",
    )  # fmt: skip
    add_loading_options(parser.add_argument_group("how to load the model"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compute, print, write."""
    from ..lens.result import check_lens_target

    if (args.prompt is None) == (args.states is None):
        raise PromptError("give a PROMPT, or --states FILE, and not both")
    for path in args.out:
        check_lens_target(path)  # before minutes of computing
    with load(args) as model:
        result = _lens(model, args)
        _print(result, args.position)
    for path in args.out:
        result.save(path, measure=args.measure)
        _say_what_was_written(path)
    return 0


def _lens(model: Model, args: argparse.Namespace) -> LensResult:
    from ..lens import lens
    from ..states import States

    source = States.load(args.states) if args.states is not None else _prompt(args.prompt)
    return lens(model, source, top_k=args.top_k, layers=None if args.layers == "all" else args.layers)


def _print(result: LensResult, position: int) -> None:
    from ..lens.terminal import detail, overview

    n_tokens = result.n_tokens
    if not -n_tokens <= position < n_tokens:
        raise NotCapturedError(f"there is no row {position}: the lens has {n_tokens}, 0 to {n_tokens - 1}")
    out = console()
    out.print(overview(result))
    out.print()
    out.print(detail(result, position % n_tokens))


def _positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")


def _say_what_was_written(path: str) -> None:
    import os

    info(f"wrote {path}, {size_text(os.path.getsize(path))}")
