"""What is wrong with a GGUF file, said before llama.cpp sees it.

llama.cpp refuses most damaged files in words, but asserts some things: then the process ends. Those are looked at
here. The limits are those of llama.cpp 0c1e570 (llama-hparams.h, llama-model.cpp, llama-vocab.cpp, ggml-cpu).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .errors import CorruptGGUFError, TruncatedGGUFError

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

_MAX_LAYERS = 512
_MAX_EXPERTS = 1024
_MAX_WINDOW = 1 << 26  # far beyond any model's context; llama.cpp reserves memory by this number

# Architectures whose Q projection has exactly head_count * key_length rows: no gates, no latent attention.
_PLAIN_ATTENTION = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3",
        "granite",
        "granitemoe",
        "internlm2",
        "lfm2",
        "llama",
        "llama4",
        "mistral3",
        "olmo",
        "olmo2",
        "olmoe",
        "phi3",
        "qwen2",
        "qwen2moe",
        "qwen3",
        "qwen3moe",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)

# Architectures whose builders assert that rotary positions turn the whole head.
_WHOLE_ROPE = frozenset({"qwen2", "qwen2moe", "qwen3", "qwen3moe"})


def check(file: GGUFFile) -> None:
    """Raise TruncatedGGUFError or CorruptGGUFError where the file cannot be whole."""
    check_size(file)
    check_facts(file)


def check_size(file: GGUFFile) -> None:
    """Raise TruncatedGGUFError where the file ends before its tensors do."""
    end = max((tensor.offset + tensor.size for tensor in file.tensors), default=0)
    if end > file.size:
        raise TruncatedGGUFError(
            f"{file.path} is truncated: it has {file.size:,} bytes, but its tensors end at byte {end:,}. Download it "
            f"again"
        )


def check_facts(file: GGUFFile) -> None:
    """Raise CorruptGGUFError where what the header says cannot be true."""
    for fault in _faults(file):
        raise CorruptGGUFError(f"{file.path} is damaged: {fault}. Download or convert it again")


def _faults(file: GGUFFile) -> Iterator[str]:
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        yield "it does not say its architecture (general.architecture)"
        return
    n_layer = file.hparam("block_count")
    if isinstance(n_layer, int) and not 1 <= n_layer <= _MAX_LAYERS:
        yield f"it announces {n_layer:,} blocks; llama.cpp runs 1 to {_MAX_LAYERS}"
    window = file.hparam("attention.sliding_window")
    if isinstance(window, int) and window > _MAX_WINDOW:
        yield f"its sliding window of {window:,} tokens is not believable"
    yield from _epsilons(file)
    yield from _experts(file)
    yield from _heads(file)
    yield from _norms(file)
    yield from _tokens(file)


def _epsilons(file: GGUFFile) -> Iterator[str]:
    for key, value in file.metadata.items():
        # `not >=` also catches NaN.
        if key.endswith("epsilon") and isinstance(value, float) and not 0 <= value < math.inf:
            yield f"{key} is {value}"


def _experts(file: GGUFFile) -> Iterator[str]:
    count = _integer(file, "expert_count")
    used = int(np.max(file.hparam("expert_used_count", 0), initial=0))
    groups, used_groups = _integer(file, "expert_group_count"), _integer(file, "expert_group_used_count")
    if count <= 1 and file.arch.startswith("hunyuan"):
        return  # llama.cpp runs these as dense models
    if count > _MAX_EXPERTS:
        yield f"it announces {count:,} experts; llama.cpp runs at most {_MAX_EXPERTS}"
    if used > count or (count > 0 and used == 0):
        yield f"it uses {used} of {count} experts"
    if groups > 1 and (groups >= count or count % groups or not 0 < used_groups < groups):
        yield f"its {count} experts cannot stand in {groups} groups of which {used_groups} are used"


def _heads(file: GGUFFile) -> Iterator[str]:
    n_head, n_embd = file.hparam("attention.head_count"), file.hparam("embedding_length")
    if not isinstance(n_embd, int):
        return
    heads = np.atleast_1d(n_head) if n_head is not None else np.array([])
    if heads.dtype.kind not in "iu" or not heads.size or int(heads.max()) == 0:
        return  # no attention at all
    largest = int(heads.max())
    key_length = file.hparam("attention.key_length", n_embd // largest)
    rope = file.hparam("rope.dimension_count")
    if isinstance(key_length, int) and isinstance(rope, int):
        none = rope < 2 and file.arch in _PLAIN_ATTENTION
        part = rope != key_length and file.arch in _WHOLE_ROPE
        if rope > key_length or none or part:
            yield f"rotary positions turn {rope} dimensions of heads that have {key_length}"
    for tensor in file.tensors:
        if not tensor.name.endswith(".attn_q.weight") or len(tensor.shape) != 2:
            continue
        rows = tensor.shape[0]
        if heads.size == 1 and rows % largest:
            yield f"{tensor.name} has {rows} rows, which {largest} heads cannot share"
        elif heads.size == 1 and file.arch in _PLAIN_ATTENTION and rows != largest * key_length:
            yield f"{tensor.name} has {rows} rows for {largest} heads of {key_length}"


def _norms(file: GGUFFile) -> Iterator[str]:
    for tensor in file.tensors:
        if len(tensor.shape) == 1 and tensor.name.endswith(("norm.weight", ".bias")) and tensor.type != "f32":
            yield f"{tensor.name} has type {tensor.type}, but norms and biases must be f32"


def _tokens(file: GGUFFile) -> Iterator[str]:
    tokens = [token for token in file.metadata.get("tokenizer.ggml.tokens", ()) if token]
    if len(set(tokens)) != len(tokens):
        yield "its vocabulary names a token twice"


def _integer(file: GGUFFile, name: str) -> int:
    value = file.hparam(name, 0)
    return value if isinstance(value, int) else 0
