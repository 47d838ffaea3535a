"""A GGUF model with the shape of a real one and random weights: enough to measure speed, with nothing to download.

    python scripts/random_model.py tinyllama --type Q4_0 --dir /tmp/models

prints the path of the file. Quantized blocks are made directly, random bytes under a scale that keeps the variance of
what goes through them, so an 8-billion-parameter file takes as long as the disk needs, and memory for one tensor.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

Array = npt.NDArray[Any]

DEFAULT_DIR = Path(tempfile.gettempdir()) / "loom_gguf-random-models"
_CHUNK = 1 << 22  # values made at a time

# Where a vocabulary is asked for, a token is a character: no text is ambiguous, none is held back.
_SPECIAL = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
_CHARACTERS = [*map(chr, range(0x4E00, 0xA000)), *map(chr, range(0xAC00, 0xD7A4))]  # Han, Hangul: enough for 32,000


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int
    n_ctx: int = 4096


SHAPES = {
    "tiny": Shape(n_layer=4, n_embd=256, n_head=8, n_head_kv=4, n_ff=768, n_vocab=512),
    "tinyllama": Shape(n_layer=22, n_embd=2048, n_head=32, n_head_kv=4, n_ff=5632, n_vocab=32000),
    "llama-8b": Shape(n_layer=32, n_embd=4096, n_head=32, n_head_kv=8, n_ff=14336, n_vocab=128256),
}
TYPES = {
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
# Of a quantized type: values of a block, bytes of their numbers, and the standard deviation of a number drawn evenly
# (Q4_0: -8 to 7, Q8_0: -128 to 127).
_BLOCKS = {
    GGMLQuantizationType.Q4_0: (32, 16, math.sqrt((16**2 - 1) / 12)),
    GGMLQuantizationType.Q8_0: (32, 32, math.sqrt((256**2 - 1) / 12)),
}


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes (numpy's order: outputs, inputs) of a Llama's weights, in a file's usual order."""
    n_kv = shape.n_embd // shape.n_head * shape.n_head_kv
    yield "token_embd.weight", (shape.n_vocab, shape.n_embd)
    for il in range(shape.n_layer):
        yield f"blk.{il}.attn_norm.weight", (shape.n_embd,)
        yield f"blk.{il}.attn_q.weight", (shape.n_embd, shape.n_embd)
        yield f"blk.{il}.attn_k.weight", (n_kv, shape.n_embd)
        yield f"blk.{il}.attn_v.weight", (n_kv, shape.n_embd)
        yield f"blk.{il}.attn_output.weight", (shape.n_embd, shape.n_embd)
        yield f"blk.{il}.ffn_norm.weight", (shape.n_embd,)
        yield f"blk.{il}.ffn_gate.weight", (shape.n_ff, shape.n_embd)
        yield f"blk.{il}.ffn_up.weight", (shape.n_ff, shape.n_embd)
        yield f"blk.{il}.ffn_down.weight", (shape.n_embd, shape.n_ff)
    yield "output_norm.weight", (shape.n_embd,)
    yield "output.weight", (shape.n_vocab, shape.n_embd)


def _quantized(size: tuple[int, ...], kind: GGMLQuantizationType, std: float, rng: np.random.Generator) -> Array:
    """Blocks of random numbers, uint8 (outputs, bytes of a row). Scales of both signs keep the mean at zero."""
    n_values, n_bytes, std_of_number = _BLOCKS[kind]
    n_blocks = math.prod(size) // n_values
    blocks = np.empty((n_blocks, 2 + n_bytes), np.uint8)
    for start in range(0, n_blocks, _CHUNK // n_values):
        part = blocks[start : start + _CHUNK // n_values]
        scales = rng.uniform(0.7, 1.3, len(part)) * rng.choice([-1.0, 1.0], len(part)) * (std / std_of_number)
        part[:, :2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
        part[:, 2:] = rng.integers(0, 256, (len(part), n_bytes), np.uint8)
    return blocks.reshape(size[0], -1)


def _halves(size: tuple[int, ...], std: float, rng: np.random.Generator) -> Array:
    """Normal random numbers, float16 of this size."""
    values = np.empty(math.prod(size), "<f2")
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        part[:] = std * rng.standard_normal(len(part), np.float32)
    return values.reshape(size)


def _values(name: str, size: tuple[int, ...], kind: GGMLQuantizationType, rng: np.random.Generator) -> Array:
    if len(size) == 1:
        return (1 + 0.1 * rng.standard_normal(size)).astype("<f4")
    # What comes out of a matrix has the variance of what went in.
    std = 0.5 if name == "token_embd.weight" else 1 / math.sqrt(size[1])
    return _halves(size, std, rng) if kind == GGMLQuantizationType.F16 else _quantized(size, kind, std, rng)


def _n_bytes(size: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    if kind in _BLOCKS:
        n_values, n_bytes, _ = _BLOCKS[kind]
        return math.prod(size) // n_values * (2 + n_bytes)
    return math.prod(size) * (4 if kind == GGMLQuantizationType.F32 else 2)


def characters(shape: Shape) -> str:
    """The vocabulary's characters in the order of their ids, which begin behind the special tokens'."""
    n = shape.n_vocab - len(_SPECIAL)
    if n > len(_CHARACTERS):
        raise ValueError(f"there are characters for a vocabulary of {len(_SPECIAL) + len(_CHARACTERS):,} tokens only")
    return "".join(_CHARACTERS[:n])


def first_character() -> int:
    """The id of the first of `characters`."""
    return len(_SPECIAL)


def _add_vocabulary(writer: GGUFWriter, shape: Shape) -> None:
    normal = characters(shape)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*_SPECIAL, *normal])
    writer.add_token_scores([0.0] * shape.n_vocab)
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * len(normal)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def write_model(path: Path, shape: Shape, type_name: str, seed: int = 0, *, text: bool = False) -> None:
    """Write the file, one tensor in memory at a time. Vectors stay float32.

    `text`: with a vocabulary of single characters, of which alone the most probable token is ever one: greedy text
    never ends. Else without a tokenizer.
    """
    kind, file_type = TYPES[type_name]
    kinds = {name: kind if len(size) > 1 else GGMLQuantizationType.F32 for name, size in _tensors(shape)}
    writer = GGUFWriter(path, "llama")
    writer.add_name(f"random-{path.stem}")
    writer.add_file_type(file_type)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.n_vocab)
    if text:
        _add_vocabulary(writer, shape)
    else:
        writer.add_tokenizer_model("no_vocab")
    for name, size in _tensors(shape):
        kind = kinds[name]
        # The writer wants the size in bytes for whatever is no plain array of numbers.
        dtype = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind, np.float32)
        writer.add_tensor_info(name, size, np.dtype(dtype), _n_bytes(size, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for name, size in _tensors(shape):
        values = _values(name, size, kinds[name], rng)
        if text and name == "output.weight":
            values[: len(_SPECIAL)] = 0  # logits of 0 are never the largest
        writer.write_tensor_data(values)
    writer.close()


def random_model(
    name: str, type_name: str = "Q4_0", folder: Path = DEFAULT_DIR, seed: int = 0, *, text: bool = False
) -> Path:
    """The file of a shape and type in `folder`, written unless it is there already. `text`: with a vocabulary."""
    path = folder / f"{name}-{type_name.lower()}-{seed}{'-text' if text else ''}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")  # a file that was cut off must not be taken for a whole one
        write_model(part, SHAPES[name], type_name, seed, text=text)
        part.rename(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a GGUF model of a real one's shape with random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="type of the matrices (default: Q4_0)")
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help=f"where files are kept (default: {DEFAULT_DIR})")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(random_model(options.shape, options.type, options.dir, options.seed))


if __name__ == "__main__":
    main()
