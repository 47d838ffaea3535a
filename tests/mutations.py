"""Damaged GGUF files: seeded mutations of a whole one, tried one after the other in a process of their own.

    python mutations.py WHOLE.gguf SCRATCH.gguf KIND FIRST END

prints `try N what` before each mutation and `N result` after it, so that whoever reads the output knows which file
ended the process. The reader of the format here is its own: it must find its way without the code that is tested.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Bytes of a number, by GGUF's number for its type.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_FLOATS = {6: "<f", 12: "<d"}
_ODD_INTEGERS = (0, 1, 2, 3, 7, 255, 256, 4097, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_ODD_FLOATS = (0.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))


@dataclass(frozen=True)
class Field:
    """One value in the file: where its bytes are, and whose they are."""

    name: str
    start: int
    end: int
    type: int  # GGUF's number for it


@dataclass(frozen=True)
class Layout:
    """Where everything of a GGUF file's header stands."""

    fields: tuple[Field, ...]  # in file order
    header_end: int  # of the tensor table
    tensors_from: int  # beginning of the tensor table

    def owner(self, offset: int) -> str:
        """What the byte at `offset` belongs to."""
        return next((f.name for f in self.fields if f.start <= offset < f.end), "padding")


def read_layout(data: bytes) -> Layout:
    """The header of a whole file, field by field."""
    fields: list[Field] = []
    at = 0

    def take(name: str, n_bytes: int, kind: int) -> bytes:
        nonlocal at
        fields.append(Field(name, at, at + n_bytes, kind))
        at += n_bytes
        return data[at - n_bytes : at]

    def integer(name: str, n_bytes: int) -> int:
        return int.from_bytes(take(name, n_bytes, {4: 4, 8: 10}[n_bytes]), "little")

    def value(name: str, kind: int) -> None:
        if kind == _STRING:
            take(name, integer(f"{name}: length", 8), _STRING)
        elif kind == _ARRAY:
            of = integer(f"{name}: element type", 4)
            for i in range(integer(f"{name}: count", 8)):
                value(f"{name}[{i}]", of)
        else:
            take(name, _SIZES[kind], kind)

    take("magic", 4, _STRING)
    integer("version", 4)
    n_tensors = integer("number of tensors", 8)
    for i in range(integer("number of keys", 8)):
        n = integer(f"key {i}: length", 8)
        key = take(f"key {i}: name", n, _STRING).decode()
        value(key, integer(f"{key}: type", 4))
    tensors_from = at
    for i in range(n_tensors):
        n = integer(f"tensor {i}: length of the name", 8)
        name = take(f"tensor {i}: name", n, _STRING).decode()
        for axis in range(integer(f"{name}: dimensions", 4)):
            integer(f"{name}: size {axis}", 8)
        integer(f"{name}: type", 4)
        integer(f"{name}: offset", 8)
    return Layout(tuple(fields), at, tensors_from)


Mutation = tuple[bytes, str]  # the file, and what was done to it


def random_bytes(data: bytes, layout: Layout, rng: random.Random) -> Mutation:
    """A few bytes anywhere in the header, metadata and tensor table."""
    out, said = bytearray(data), []
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        # The tokenizer's strings are most of the bytes: every other byte is taken from the tensor table.
        at = rng.randrange(rng.choice((0, layout.tensors_from)), layout.header_end)
        out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        said.append(f"byte {at} ({layout.owner(at)}) = {out[at]}")
    return bytes(out), ", ".join(said)


def odd_value(data: bytes, layout: Layout, rng: random.Random) -> Mutation:
    """One number of the file replaced by a strange one of the same type."""
    numbers = [field for field in layout.fields if field.type in _SIZES]
    values = [field for field in numbers if ":" not in field.name and "[" not in field.name]
    listed = [field for field in numbers if "[" in field.name]
    shape = [field for field in numbers if ":" in field.name and "[" not in field.name]
    field = rng.choice(rng.choices((values, shape, listed), (6, 3, 1))[0])
    if field.type in _FLOATS:
        odd: float | int = rng.choice(_ODD_FLOATS)
        new = struct.pack(_FLOATS[field.type], odd)
    else:
        n = field.end - field.start
        old = int.from_bytes(data[field.start : field.end], "little")
        odd = rng.choice((*_ODD_INTEGERS, old - 1, old + 1, old * 2, old // 2)) % 256**n
        new = odd.to_bytes(n, "little")
    return data[: field.start] + new + data[field.end :], f"{field.name} = {odd}"


def odd_string(data: bytes, layout: Layout, rng: random.Random) -> Mutation:
    """One string (a key's name, a tensor's name, a value) replaced by another of the file, or by noise."""
    strings = [f for f in layout.fields if f.type == _STRING and f.end > f.start and "[" not in f.name]
    field = rng.choice([f for f in strings if f.name != "magic"])
    n = field.end - field.start
    other = rng.choice(strings)
    new = data[other.start : other.end] if rng.random() < 0.7 else rng.randbytes(n)
    length = len(new).to_bytes(8, "little")  # the length stands right before the bytes
    changed = data[: field.start - 8] + length + new + data[field.end :]
    # Behind the header the tensors' bytes stand at a multiple of 32: fill up or cut zeros where they fit.
    shift = -len(changed) % 32 - -len(data) % 32
    end = layout.header_end + len(changed) - len(data)
    rest = bytes(shift) + changed[end:] if shift >= 0 else changed[end - shift :]
    return changed[:end] + rest, f"{field.name} = {new!r}"


KINDS: dict[str, Callable[[bytes, Layout, random.Random], Mutation]] = {
    "random_bytes": random_bytes,
    "odd_value": odd_value,
    "odd_string": odd_string,
}


def mutations(data: bytes, kind: str, first: int, end: int) -> Iterator[tuple[int, Mutation]]:
    """Mutations number `first` to `end`; each number always gives the same file."""
    layout = read_layout(data)
    for number in range(first, end):
        yield number, KINDS[kind](data, layout, random.Random(f"{kind} {number}"))


def _try(path: Path) -> str:
    """Load the file and run it as any user would: works, or says why not."""
    from loom_gguf import Capture, LoomError, Model

    try:
        with Model(path, n_ctx=64, n_ubatch=16, n_threads=1) as model:
            ids = [token % model.n_vocab for token in range(1, 20)]
            states = model.forward(ids, Capture.all_layers(embedding=True, final=True))
            bad = [key for key in states if len(states[key]) != len(ids)]
            states = model.forward(ids[:5], Capture.everything())
            bad += [key for key in states if len(states[key]) != 5]
            for step in model.generate(ids, max_tokens=2):
                if step.text:
                    model.detokenize([step.token_id])
            return f"rows missing in {bad}" if bad else "runs"
    except LoomError as error:
        return f"refused {type(error).__name__}" if str(error) else "no words"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Try the mutations that the command line names."""
    whole, scratch, kind, first, end = sys.argv[1:]
    for number, (data, what) in mutations(Path(whole).read_bytes(), kind, int(first), int(end)):
        print("try", number, what, flush=True)
        Path(scratch).write_bytes(data)
        print(number, _try(Path(scratch)), flush=True)


if __name__ == "__main__":
    main()
