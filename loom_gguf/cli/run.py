"""`loom-gguf run`: generate text, and write the hidden states behind it to a file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import CaptureError, LoomError
from .options import add_loading_options, layer_list, load, prompt_text
from .output import console, info, size_text
from .recording import Recording

if TYPE_CHECKING:
    from ..capture import Capture
    from ..model import Model
    from ..states import States

_MAX_SEED = 2**32 - 2


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "run",
        help="generate text; capture hidden states to a file",
        usage="loom-gguf run MODEL PROMPT [options]",
        description="Generate text. Only the text goes to stdout, as it comes; everything else goes to stderr. "
        "Ctrl-C ends the generation, and what was captured so far is written.",
        epilog="Example: loom-gguf run demo 'One morning' --layers 0,5,-1 --out states.safetensors",
    )
    parser.add_argument("model", metavar="MODEL", help="name of a model, path of a .gguf file, or demo")
    parser.add_argument(
        "prompt", metavar="PROMPT", help="the text to go on from; - reads it from stdin, without a final line end"
    )

    capture = parser.add_argument_group("what to capture")
    capture.add_argument(
        "--layers", type=layer_list, metavar="LIST",
        help="outputs of these blocks: 0-based indices with commas (0,5,-1; -1 is the last), or all",
    )  # fmt: skip
    capture.add_argument(
        "--nodes", nargs="+", action="extend", default=[], metavar="NAME",
        help="graph nodes by name or glob ('attn_out-*', 'Qcur-0#1'), as `loom-gguf nodes MODEL` lists them. A "
        "glob takes the last node of each name; 'Qcur-0#*' takes all. May be repeated",
    )  # fmt: skip
    capture.add_argument("--embedding", action="store_true", help="the input of block 0")
    capture.add_argument("--final", action="store_true", help="the last block's output after the final norm")
    capture.add_argument(
        "--out", metavar="FILE",
        help="write the rows to FILE.safetensors or FILE.npz; without any of the options above: all layers, embedding "
        "and final. Without --out, a summary is printed",
    )  # fmt: skip
    capture.add_argument(
        "--no-prompt-rows", action="store_true",
        help="only the rows that produced the generated tokens, not those of the prompt's other tokens",
    )  # fmt: skip

    sampling = parser.add_argument_group("how to generate")
    sampling.add_argument("--max-tokens", type=int, default=128, metavar="N", help="tokens to generate (default: 128)")
    sampling.add_argument(
        "--temperature", type=float, default=0.0, metavar="X",
        help="0 takes the most probable token each time (default: 0)",
    )  # fmt: skip
    sampling.add_argument(
        "--top-k", type=int, default=40, metavar="N",
        help="draw from the N most probable tokens, 0 for all (default: 40)",
    )  # fmt: skip
    sampling.add_argument(
        "--top-p", type=float, default=0.95, metavar="X",
        help="draw from the most probable tokens that together have this probability (default: 0.95)",
    )  # fmt: skip
    sampling.add_argument(
        "--min-p", type=float, default=0.0, metavar="X",
        help="leave out tokens less probable than X times the first (default: 0)",
    )  # fmt: skip
    sampling.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of the random numbers, or random (default: 0)"
    )
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text. May be repeated"
    )

    loading = parser.add_argument_group("how to load the model")
    add_loading_options(loading)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate, then write or sum up what was captured, also after an error or Ctrl-C."""
    from ..states_file import check_target

    capture = _capture(args)
    if args.out is not None:
        check_target(args.out)  # before minutes of computing
    prompt = prompt_text(args.prompt)
    recording = Recording()
    ended: BaseException | None = None
    with load(args) as model:
        sampling = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
        try:
            if model.encoder:
                _read(model, prompt, capture, args, recording)
            else:
                steps = model.generate(
                    prompt,
                    capture=capture,
                    prompt_states=capture is not None and not args.no_prompt_rows,
                    max_tokens=args.max_tokens,
                    stop=args.stop,
                    **sampling,
                )
                for step in steps:
                    recording.play(step)
                recording.end_line()
        except (KeyboardInterrupt, OSError, LoomError) as error:  # OSError: stdout is closed, or its disk full
            ended = error
        states = recording.states
        if states is not None and args.out is not None:
            settings = {"precision": args.precision, "sampling": sampling}
            states.save(args.out, metadata=recording.facts(model, prompt, settings))
            _say_what_was_written(states, args.out)
        elif states is not None:
            _summary(states)
    if ended is not None:
        raise ended
    return 0


def _read(model: Model, prompt: str, capture: Capture | None, args: argparse.Namespace, recording: Recording) -> None:
    """Rows of a text from a model that cannot go on with it."""
    if capture is None or args.no_prompt_rows:
        raise CaptureError(
            f"{args.model} ({model.arch}) reads whole texts and generates nothing, so there is only the prompt to "
            f"capture: say what, e.g. --layers all, or give --out FILE, without --no-prompt-rows"
        )
    recording.read(model.forward(prompt, capture))
    info(f"{model.arch} reads whole texts and generates nothing: these are the rows of the prompt")


def _capture(args: argparse.Namespace) -> Capture | None:
    from ..capture import Capture

    capture = Capture(embedding=args.embedding, final=args.final, patterns=tuple(args.nodes))
    if args.layers == "all":
        capture |= Capture.all_layers()
    elif args.layers is not None:
        capture |= Capture.layers(args.layers)
    if not capture and args.out is not None:
        capture = Capture.all_layers(embedding=True, final=True)
    return capture or None


def _seed(text: str) -> int | None:
    if text == "random":
        return None
    if text.isascii() and text.isdigit() and int(text) <= _MAX_SEED:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 to {_MAX_SEED} nor `random`")


def _say_what_was_written(states: States, path: str) -> None:
    import os

    keys = len(states) + len(states.tensors)
    info(
        f"wrote {len(states.tokens)} rows (positions {states.positions[0]} to {states.positions[-1]}) of {keys} nodes "
        f"to {path}, {size_text(os.path.getsize(path))}"
    )


def _summary(states: States) -> None:
    """A line per node, to stderr."""
    import numpy as np
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"captured rows: positions {states.positions[0]} to {states.positions[-1]} (--out FILE writes them)",
        title_justify="left",
    )
    for name in ("node", "hidden state", "shape", "mean L2 norm", "smallest value", "largest value"):
        table.add_column(name, justify="left" if name in ("node", "hidden state") else "right", no_wrap=True)
    roles = {key: f"layer {il}" for il, key in states.roles.layers.items()}
    roles.update({key: name for name in ("embedding", "final") if (key := getattr(states.roles, name)) is not None})
    for key, value in states.values_by_key.items():
        rows = value.array.astype(np.float64)
        norms = np.linalg.norm(rows.reshape(len(rows), -1), axis=1) if rows.size else rows
        numbers = (f"{norms.mean():.4g}", f"{rows.min():.4g}", f"{rows.max():.4g}") if rows.size else ("", "", "")
        shape = " x ".join(map(str, value.array.shape))
        table.add_row(*map(Text, (key, roles.get(key, ""), shape, *numbers)))
    console(stderr=True).print(table)
