"""`loom-gguf nodes`: the nodes of a model's graph that can be captured."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from typing import TYPE_CHECKING, Any

from ..errors import UnknownNodeError
from .options import add_loading_options, load
from .output import console

if TYPE_CHECKING:
    from ..catalog import Node

_COLUMNS = ("key", "op", "shape", "type", "token axis", "note")


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "nodes",
        help="list the nodes of a model's graph",
        usage="loom-gguf nodes MODEL [--match GLOB] [--all] [--json] [options]",
        description="List the nodes of one forward pass in graph order: key (for --nodes and Capture.names), "
        "operation, shape, type, and which axis counts tokens. A node without a token axis has no rows and is given "
        "whole. Sizes that vary are n_tokens, n_outputs (tokens whose logits are computed) and n_kv (cells of the "
        "cache). A terminal gets a table, a pipe or file columns separated by tabs.",
    )
    parser.add_argument("model", metavar="MODEL", help="name of a model, path of a .gguf file, or demo")
    parser.add_argument("--match", metavar="GLOB", help="only keys that match, e.g. 'l_out-*' or 'Qcur-0*'")
    parser.add_argument(
        "--all", action="store_true",
        help="also views of the cache and nodes that are not computed, which Capture.everything() leaves out",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_loading_options(parser.add_argument_group("how to load the model"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the nodes."""
    with load(args) as model:
        found = model.nodes()
    if args.match is not None:
        found = [node for node in found if fnmatch.fnmatchcase(node.key, args.match)]
    shown = [node for node in found if args.all or (node.computed and not node.memory)]
    if not shown:
        more = "; --all shows those that only it lists" if found else "; without --match all are listed"
        raise UnknownNodeError(f"no node's key matches {args.match!r}{more}")
    if args.json:
        print(json.dumps([_facts(node) for node in shown], indent=2))
    elif sys.stdout.isatty():
        _table(shown)
    else:
        for row in (_COLUMNS, *map(_row, shown)):
            print("\t".join(row))
    return 0


def _row(node: Node) -> tuple[str, ...]:
    shape = ", ".join(map(str, node.shape))
    axis = "" if node.token_axis is None else str(node.token_axis)
    return node.key, node.op, f"[{shape}]", node.dtype, axis, _note(node)


def _note(node: Node) -> str:
    if not node.computed:
        return "not computed"
    if node.memory:
        return "view of the cache"
    if node.token_axis is None:
        return "no rows"
    return "rows of outputs only" if node.per_output else ""


def _facts(node: Node) -> dict[str, Any]:
    return {
        "key": node.key,
        "name": node.name,
        "occurrence": node.occurrence,
        "op": node.op,
        "shape": list(node.shape),
        "type": node.dtype,
        "token_axis": node.token_axis,
        "per_output": node.per_output,
        "computed": node.computed,
        "memory": node.memory,
    }


def _table(nodes: list[Node]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=f"{len(nodes)} nodes", caption_justify="left")
    for name in _COLUMNS:
        table.add_column(name, overflow="fold")
    for node in nodes:
        table.add_row(*map(Text, _row(node)))
    console().print(table)
