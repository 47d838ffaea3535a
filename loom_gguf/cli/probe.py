"""`loom-gguf probe`: at which layer a label can be read off the hidden states."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..report.labels import printable
from .options import add_loading_options, load
from .output import console, info, progress_bar

if TYPE_CHECKING:
    from ..probes import ProbeResult


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "probe",
        help="at which layer a label can be read off the hidden states",
        usage="loom-gguf probe MODEL FILE [options]",
        description="Fit a linear probe (logistic regression, L2 penalty) at every hidden state on labelled texts, "
        "and test it on texts that it has not seen (cross-validation). The table says the accuracy with its "
        "confidence interval, beside what shuffled labels and the commonest label give. Needs scikit-learn.",
        epilog="Example: loom-gguf probe demo stories.csv --label mood --group event --plot mood.png. "
        "docs/probes.md explains the numbers.",
    )
    parser.add_argument("model", metavar="MODEL", help="name of a model, path of a .gguf file, or demo")
    parser.add_argument(
        "file", metavar="FILE",
        help=".csv or .tsv with a header line, .jsonl or .ndjson: a text, a label and perhaps a group per line",
    )  # fmt: skip

    data = parser.add_argument_group("what is in the file")
    data.add_argument("--text", default="text", metavar="NAME", help="column of the texts (default: text)")
    data.add_argument("--label", default="label", metavar="NAME", help="column of the labels (default: label)")
    data.add_argument(
        "--group", metavar="NAME",
        help="column of groups that are never both in training and in test (default: group, where there is one)",
    )  # fmt: skip

    probe = parser.add_argument_group("how to probe")
    probe.add_argument(
        "--pooling", type=_pooling, default="last_token", metavar="WHICH",
        help="one vector per text: last_token, first_token, mean or max of all tokens, or a token's index, -2 being "
        "the last but one (default: last_token)",
    )  # fmt: skip
    probe.add_argument("--folds", type=_at_least(2), default=5, metavar="N", help="of cross-validation (default: 5)")
    probe.add_argument(
        "--repeats", type=_at_least(1), default=3, metavar="N", help="cross-validations with other splits (default: 3)"
    )
    probe.add_argument(
        "--c", type=_positive, default=1.0, metavar="X",
        help="inverse strength of the penalty; smaller is a simpler probe (default: 1)",
    )  # fmt: skip
    probe.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of splits and shuffles (default: 0)")

    out = parser.add_argument_group("what comes out")
    out.add_argument("--plot", metavar="FILE", help="draw the curve into a .png, .svg or .pdf file")
    out.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_loading_options(parser.add_argument_group("how to load the model"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, compute, print."""
    from ..optional import optional
    from ..picture import check_picture
    from ..probes import collect_rows, draw_curves, probe_layers, read_labelled

    # What cannot work is said before the model runs over all texts.
    optional("sklearn", "a linear probe")
    target = None if args.plot is None else check_picture(args.plot)
    data = read_labelled(args.file, text=args.text, label=args.label, group=args.group)
    with load(args) as model, progress_bar("texts") as progress:
        features = collect_rows(model, data.texts, args.pooling, progress=progress)
    with progress_bar("hidden states") as progress:
        result = probe_layers(
            features, data.labels, groups=data.groups, folds=args.folds, repeats=args.repeats, c=args.c,
            seed=args.seed, progress=progress,
        )  # fmt: skip
    if args.json:
        print(result.to_json())
    else:
        _table(result)
    if target is not None:
        draw_curves({f"{args.label} ({features.facts['model']})": result}).save(target)
        info(f"wrote {target}")
    return 0


def _table(result: ProbeResult) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("state")
    for name in ("accuracy", f"{result.confidence:.0%} interval", "shuffled labels", "above shuffled"):
        table.add_column(name, justify="right")
    for i, state in enumerate(result.states):
        table.add_row(
            state,
            f"{result.accuracy[i]:.3f}",
            f"{result.low[i]:.3f} to {result.high[i]:.3f}",
            f"{result.control[i]:.3f}",
            f"{result.selectivity[i]:+.3f}",
        )
    console().print(table)
    labels = ", ".join(f"{printable(name)} {n}" for name, n in list(result.classes.items())[:10])
    more = f" and {len(result.classes) - 10} more" if len(result.classes) > 10 else ""
    groups = "" if result.n_groups is None else f" in {result.n_groups} groups"
    print(f"{result.n_texts} texts{groups}, {len(result.classes)} labels: {labels}{more}")
    print(f"commonest label {result.chance:.3f}; best at {result.best}; {_known(result)}")
    if result.unfinished.any():
        print(f"{result.unfinished.sum()} fits had not converged after 1000 iterations; a smaller --c helps")


def _known(result: ProbeResult) -> str:
    if result.known_from is None:
        return "nowhere above chance and shuffled labels"
    return f"above chance and shuffled labels from {result.known_from} on"


def _pooling(text: str) -> str | int:
    from ..embedding import POOLINGS

    if text in POOLINGS:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {', '.join(POOLINGS)} nor a token's index") from None


def _at_least(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"at least {least}")
        return number

    return integer


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("a positive number")
    return number
