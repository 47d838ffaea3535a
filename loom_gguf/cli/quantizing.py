"""`loom-gguf quantize`: a model's weights in fewer bits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .output import console, info, size_text


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "quantize",
        help="write a model with its weights in fewer bits",
        usage="loom-gguf quantize IN OUT TYPE [--allow-requantize] [--force] [--threads N] [--dry-run]",
        description="Write the model IN to the file OUT with its weights as TYPE, by llama.cpp's own quantizer. Says "
        "first how large the result will be. OUT appears only when it is whole.",
        epilog="Example: loom-gguf quantize model-F16.gguf model-Q4_K_M.gguf Q4_K_M",
    )
    parser.add_argument("source", metavar="IN", help="name of a model, or path of a .gguf file: F32, F16 or BF16")
    parser.add_argument("target", metavar="OUT", type=Path, help="path of the new file")
    parser.add_argument(
        "type", metavar="TYPE", type=_type,
        help="Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, Q3_K_M, Q2_K, IQ4_XS, F16, BF16 or another one of llama.cpp's; those "
        "that need an importance matrix are refused",
    )  # fmt: skip
    parser.add_argument(
        "--allow-requantize",
        action="store_true",
        help="also quantized weights; the model gets worse",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT where it is there")
    parser.add_argument("--threads", type=_threads, metavar="N", default=0, help="(default: one for each core)")
    parser.add_argument("--dry-run", action="store_true", help="only say how large it would be")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize."""
    from ..library import resolve
    from ..quantize import forecast, quantize

    source = resolve(args.source)
    planned = forecast(source, args.type)
    info(
        f"{size_text(planned.old_size)} become about {size_text(planned.size)} "
        f"(about {planned.bits_per_weight:.2f} bits a weight; tensors: "
        f"{', '.join(f'{n} {name}' for name, n in planned.types.items())})"
    )
    if args.dry_run:
        return 0
    with _Bar() as bar:
        made = quantize(
            source, args.target, args.type, allow_requantize=args.allow_requantize, force=args.force,
            n_threads=args.threads, planned=planned, on_progress=bar.show,
        )  # fmt: skip
    info(f"wrote {args.target} ({size_text(made.size)})")
    return 0


class _Bar:
    """How far it is, where stderr is a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("quantizing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
            console=console(stderr=True), disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._task = self._bar.add_task("")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, whole: int) -> None:
        self._bar.update(self._task, completed=done, total=whole)


def _type(text: str) -> str:
    from ..quantize.types import type_named

    try:
        return type_named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _threads(text: str) -> int:
    from ..settings.values import positive

    try:
        return positive(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
