"""`loom-gguf analyze`: what the hidden states of models and files look like, layer by layer."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .options import (
    add_loading_options,
    add_prompt_options,
    add_report_options,
    at_least,
    load,
    prompts,
    report_targets,
)
from .output import console, info, progress_bars, say_written

if TYPE_CHECKING:
    from rich.table import Table

    from ..analysis import Analysis
    from ..analysis.measuring import Progress

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
        usage="loom-gguf analyze SOURCE... [--prompt TEXT ...] [--out PATH ...] [options]",
        description="Measure every hidden state, layer by layer: effective dimensions (three definitions), β, norms, "
        "sparsity, anisotropy, cosines between neighbouring layers and tokens, outlier dimensions. A terminal gets a "
        "table, a pipe or file every number in columns separated by tabs.",
        epilog="Example: loom-gguf analyze demo --prompt 'One morning a fox' --out report",
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE",
        help="name of a model, path of a .gguf file, or demo, or a .safetensors or .npz file of captured states; "
        "several are put side by side over depth from 0 (embedding) to 1 (final)",
    )  # fmt: skip
    reading = parser.add_argument_group("what the models read; files of states have their text already")
    add_prompt_options(reading)
    reading.add_argument(
        "--skip-first", type=at_least(0), default=0, metavar="N",
        help="leave out the rows at the first N positions of each text; many models make the first token's state far "
        "longer than all others (default: 0)",
    )  # fmt: skip
    more = ", with maps of the tokens of the first texts"
    add_report_options(parser.add_argument_group("results"), "the curves of all measures", more=more)
    add_loading_options(parser.add_argument_group("how to load the models"))
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    from ..analysis.export import FORMATS, csv_text, save_analyses, write_report
    from ..analysis.report import to_json
    from ..report.files import json_text
    from ..states_file import is_states_file

    texts = prompts(args)
    files, folders = report_targets(args)
    models = [source for source in args.sources if not is_states_file(source)]
    given = bool(texts) or args.tokens is not None
    if models and not given:
        raise PromptError(
            f"{models[0]} is a model and needs something to read: give --prompt TEXT, --prompts-file or --tokens"
        )
    if given and not models:
        raise PromptError("prompts are read by a model, but these files have their text already: leave the prompts out")
    with progress_bars() as progress:
        analyses = [_analysis(source, texts, args, progress) for source in args.sources]
    if args.json:
        sys.stdout.write(json_text(to_json(analyses)))
    elif sys.stdout.isatty():
        _print(analyses)
    else:
        sys.stdout.write(csv_text(analyses, "\t"))
    sys.stdout.flush()
    for file in files:
        say_written(save_analyses(analyses, file))
    for folder in folders:
        with progress_bars() as progress:
            written = write_report(analyses, folder, args.formats or FORMATS, progress=progress)
        count = "1 file" if len(written) == 1 else f"{len(written)} files"
        info(f"wrote {count} to {folder}: {', '.join(path.name for path in written)}")
    return 0


def _analysis(source: str, texts: list[str], args: argparse.Namespace, progress: Progress | None) -> Analysis:
    from ..analysis.sources import analyze
    from ..states_file import is_states_file

    how: dict[str, Any] = {"name": source, "skip_first": args.skip_first, "progress": progress}
    if is_states_file(source):
        return analyze(source, **how)
    with load(args, source) as model:
        return analyze(model, texts or None, tokens=args.tokens, **how)


def _print(analyses: list[Analysis]) -> None:
    out = console()
    names = list(_COLUMNS)
    for analysis in analyses:
        tables = [_table(analysis, names)]
        if out.measure(tables[0], options=out.options.update(width=1000)).maximum > out.width:
            tables = [_table(analysis, names[:6]), _table(analysis, names[6:])]
        for table in tables:
            out.print(table)
        out.print(_whole(analysis))
    out.print(
        "D_eff: effective dimensions, by the definition that is named. β: D_eff of the state below over this one's; β "
        "energy: width over D_eff energy90. L2 norm: in the model's own units. Sparsity: share of values. Cosines, "
        "with the layer below and the next token, are means. -: not defined for these rows. --out FOLDER writes what "
        "each number is.",
        style="dim",
    )


def _table(analysis: Analysis, names: list[str]) -> Table:
    from ..report.labels import printable
    from ..report.numbers import number
    from ..report.terminal import state_table

    texts = f", {len(analysis.texts)} texts" if len(analysis.texts) > 1 else ""
    facts = f"{analysis.n_layer} layers, width {analysis.width}, {analysis.n_rows} rows{texts}"
    table = state_table(f"{printable(analysis.name)}: {facts}", "layer", [_COLUMNS[name] for name in names])
    for layer in analysis.layers:
        table.add_row(layer.label, *(number(layer.value(name)) for name in names))
    return table


def _whole(analysis: Analysis) -> str:
    from ..report.numbers import number

    low, high = analysis.layers[0].label, analysis.layers[-1].label
    outliers = ", ".join(map(str, analysis.outliers)) or "none"
    return (
        f"{low} to {high}: β pca90 {number(analysis.beta_pca90)}, β entropy {number(analysis.beta_entropy)}. Outlier "
        f"dimensions in at least 25% of the blocks: {outliers}\n"
    )
