"""Whether an answer is complete and right: its API's form, every position once, rows equal to the reference's."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
from soak_client import Answer
from soak_reference import Array, Reference, References

_LOGPROB_TOLERANCE = 1e-3  # two tokens closer than this may change places
_DTYPES = {"none": "<f4", "float16": "<f2", "int8": "<i1"}


class Wrong(Exception):  # noqa: N818 - a verdict, not an error of the program
    """What is wrong with an answer."""


class Interrupted(Exception):  # noqa: N818
    """The answer ends with an error, in the form that its API has for that."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise Wrong(text)


@dataclass(frozen=True)
class Asked:
    """What an answer must show, as far as the request determines it."""

    model: str
    way: str  # "generate", "chat": Ollama's routes
    stream: bool
    n_predict: int
    reference: Reference | None = None  # of the prompt, and where greedy of the answer
    greedy: bool = False
    hidden: Mapping[str, Any] | None = None
    wanted: frozenset[str] = frozenset()  # nodes that must be there, by their names on the wire
    logprobs: int | None = None
    schema: Mapping[str, Any] | None = None
    stop: Sequence[str] = field(default=())


# -- forms --------------------------------------------------------------------------------------------------------


def error_text(path: str, answer: Answer) -> str:
    """The text of an error; Wrong where it is not in the form of the path's API."""
    told = parsed(answer.body)
    if path.startswith("/api/") or path == "/":
        text = told.get("error")
    elif path.startswith("/v1/") and path != "/v1/generate":
        error = told.get("error")
        require(isinstance(error, dict) and {"message", "type", "param", "code"} <= error.keys(), f"no error: {told}")
        text = error["message"]
    else:
        text = told.get("detail")
        text = json.dumps(text) if isinstance(text, list) else text
    require(isinstance(text, str) and text, f"an error without a text: {str(told)[:300]}")
    assert isinstance(text, str)
    return text


def parsed(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Wrong(f"not JSON ({error}): {data[:200]!r}") from None
    require(isinstance(value, dict), f"no object: {data[:200]!r}")
    return value  # type: ignore[no-any-return]


def lines_of(body: bytes, *, whole: bool) -> list[dict[str, Any]]:
    """Lines of JSON; the last one may be cut where the client left."""
    pieces = body.split(b"\n")
    require(not whole or pieces[-1] == b"", "the last line has no end")
    lines = [parsed(piece) for piece in pieces[:-1]]
    if whole and lines and "error" in lines[-1]:
        raise Interrupted(lines[-1]["error"])
    return lines


def events_of(body: bytes, *, whole: bool) -> list[dict[str, Any]]:
    """Server-sent events of OpenAI's API, without the one that says it is done."""
    pieces = body.split(b"\n\n")
    require(not whole or pieces[-1] == b"", "the last event has no end")
    require(all(piece.startswith(b"data: ") for piece in pieces[:-1]), f"no event: {body[:200]!r}")
    data = [piece[len(b"data: ") :] for piece in pieces[:-1]]
    if not whole:
        return [parsed(each) for each in data if each != b"[DONE]"]
    require(data, "no events")
    if data[-1] != b"[DONE]":
        last = parsed(data[-1])
        require("error" in last, f"no end: {str(last)[:300]}")
        raise Interrupted(last["error"]["message"])
    return [parsed(each) for each in data[:-1]]


# -- Ollama's generate and chat -----------------------------------------------------------------------------------


def generation(asked: Asked, answer: Answer) -> None:
    """/api/generate and /api/chat."""
    if asked.stream:
        require(answer.content_type == "application/x-ndjson", f"content type {answer.content_type}")
        lines = lines_of(answer.body, whole=answer.whole)
    else:
        lines = [parsed(answer.body)]
    texts = []
    for line in lines:
        require({"model", "created_at", "done"} <= line.keys(), f"a line without its keys: {sorted(line)}")
        texts.append(line["response"] if asked.way == "generate" else line["message"]["content"])
    if not answer.whole:
        return
    require(lines and lines[-1]["done"], "the last line is not done")
    require(not any(line["done"] for line in lines[:-1]), "done before the last line")
    last = lines[-1]
    n, n_prompt = last.get("eval_count", 0), last.get("prompt_eval_count", 0)
    require(last["done_reason"] in ("stop", "length"), f"done_reason {last['done_reason']}")
    require(n <= asked.n_predict, f"{n} tokens of {asked.n_predict}")
    reference = asked.reference
    if reference is not None:
        require(n_prompt == len(reference.tokens), f"{n_prompt} prompt tokens, not {len(reference.tokens)}")
    if asked.way == "generate" and "context" in last:
        require(len(last["context"]) == n_prompt + n, f"a context of {len(last['context'])}, not {n_prompt} + {n}")
    text = "".join(texts)
    logprobs = [each for line in lines for each in line.get("logprobs", ())]
    require(len(logprobs) == (0 if asked.logprobs is None else n), f"{len(logprobs)} logprobs of {n} tokens")
    for each in logprobs:
        require(len(each.get("top_logprobs", ())) == asked.logprobs, "top_logprobs missing")
    if asked.schema is not None and last["done_reason"] == "stop" and n and not asked.stop:
        require(set(parsed(text.encode())) == set(asked.schema["required"]), f"not of the schema: {text!r}")
    if asked.greedy and reference is not None and asked.schema is None:
        _same_text(text, n, last["done_reason"], reference, asked)
    _check_records([record for line in lines for record in line.get("hidden_states", ())], n_prompt, n, asked)


def _same_text(text: str, n: int, reason: str, reference: Reference, asked: Asked) -> None:
    sure = _sure_steps(reference)
    if asked.stop:
        require(not any(stop in text for stop in asked.stop), f"the stop text is in {text!r}")
    elif n == asked.n_predict <= sure or (n <= sure and reason == "stop"):
        whole = "".join(reference.texts[:n])
        # Half a character at the end is shown when it ends there, and held back in the reference.
        require(text.rstrip("�").startswith(whole.rstrip("�")), f"{text!r} in place of {whole!r}")


def _sure_steps(reference: Reference) -> int:
    """How many tokens of the reference are the same in whatever batch they are computed."""
    return next((i for i, gap in enumerate(reference.gaps) if gap < _LOGPROB_TOLERANCE), len(reference.gaps))


def _check_records(records: Sequence[Mapping[str, Any]], n_prompt: int, n: int, asked: Asked) -> None:
    """Every position of every node once, tokens in a chain, rows as the reference's."""
    hidden = asked.hidden
    if hidden is None:
        require(not records, "hidden states that nobody asked for")
        return
    by_node: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_node.setdefault(record["node"], []).append(record)
    first = 0 if hidden.get("prompt") else n_prompt - 1
    # A prompt that is only read has the rows of all its tokens; else its last token's are those of the first step.
    expected = list(range(first, n_prompt - 1 + n)) if n else list(range(first, n_prompt)) * bool(hidden.get("prompt"))
    if expected:
        require(asked.wanted == by_node.keys(), f"nodes {sorted(by_node)} in place of {sorted(asked.wanted)}")
    for node, found in by_node.items():
        positions: list[int] = []
        for record in found:
            rows = rows_of(record, hidden)
            at = range(record["position"], record["position"] + len(rows))
            positions += at
            _check_row_records(record, rows, at, n_prompt, asked)
        require(positions == expected, f"{node}: positions {positions} in place of {expected}")
        generated = [record for record in found if record["phase"] == "generate"]
        for before, after in pairwise(generated):
            require(after["token_ids"] == [before["next_token_id"]], f"{node}: the tokens are no chain")


def _check_row_records(record: Mapping[str, Any], rows: Array, at: Sequence[int], n_prompt: int, asked: Asked) -> None:
    node, reference = record["node"], asked.reference
    require(len(record["token_ids"]) == len(rows), f"{node}: {len(rows)} rows of {len(record['token_ids'])} tokens")
    index = None if record["phase"] == "prompt" else at[0] - (n_prompt - 1)
    require(record["token_index"] == index, f"{node}: token_index {record['token_index']} at {at[0]}")
    require(np.isfinite(rows).all(), f"{node}: not finite")
    if reference is None or node not in reference.rows:
        return
    known = n_prompt + (_sure_steps(reference) if asked.greedy and asked.schema is None else 0)
    expected = reference.rows[node]
    for row, position, token in zip(rows, at, record["token_ids"], strict=True):
        if position >= min(known, len(expected)):
            return
        right = [*reference.tokens, *reference.token_ids][position]
        require(token == right, f"{node}: token {token} in place of {right} at {position}")
        excess = reference.closeness.excess(row, expected[position], record["compression"])
        require(not excess, f"{node}: the row at {position} {excess}")


def rows_of(record: Mapping[str, Any], hidden: Mapping[str, Any]) -> Array:
    """float32 (rows, ...): the record's numbers."""
    compression = hidden.get("compression", "none")
    require(record["compression"] == compression, f"compression {record['compression']}")
    _, n, *dims = record["shape"]
    if hidden.get("encoding") == "base64":
        require(record.get("encoding") == "base64", "no base64")
        data = np.frombuffer(base64.b64decode(record["data"]), _DTYPES[compression])
    else:
        data = np.asarray(record["data"], np.float64)
    require(data.size == n * reduce(lambda a, b: a * b, dims, 1), f"{data.size} numbers of shape {record['shape']}")
    rows = data.astype(np.float32).reshape(n, -1)
    if compression == "int8":
        block = hidden.get("scale_block") or rows.shape[1]
        scales = np.asarray(record["scale"], np.float32).reshape(n, -1)
        rows = rows * np.repeat(scales, block, axis=1)[:, : rows.shape[1]]
    return rows


def nodes_wanted(hidden: Mapping[str, Any], n_layer: int) -> frozenset[str]:
    """The nodes that `expose_hidden` asks for, by their names on the wire."""
    layers = hidden.get("layers")
    layers = range(n_layer) if layers is None else layers
    layers = [n_layer - 1] if hidden.get("last_layer_only") else layers
    names = [f"l_out-{il}" for il in layers] + [name for name in ("embedding", "final") if hidden.get(name)]
    return frozenset([*names, *hidden.get("nodes", ())])


# -- the others ---------------------------------------------------------------------------------------------------


def vectors(references: References, model: str, texts: Sequence[str], dims: int, unit: bool, found: Any) -> None:
    """Embeddings of texts, in their order; `dims` values of each, 0: all."""
    require(len(found) == len(texts), f"{len(found)} vectors of {len(texts)} texts")
    for text, each in zip(texts, found, strict=True):
        vector = np.asarray(each, np.float32)
        right = references.vector(model, text)
        if right is None:
            continue
        right = right[: dims or None]
        right = right / np.linalg.norm(right) if unit else right
        excess = references.closeness[model].excess(vector, right)
        require(not excess, f"a vector {excess}")


def completion(asked: Asked, n_choices: int, key: str, answer: Answer) -> None:
    """/v1/completions (key "text") and /v1/chat/completions (key "content")."""
    if asked.stream:
        require(answer.content_type == "text/event-stream", f"content type {answer.content_type}")
        chunks = events_of(answer.body, whole=answer.whole)
    else:
        chunks = [parsed(answer.body)]
    if not answer.whole:
        return
    texts, reasons = [""] * n_choices, [None] * n_choices
    for chunk in chunks:
        require({"id", "object", "created", "model", "choices"} <= chunk.keys(), f"keys {sorted(chunk)}")
        for choice in chunk["choices"]:
            at = choice["index"]
            said = choice if key == "text" else choice.get("delta") or choice.get("message") or {}
            texts[at] += said.get(key) or ""
            reasons[at] = choice["finish_reason"] or reasons[at]
    require(all(reason in ("stop", "length") for reason in reasons), f"finish reasons {reasons}")
    usage = chunks[-1].get("usage")
    if not asked.stream:
        require(usage and usage["completion_tokens"] <= asked.n_predict * n_choices, f"usage {usage}")
    reference = asked.reference
    if reference is not None and asked.greedy:
        for text, reason in zip(texts, reasons, strict=True):
            _same_text(text, asked.n_predict if reason == "length" else 0, str(reason), reference, asked)
        hidden = chunks[-1].get("hidden_state")
        if asked.hidden is not None:
            n = usage["completion_tokens"] if usage else 0
            require(hidden and hidden["shape"][0] == 1, "no hidden state")
            assert hidden
            if 0 < n <= _sure_steps(reference):
                right = reference.rows["final"][len(reference.tokens) - 1 + n - 1]
                excess = reference.closeness.excess(np.asarray(hidden["final"][0], np.float32), right)
                require(not excess, f"the hidden state {excess}")


def keys(*names: str) -> Any:
    """A check that a JSON object has these keys."""

    def check(answer: Answer) -> None:
        told = parsed(answer.body)
        missing = [name for name in names if name not in told]
        require(not missing, f"without {missing}: {sorted(told)}")

    return check
