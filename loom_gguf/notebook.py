"""What a notebook shows of this package's objects: short tables in HTML. No array is ever printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalog import Node
    from .compression import CompressedStates
    from .model import Model, Step
    from .probes import ProbeResult
    from .states import States

_MAX_ROWS = 12  # of a table; more are counted
_MAX_TEXT = 60


def states_html(states: States) -> str:
    """Which nodes were captured, with the shapes of their rows."""
    n_bytes = sum(value.array.nbytes for value in states.values_by_key.values())
    head = f"{_rows_text(states)}, {_size(n_bytes)}"
    return _captured("States", head, states, [""] * len(states.values_by_key))


def compressed_html(states: CompressedStates) -> str:
    """Which nodes were captured, and how they are kept."""
    head = f"{states.kind}, {_rows_text(states.outline)}, {_size(states.nbytes)}"
    return _captured("CompressedStates", head, states.outline, [str(rows.data.dtype) for rows in states.values()])


def model_html(model: Model, closed: bool) -> str:
    """What the model is."""
    facts = {
        "architecture": model.arch + (", an encoder" if model.encoder else ""),
        "quantization": model.quantization,
        "layers": model.n_layer,
        "n_embd": model.n_embd,
        "vocabulary": f"{model.n_vocab:,} tokens",
        "context": f"{model.n_ctx:,} tokens",
        "precision": model.precision,
    }
    name = model.path.name + (" (closed)" if closed else "")
    return _block("Model", name, ["fact", "value"], [(key, str(value)) for key, value in facts.items()])


def node_html(node: Node) -> str:
    """One node of the graph."""
    facts = {
        "operation": node.op,
        "shape": _shape(node.shape),
        "type": node.dtype,
        "token axis": "none: it has no rows" if node.token_axis is None else str(node.token_axis),
    }
    notes = [
        text
        for text, true in (
            ("rows of outputs only", node.per_output),
            ("not computed", not node.computed),
            ("view of memory that outlives the pass", node.memory),
        )
        if true
    ]
    return _block("Node", node.key, ["fact", "value"], [*facts.items(), *(("note", note) for note in notes)])


def step_html(step: Step) -> str:
    """One generated token."""
    facts = {
        "token": f"{_short(repr(step.text))} (id {step.token_id})",
        "index": str(step.index),
        "position read": str(step.position),
        "log-probability": None if step.logprob is None else f"{step.logprob:.4f} nats",
        "finish reason": step.finish_reason,
        "states": None if step.states is None else f"{len(step.states.values_by_key)} nodes",
        "prompt states": None if step.prompt_states is None else _rows_text(step.prompt_states),
    }
    return _block("Step", "", ["fact", "value"], [(key, value) for key, value in facts.items() if value is not None])


def probe_html(result: ProbeResult) -> str:
    """The accuracies of a probe."""
    level = f"{result.confidence:.0%} interval"
    rows = [
        (state, f"{result.accuracy[i]:.3f}", f"{result.low[i]:.3f} to {result.high[i]:.3f}", f"{result.control[i]:.3f}")
        for i, state in enumerate(result.states)
    ]
    head = f"{result.n_texts} texts, {len(result.classes)} classes, chance {result.chance:.3f}, best at {result.best}"
    return _block("ProbeResult", head, ["state", "accuracy", level, "shuffled labels"], rows, limit=len(rows))


def _captured(kind: str, head: str, states: States, types: Sequence[str]) -> str:
    roles = states.roles
    of_key: dict[str | None, str] = {roles.embedding: "embedding", roles.final: "final"}
    of_key.update({key: str(il) for il, key in roles.layers.items()})
    rows = [
        (
            key,
            of_key.get(key, ""),
            _shape(value.array.shape) + ("" if value.row_axis is not None else ", no rows"),
            kept or str(value.array.dtype),
        )
        for (key, value), kept in zip(states.values_by_key.items(), types, strict=True)
    ]
    return _block(kind, head, ["node", "hidden state", "shape", "type"], rows)


def _block(
    kind: str, head: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, limit: int = _MAX_ROWS
) -> str:
    rows = list(rows)
    if len(rows) > limit + 1:  # never "1 more"
        shown = [*rows[: limit - 2], ("…", *[""] * (len(columns) - 1)), *rows[-2:]]
        head += f"; {limit} of {len(rows)} nodes shown"
    else:
        shown = rows
    titles = "".join(f"<th>{escape(title)}</th>" for title in columns) if columns[0] != "fact" else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(_short(cell))}</td>" for cell in row) + "</tr>" for row in shown)
    return (
        f"<div><strong>{escape(kind)}</strong> {escape(_short(head, 200))}"
        f"<table>{f'<thead><tr>{titles}</tr></thead>' if titles else ''}<tbody>{body}</tbody></table></div>"
    )


def _rows_text(states: States) -> str:
    n = len(states.tokens)
    positions = states.positions
    if not n:
        return "no rows"
    span = f"position {positions[0]}" if n == 1 else f"positions {positions[0]} to {positions[-1]}"
    return f"{n:,} {'row' if n == 1 else 'rows'} ({span})"


def _shape(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} kB"


def _short(text: str, limit: int = _MAX_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
