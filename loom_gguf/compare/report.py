"""A comparison as a table for the terminal, as JSON, as CSV, and in files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import StrPath
from ..report.files import csv_text, json_text, save_report
from ..report.labels import printable, state_name, visible
from ..report.numbers import number, plain
from .result import Comparison, SideFacts

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = "loom_gguf.comparison"
VERSION = 1

# Heads of the columns; the error is |a - b| / |a|.
COLUMNS = ("median error", "mean error", "largest error", "mean cosine", "smallest cosine", "growth")

_SHOWN_FACTS = ("quantization", "architecture", "written by", "precision", "n_gpu_layers")


def side_text(side: SideFacts) -> str:
    """A side in one line: `model.gguf (Q4_0, llama, fast)`."""
    shown = [
        f"{name} {side.facts[name]}" if name in ("n_gpu_layers", "written by") else str(side.facts[name])
        for name in _SHOWN_FACTS
        if side.facts.get(name) is not None
    ]
    text = f"{side.name} ({', '.join(shown)})" if shown else side.name
    return printable(text)  # names of files may hold anything


def findings(comparison: Comparison) -> Iterator[str]:
    """What follows from the numbers, in sentences."""
    c = comparison
    limit = f"{c.threshold:g}"
    if c.identical:
        yield "The two are identical: no number differs."
    elif c.first_difference is None:
        yield "No hidden state differs."
    elif c.first_parting is None:
        worst = number(np.nanmax(c.max_error))
        yield f"They never part: no relative error exceeds {limit} (the largest is {worst})."
    else:
        row = _first_row(c, c.first_parting)
        yield (
            f"They part at {state_name(c.first_parting)}, the first hidden state where a relative error exceeds "
            f"{limit} (first at {_where(c, row)})."
        )
    if c.first_difference is not None:
        yield f"The first hidden state with any difference is {state_name(c.first_difference)}."
    if c.largest_jump is not None:
        at = c.states.index(c.largest_jump)
        before = f"from {number(c.median_error[at - 1])} " if at else ""
        yield (
            f"The median relative error grows most at {state_name(c.largest_jump)}, {before}to "
            f"{number(c.median_error[at])}."
        )
    kl, same = c.kl_statistics, c.same_top1
    if kl is not None and same is not None:
        yield (
            f"The most probable next token is the same in {same.mean():.2%} of the rows ({int(same.sum()):,} of "
            f"{len(same):,})."
        )
        yield (
            f"KL(A||B) of the next-token distributions, in nats: mean {number(kl['mean'])}, median "
            f"{number(kl['median'])}, 99th percentile {number(kl['p99'])}, largest {number(kl['max'])}."
        )
    bad = int((~np.isfinite(c.errors)).any(0).sum())
    if bad:
        yield f"{bad:,} rows have a relative error that is no finite number (NaN, Inf, or a state of length 0 in A)."
    yield from c.notes


def _first_row(c: Comparison, state: str) -> int:
    return int((c.errors[c.states.index(state)] > c.threshold).argmax())


def _where(c: Comparison, row: int) -> str:
    token = int(c.tokens[row])
    text = c.texts.get(token)
    prompt = f"prompt {c.prompts[row]}, " if c.prompts[-1] else ""
    return f"{prompt}position {c.positions[row]}, token {token}" + ("" if text is None else f" '{visible(text)}'")


def cosine_text(cosine: float) -> str:
    """A cosine for a person to read: six places, as most of them are nearly 1."""
    return f"{cosine:.6f}" if math.isfinite(cosine) and cosine != 1 else number(cosine)


def table_rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """One per hidden state: its name, and what COLUMNS names."""
    c = comparison
    for s, label in enumerate(c.states):
        yield (
            state_name(label),
            number(c.median_error[s]),
            number(c.mean_error[s]),
            number(c.max_error[s]),
            cosine_text(c.mean_cosine[s]),
            cosine_text(c.min_cosine[s]),
            f"x {c.growth[s]:.2f}" if math.isfinite(c.growth[s]) else number(c.growth[s]),
        )


def terminal_report(comparison: Comparison) -> RenderableType:
    """A table with a row per hidden state, and the findings under it."""
    from rich.console import Group
    from rich.text import Text

    from ..report.terminal import state_table

    c = comparison
    n_prompts = int(c.prompts[-1]) + 1
    prompts = f"{n_prompts} prompt{'s' if n_prompts > 1 else ''}"
    title = f"A  {side_text(c.a)}\nB  {side_text(c.b)}\n{len(c.tokens):,} rows of {prompts}; error = |a - b| / |a|"
    table = state_table(title, "state", [name.replace(" ", "\n") for name in COLUMNS])
    for label, cells in zip(c.states, table_rows(c), strict=True):
        table.add_row(*map(Text, cells), style="bold" if label == c.first_parting else None)
    return Group(table, *(Text(sentence) for sentence in findings(c)))


# -- numbers ----------------------------------------------------------------------------------------------------


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Every number as plain values; None stands for NaN and infinity."""
    c = comparison
    logits = None
    if c.kl is not None and c.top_a is not None and c.top_b is not None:
        logits = {
            "top1_agreement": c.top1_agreement,
            "kl_nats": c.kl_statistics,
        }
    cosines = c.cosines
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "a": {"name": c.a.name, **c.a.facts},
        "b": {"name": c.b.name, **c.b.facts},
        "n_layer": c.n_layer,
        "n_rows": len(c.tokens),
        "threshold": c.threshold,
        "identical": c.identical,
        "first_parting": c.first_parting,
        "first_difference": c.first_difference,
        "largest_jump": c.largest_jump,
        "notes": list(c.notes),
        "logits": logits,
        "states": [
            {
                "state": label,
                "relative_error": {
                    "median": float(c.median_error[s]),
                    "mean": float(c.mean_error[s]),
                    "max": float(c.max_error[s]),
                    "growth": float(c.growth[s]),
                },
                "cosine": {"mean": float(c.mean_cosine[s]), "min": float(c.min_cosine[s])},
            }
            for s, label in enumerate(c.states)
        ],
        "rows": [
            {
                "prompt": int(c.prompts[r]),
                "position": int(c.positions[r]),
                "token": int(c.tokens[r]),
                "text": c.texts.get(int(c.tokens[r])),
                "relative_error": c.errors[:, r].tolist(),
                "cosine": cosines[:, r].tolist(),
                **({} if logits is None else _next_token(c, r)),
            }
            for r in range(len(c.tokens))
        ],
    }
    found: dict[str, Any] = plain(document)
    return found


def _next_token(c: Comparison, row: int) -> dict[str, Any]:
    assert c.kl is not None
    assert c.top_a is not None
    assert c.top_b is not None
    return {"kl_nats": float(c.kl[row]), "top1_a": int(c.top_a[row]), "top1_b": int(c.top_b[row])}


_CSV_COLUMNS = (
    "prompt", "position", "token", "text", "state", "relative_error", "cosine", "kl_nats", "top1_a", "top1_b"
)  # fmt: skip


def csv_rows(comparison: Comparison) -> Iterator[tuple[Any, ...]]:
    """The head, then a line per row and hidden state, and one per row for the logits (state "logits")."""
    c = comparison
    cosines = c.cosines
    yield _CSV_COLUMNS
    for r in range(len(c.tokens)):
        token = int(c.tokens[r])
        head = (int(c.prompts[r]), int(c.positions[r]), token, c.texts.get(token, ""))
        for s, label in enumerate(c.states):
            yield (*head, label, c.errors[s, r], cosines[s, r], None, None, None)
        if c.kl is not None:
            yield (*head, "logits", None, None, *_next_token(c, r).values())


# -- files ------------------------------------------------------------------------------------------------------


def save(comparison: Comparison, path: StrPath) -> None:
    """Write the file that the path's suffix asks for; it appears whole or not at all."""
    save_report(path, lambda kind: _content(comparison, kind), "the comparison")


def _content(comparison: Comparison, kind: str) -> str | bytes:
    if kind == "html":
        from .html import page

        return page(comparison)
    if kind == "json":
        return json_text(to_dict(comparison))
    if kind == "csv":
        return csv_text(csv_rows(comparison))
    from ..report.figures import picture
    from .figure import figure

    return picture(figure(comparison), kind)
