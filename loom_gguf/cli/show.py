"""`loom-gguf show`: what a GGUF file says about itself, without loading its weights."""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..report.labels import printable
from .output import abbreviated, count_text, size_text

if TYPE_CHECKING:
    from ..gguf_file import GGUFFile

_SHOWN_ITEMS = 6  # of an array


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "show",
        help="what a model file is, and whether its hidden states can be had",
        usage="loom-gguf show MODEL [--tensors] [--json]",
        description="Architecture, size, quantization, context, tokenizer and metadata, and whether and how the hidden "
        "states can be had. Reads only the file's header.",
    )
    parser.add_argument("model", metavar="MODEL", help="name of a model, path of a .gguf file, or demo")
    parser.add_argument("--tensors", action="store_true", help="list the weights too")
    parser.add_argument("--json", action="store_true", help="print JSON; long arrays are abbreviated in it too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the header."""
    from ..gguf_file import read_model
    from ..library import resolve

    file = read_model(resolve(args.model))
    if args.json:
        print(json.dumps(_facts(file, tensors=args.tensors), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        for line in _lines(file, args.model, tensors=args.tensors):
            print(line)
    return 0


def _lines(file: GGUFFile, name: str, *, tensors: bool) -> Iterator[str]:
    facts = _facts(file, tensors=False)
    level, sentence = facts["hidden_states"]["level"], facts["hidden_states"]["how"]
    tokenizer = _tokenizer(file)
    types = ", ".join(f"{name} {share:.1%}" for name, share in facts["weight_types"].items())
    heads = f"{facts['n_head']}" + (f" ({facts['n_head_kv']} for keys and values)" if facts["n_head_kv"] else "")
    rows = {
        "file": f"{file.path} ({size_text(file.size)})",
        "name": facts["name"],
        "architecture": facts["architecture"],
        "parameters": count_text(file.n_params),
        "quantization": f"{file.quantization} (weights by type: {types})",
        "layers": facts["n_layer"],
        "n_embd": facts["n_embd"],
        "heads": heads if facts["n_head"] else None,
        "context": f"{facts['n_ctx_train']:,} tokens" if isinstance(facts["n_ctx_train"], int) else None,
        "tokenizer": tokenizer or "none: give token ids instead of text",
        "chat template": "yes" if facts["chat_template"] else "no",
        "hidden states": sentence,
    }
    if file.metadata.get("split.count", 0) > 1:
        rows["parts"] = f"{file.metadata['split.count']}; sizes and parameters are of all of them together"
    if level in ("all", "prompt") and tokenizer:
        rows["for example"] = f"loom-gguf run {name} 'Your prompt' --out states.safetensors"
    for label, value in rows.items():
        if value is not None:
            lines = textwrap.wrap(printable(str(value)), 100, break_long_words=False, break_on_hyphens=False)
            yield f"{label:<14} " + f"\n{'':<14} ".join(lines)
    yield "\nmetadata"
    for key, entry in file.metadata.items():
        yield f"  {printable(key)} = {_short(entry)}"
    if tensors:
        yield f"\ntensors ({len(file.tensors):,})"
        width = max((len(tensor.name) for tensor in file.tensors), default=0)
        for tensor in file.tensors:
            shape = " x ".join(map(str, tensor.shape))
            yield f"  {printable(tensor.name):<{width}}  {tensor.type.upper():<6}  {shape}  ({size_text(tensor.size)})"


def _tokenizer(file: GGUFFile) -> str | None:
    model, tokens = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.tokens")
    if model in (None, "none") or tokens is None:
        return None
    kind = file.metadata.get("tokenizer.ggml.pre")
    return f"{model}{f' ({kind})' if kind else ''}, {len(tokens):,} tokens"


def _short(value: Any) -> str:
    if isinstance(value, str):
        return abbreviated(value)
    if hasattr(value, "__len__"):
        items = ", ".join(abbreviated(str(item), 20) for item in value[:_SHOWN_ITEMS])
        return f"[{items}]" if len(value) <= _SHOWN_ITEMS else f"[{items}, ... {len(value):,} in all]"
    return str(value)


def _facts(file: GGUFFile, *, tensors: bool) -> dict[str, Any]:
    """The header as plain values, for JSON."""
    from ..support import support

    level, sentence = support(file)
    elements: Counter[str] = Counter()
    for tensor in file.tensors:
        elements[tensor.type.upper()] += math.prod(tensor.shape)
    facts: dict[str, Any] = {
        "path": str(file.path),
        "size": file.size,
        "gguf_version": file.version,
        "name": file.metadata.get("general.name"),
        "architecture": file.arch,
        "n_params": file.n_params,
        "quantization": file.quantization,
        "weight_types": {name: n / max(file.n_params, 1) for name, n in elements.most_common()},
        "n_layer": file.hparam("block_count"),
        "n_embd": file.hparam("embedding_length"),
        "n_head": _plain(file.hparam("attention.head_count")),
        "n_head_kv": _plain(file.hparam("attention.head_count_kv")),
        "n_ctx_train": file.hparam("context_length"),
        "chat_template": "tokenizer.chat_template" in file.metadata,
        "hidden_states": {"level": level, "how": sentence},
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
    }
    if tensors:
        facts["tensors"] = [
            {"name": t.name, "type": t.type.upper(), "shape": list(t.shape), "offset": t.offset, "size": t.size}
            for t in file.tensors
        ]
    return facts


def _plain(value: Any) -> Any:
    """A metadata value as JSON has it: no NaN, no numpy, long arrays as their length and first items."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        if len(value) > _SHOWN_ITEMS:
            return {"length": len(value), "first": [_plain(item) for item in value[:_SHOWN_ITEMS]]}
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value if isinstance(value, (bool, int, float, type(None))) else str(value)
