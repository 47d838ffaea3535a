"""`loom-gguf analyze`: what the hidden states of models and files look like, layer by layer."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .output import console, info, printable
from .run import add_loading_options, load

if TYPE_CHECKING:
    from rich.table import Table

    from ..analysis import Analysis
    from ..analysis.measuring import Progress

_FORMATS = ("html", "png", "svg", "json", "csv")

_WIDE = 97  # columns of a terminal that the whole table needs

# Field of LayerReport -> head of its column.
_COLUMNS = {
    "d_eff_pca90": "D_eff\npca90",
    "d_eff_entropy": "D_eff\nentropy",
    "d_eff_energy90": "D_eff\nenergy90",
    "beta_pca90": "β\npca90",
    "beta_entropy": "β\nentropy",
    "beta_energy": "β\nenergy",
    "norm_percentile_50": "L2 norm\nmedian",
    "sparsity": "spar-\nsity",
    "anisotropy": "aniso-\ntropy",
    "cosine_below": "cosine\nbelow",
    "cosine_next_token": "cosine\nnext",
    "n_outliers": "out-\nliers",
}


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "analyze",
        help="geometry of the hidden states of models or files: tables, pictures, a report",
        usage="loom-gguf analyze SOURCE... [--prompt TEXT ...] [--output DIR] [options]",
        description="Measure every hidden state, layer by layer: effective dimensions (three definitions), β, norms, "
        "sparsity, anisotropy, cosines between neighbouring layers and tokens, outlier dimensions. A terminal gets a "
        "table, a pipe or file all numbers in columns separated by tabs.",
        epilog="Example: loom-gguf analyze demo --prompt 'One morning a fox' --output report",
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE",
        help="path of a .gguf file, or demo, or a .safetensors or .npz file of captured states; several are put side "
        "by side over depth from 0 (embedding) to 1 (final)",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", nargs="+", action="extend", default=[], metavar="TEXT", dest="prompts",
        help="what the models read. May be several; files of states have their text already",
    )  # fmt: skip
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="more prompts, one to a line, in UTF-8; - reads them from stdin"
    )
    parser.add_argument(
        "--skip-first", type=_count, default=0, metavar="N",
        help="leave out the rows at the first N positions of each text; many models make the first token's state far "
        "longer than all others (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="DIR", help="write report.html, pictures, report.json and report.csv there; made if need be"
    )
    parser.add_argument(
        "--format", type=_formats, action="extend", metavar="LIST", dest="formats",
        help=f"which of them, with commas: {','.join(_FORMATS)} (default: all)",
    )  # fmt: skip
    add_loading_options(parser.add_argument_group("how to load the models"))
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    from ..analysis.export import FORMATS, check_folder, csv_text, write_report
    from ..analysis.sources import is_states_file

    if args.formats and args.output is None:
        args.parser.error("--format says what to write into a folder: give --output DIR too")
    if args.output is not None:
        check_folder(args.output)  # before minutes of computing
    prompts = [*args.prompts, *(_lines(args.prompts_file) if args.prompts_file is not None else [])]
    models = [source for source in args.sources if not is_states_file(source)]
    if models and not prompts:
        raise PromptError(f"{models[0]} is a model and needs something to read: give --prompt TEXT or --prompts-file")
    if prompts and not models:
        raise PromptError("prompts are read by a model, but these files have their text already: leave the prompts out")
    with _bars() as progress:
        analyses = [_analysis(source, prompts, args, progress) for source in args.sources]
    if sys.stdout.isatty():
        out = console()
        for analysis in analyses:
            for names in _columns(out.width):
                out.print(_table(analysis, names))
            out.print(_whole(analysis))
        out.print(
            "D_eff: effective dimensions, by the definition that is named. β: D_eff of the state below over this "
            "one's; β energy: width over D_eff energy90. Cosines, with the layer below and the next token, are means. "
            "-: not defined for these rows. --output DIR writes what each number is.",
            style="dim",
        )
    else:
        sys.stdout.write(csv_text(analyses, "\t"))
    if args.output is not None:
        with _bars() as progress:
            written = write_report(analyses, args.output, args.formats or FORMATS, progress=progress)
        files = "1 file" if len(written) == 1 else f"{len(written)} files"
        info(f"wrote {files} to {args.output}: {', '.join(path.name for path in written)}")
    return 0


def _analysis(source: str, prompts: list[str], args: argparse.Namespace, progress: Progress | None) -> Analysis:
    from ..analysis.sources import analyze, is_states_file

    how: dict[str, Any] = {"name": source, "skip_first": args.skip_first, "progress": progress}
    if is_states_file(source):
        return analyze(source, **how)
    with load(argparse.Namespace(**{**vars(args), "model": source})) as model:
        return analyze(model, prompts, **how)


def _lines(path: str) -> list[str]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{'stdin' if path == '-' else path} is not text in UTF-8: {error}") from None
    # Not str.splitlines: it also breaks at characters that belong to texts, such as U+2028.
    prompts = [line.removesuffix("\r") for line in text.split("\n")]
    found = [prompt for prompt in prompts if prompt.strip()]
    if not found:
        raise PromptError(f"{'stdin' if path == '-' else path} has no prompts: write one to a line")
    return found


def _columns(width: int) -> list[list[str]]:
    """The columns of each table: all in one where that fits a terminal of this width."""
    names = list(_COLUMNS)
    return [names] if width >= _WIDE else [names[:6], names[6:]]


def _table(analysis: Analysis, names: list[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    texts = f", {len(analysis.texts)} texts" if len(analysis.texts) > 1 else ""
    facts = f"{analysis.n_layer} layers, width {analysis.width}, {analysis.n_rows} rows{texts}"
    table = Table(
        title=Text(f"{printable(analysis.name)}: {facts}", style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1), pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.add_column("layer", vertical="bottom", no_wrap=True)
    for name in names:
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    for layer in reversed(analysis.layers):  # layers upwards, as in the pictures
        table.add_row(layer.label, *(_number(layer.value(name)) for name in names))
    return table


def _whole(analysis: Analysis) -> str:
    low, high = analysis.layers[0].label, analysis.layers[-1].label
    outliers = ", ".join(map(str, analysis.outliers)) or "none"
    return (
        f"{low} to {high}: β pca90 {_number(analysis.beta_pca90)}, β entropy {_number(analysis.beta_entropy)}. Outlier "
        f"dimensions in at least 25% of the blocks: {outliers}\n"
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.4g}"


@contextmanager
def _bars() -> Iterator[Progress | None]:
    """A progress bar for each kind of work, on a terminal; they go away at the end."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        current: list[Any] = ["", None]

        def progress(what: str, done: int, total: int) -> None:
            if what != current[0] and current[1] is not None:
                bars.remove_task(current[1])
                current[1] = None
            if current[1] is None:
                current[:] = what, bars.add_task(printable(what), total=total)
            bars.update(current[1], completed=done)

        yield progress


def _formats(text: str) -> list[str]:
    formats = text.split(",")
    unknown = [each for each in formats if each not in _FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_FORMATS)}")
    return formats


def _count(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of positions, 0 or more")
