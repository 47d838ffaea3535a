"""A comparison as a table for the terminal, as JSON, as CSV, and in files."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StatesFileError
from ..states_file import replacing
from .result import Comparison, SideFacts

if TYPE_CHECKING:
    from rich.console import RenderableType

SUFFIXES = (".html", ".png", ".svg", ".json", ".csv")
COLUMNS = ("state", "median error", "mean error", "largest error", "mean cosine", "smallest cosine", "growth")

_SHOWN_FACTS = ("quantization", "architecture", "written by", "precision", "n_gpu_layers")


def state_name(label: str) -> str:
    """`layer 3` for the label "3"."""
    return f"layer {label}" if label.isdigit() else label


def side_text(side: SideFacts) -> str:
    """A side in one line: `model.gguf (Q4_0, llama, fast)`."""
    shown = [
        f"{name} {side.facts[name]}" if name in ("n_gpu_layers", "written by") else str(side.facts[name])
        for name in _SHOWN_FACTS
        if side.facts.get(name) is not None
    ]
    text = f"{side.name} ({', '.join(shown)})" if shown else side.name
    # Names of files may hold anything, also what steers a terminal.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


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
    return f"{prompt}position {c.positions[row]}, token {token}" + ("" if text is None else f" {text!r}")


def number(value: Any) -> str:
    """A measure for a person to read."""
    value = float(value)
    if not math.isfinite(value):
        return "no number" if math.isnan(value) else "infinite"
    return "0" if value == 0 else f"{value:#.3g}"


def cosine_text(cosine: float) -> str:
    """A cosine for a person to read; "1" where it is exactly that."""
    return f"{cosine:.6f}" if math.isfinite(cosine) and cosine != 1 else number(cosine).removesuffix(".00")


def table_rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """One per hidden state, of `COLUMNS`."""
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
    from rich.table import Table
    from rich.text import Text

    c = comparison
    n_prompts = int(c.prompts[-1]) + 1
    prompts = f"{n_prompts} prompt{'s' if n_prompts > 1 else ''}"
    table = Table(
        title=Text(
            f"A  {side_text(c.a)}\nB  {side_text(c.b)}\n{len(c.tokens):,} rows of {prompts}; error = |a - b| / |a|"
        ),
        title_justify="left",
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
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
            "kl_nats": {name: _plain(value) for name, value in (c.kl_statistics or {}).items()},
        }
    return {
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
                    "median": _plain(c.median_error[s]),
                    "mean": _plain(c.mean_error[s]),
                    "max": _plain(c.max_error[s]),
                    "growth": _plain(c.growth[s]),
                },
                "cosine": {"mean": _plain(c.mean_cosine[s]), "min": _plain(c.min_cosine[s])},
            }
            for s, label in enumerate(c.states)
        ],
        "rows": [
            {
                "prompt": int(c.prompts[r]),
                "position": int(c.positions[r]),
                "token": int(c.tokens[r]),
                "text": c.texts.get(int(c.tokens[r])),
                "relative_error": [_plain(value) for value in c.errors[:, r]],
                "cosine": [_plain(value) for value in c.cosines[:, r]],
                **({} if logits is None else _next_token(c, r)),
            }
            for r in range(len(c.tokens))
        ],
    }


def _next_token(c: Comparison, row: int) -> dict[str, Any]:
    assert c.kl is not None
    assert c.top_a is not None
    assert c.top_b is not None
    return {"kl_nats": _plain(c.kl[row]), "top1_a": int(c.top_a[row]), "top1_b": int(c.top_b[row])}


def _plain(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


_CSV_COLUMNS = (
    "prompt", "position", "token", "text", "state", "relative_error", "cosine", "kl_nats", "top1_a", "top1_b"
)  # fmt: skip


def csv_rows(comparison: Comparison) -> Iterator[tuple[Any, ...]]:
    """A line per row and hidden state, and one per row for the logits (state "logits")."""
    c = comparison
    for r in range(len(c.tokens)):
        token = int(c.tokens[r])
        head = (int(c.prompts[r]), int(c.positions[r]), token, c.texts.get(token, ""))
        for s, label in enumerate(c.states):
            yield (*head, label, repr(float(c.errors[s, r])), repr(float(c.cosines[s, r])), "", "", "")
        if c.kl is not None:
            following = _next_token(c, r)
            yield (*head, "logits", "", "", repr(float(c.kl[r])), following["top1_a"], following["top1_b"])


# -- files ------------------------------------------------------------------------------------------------------


def check_targets(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The paths, if reports may be written there; worth asking before a long computation."""
    targets = [Path(path) for path in paths]
    for target in targets:
        if target.suffix.lower() not in SUFFIXES:
            raise StatesFileError(
                f"cannot tell what to write to {target}: its name must end in {', '.join(SUFFIXES[:-1])} or "
                f"{SUFFIXES[-1]}"
            )
        if target.is_dir():
            raise StatesFileError(f"{target} is a folder: name a file")
        if not target.parent.is_dir():
            raise StatesFileError(f"there is no folder {target.parent}: make it first, or choose another path")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise StatesFileError(f"the folder {target.parent} cannot be written to: choose another one")
    return targets


def save(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the file that the path's suffix asks for; it appears whole or not at all."""
    (target,) = check_targets([path])
    suffix = target.suffix.lower()
    with replacing(target, "the comparison") as temporary:
        if suffix in (".png", ".svg"):
            from .figure import draw

            draw(comparison, temporary, suffix[1:])
        elif suffix == ".html":
            from .html import page

            temporary.write_text(page(comparison), encoding="utf-8")
        elif suffix == ".json":
            temporary.write_text(
                json.dumps(to_dict(comparison), allow_nan=False, ensure_ascii=False) + "\n", "utf-8", "backslashreplace"
            )
        else:
            with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(_CSV_COLUMNS)
                writer.writerows(csv_rows(comparison))
