"""Hidden states that PyTorch wrote: a .safetensors file without loom_gguf's header, read as States.

| array | shape | |
|---|---|---|
| `tokens` | integers (T,) or (1, T) | the token ids that were read, from the first position on |
| `hidden_states.0` to `hidden_states.N` | floats (T, n_embd) or (1, T, n_embd) | N is n_layer |
| `logits` | floats (T, n_vocab) or (1, T, n_vocab) | optional |

They are what `output_hidden_states=True` gives. In Hugging Face's order `hidden_states.0` is the embedding,
`hidden_states.i` the output of layer i-1 for 0 < i < N, and `hidden_states.N` the state after the final norm: the last
layer's own output is not among them.

    import torch
    from safetensors.torch import save_file

    with torch.no_grad():
        out = model(ids, output_hidden_states=True)  # ids: (1, T), without padding
    arrays = {f"hidden_states.{i}": h[0].float().contiguous() for i, h in enumerate(out.hidden_states)}
    save_file({**arrays, "tokens": ids[0].contiguous(), "logits": out.logits[0].float().contiguous()}, "x.safetensors")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from .errors import StatesFileError
from .states import Array, NodeValues, Roles, States

LOGITS = "result_output"  # llama.cpp's name of the node

_NAME = re.compile(r"hidden_states\.(0|[1-9][0-9]*)")


def is_hugging_face(names: Iterable[str]) -> bool:
    """Whether a file with arrays of these names is meant to be one as above."""
    return any(_NAME.fullmatch(name) for name in names)


def is_hugging_face_name(name: str) -> bool:
    """Whether an array of this name means something here."""
    return name in ("tokens", "logits") or bool(_NAME.fullmatch(name))


def from_hugging_face(arrays: Mapping[str, Array]) -> States:
    """States of the arrays above; float16 and float64 become float32. The keys are the arrays' own names.

    Raises StatesFileError where they contradict each other.
    """
    numbers = sorted(int(found[1]) for name in arrays if (found := _NAME.fullmatch(name)))
    last = numbers[-1]
    if numbers != list(range(last + 1)) or last == 0:
        missing = next((i for i in range(last + 1) if i not in numbers), 1)
        raise StatesFileError(
            f"hidden_states.{missing} is missing: all of Hugging Face's n_layer + 1 hidden states are needed, because "
            f"their number says which is the last"
        )
    if "tokens" not in arrays:
        raise StatesFileError("`tokens` is missing: the token ids (T,) that the hidden states belong to")
    tokens = _without_batch("tokens", arrays["tokens"], 1)
    if tokens.dtype.kind not in "iu":
        raise StatesFileError(f"`tokens` are integers, not {tokens.dtype}")
    values = {}
    for i in numbers:
        name = f"hidden_states.{i}"
        values[name] = NodeValues(_floats(name, arrays[name], len(tokens)), 0)
        if values[name].array.shape != values["hidden_states.0"].array.shape:
            raise StatesFileError(
                f"{name} has shape {values[name].array.shape}, hidden_states.0 {values['hidden_states.0'].array.shape}"
            )
    if "logits" in arrays:
        values[LOGITS] = NodeValues(_floats("logits", arrays["logits"], len(tokens)), 0)
    roles = Roles(
        n_layer=last,
        layers={i - 1: f"hidden_states.{i}" for i in range(1, last)},
        embedding="hidden_states.0",
        final=f"hidden_states.{last}",
    )
    return States(values, roles, tokens.tolist(), range(len(tokens)))


def _floats(name: str, array: Array, n_tokens: int) -> Array:
    """The array as float32 (T, ...)."""
    if array.dtype.kind != "f":
        raise StatesFileError(f"{name} holds floats, not {array.dtype}")
    rows = _without_batch(name, array, 2)
    if len(rows) != n_tokens:
        raise StatesFileError(f"{name} has {len(rows)} rows for {n_tokens} tokens")
    with np.errstate(over="ignore"):  # beyond float32's range: infinite
        floats: Array = rows.astype(np.float32, copy=False)
    return floats


def _without_batch(name: str, array: Array, n_dims: int) -> Array:
    """PyTorch's arrays begin with a batch, which must be of one text."""
    if array.ndim == n_dims + 1 and len(array) == 1:
        (array,) = array
    elif array.ndim != n_dims:
        wanted = "(T,)" if n_dims == 1 else "(T, width)"
        raise StatesFileError(
            f"{name} has shape {array.shape}, not {wanted}: write one text to a file, without padding"
        )
    return array
