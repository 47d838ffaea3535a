"""GGUF files taken apart and put together again: with other keys or tensors, or in several parts.

It knows the format by itself (ggml's docs/gguf.md), so that the code that is tested has no part in making its input.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32
_UINT16, _UINT32, _INT32, _FLOAT = 2, 4, 5, 6


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # ggml's order
    type: int
    data: bytes


@dataclass(frozen=True)
class Gguf:
    keys: dict[str, bytes] = field(default_factory=dict)  # key to type and value, as they stand in the file
    tensors: tuple[Tensor, ...] = ()

    def with_keys(self, **keys: Any) -> Gguf:
        """`__` stands for a dot; None takes a key away."""
        made = dict(self.keys)
        for name, value in keys.items():
            key = name.replace("__", ".")
            made.pop(key, None)
            if value is not None:
                made[key] = _value(value)
        return replace(self, keys=made)

    def as_architecture(self, arch: str) -> Gguf:
        """Under another architecture's name, with the keys that begin with it."""
        old = self.keys["general.architecture"][12:].decode()
        keys = {arch + key[len(old) :] if key.startswith(old + ".") else key: value for key, value in self.keys.items()}
        return replace(self, keys=keys).with_keys(general__architecture=arch)

    def with_tensor(self, name: str, like: str = "output_norm.weight") -> Gguf:
        """With one more tensor: a copy under another name."""
        copied = next(tensor for tensor in self.tensors if tensor.name == like)
        return replace(self, tensors=(*self.tensors, replace(copied, name=name)))

    def renamed(self, old: str, new: str) -> Gguf:
        tensors = (replace(tensor, name=tensor.name.replace(old, new)) for tensor in self.tensors)
        return replace(self, tensors=tuple(tensors))

    def write(self, path: Path) -> Path:
        header = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        for key, value in self.keys.items():
            header += _text(key) + value
        offset, body = 0, b""
        for tensor in self.tensors:
            header += _text(tensor.name) + struct.pack("<I", len(tensor.shape))
            header += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type, offset)
            padded = tensor.data + b"\0" * (-len(tensor.data) % _ALIGNMENT)
            body += padded
            offset += len(padded)
        path.write_bytes(header + b"\0" * (-len(header) % _ALIGNMENT) + body)
        return path

    def split(self, folder: Path, name: str, n_parts: int) -> list[Path]:
        """In parts, as gguf-split cuts it: the metadata in the first, tensors in all of them, in order."""
        paths = []
        each = -(-len(self.tensors) // n_parts)
        for at in range(n_parts):
            keys = self.keys if at == 0 else {}
            about = {
                "split.no": struct.pack("<IH", _UINT16, at),
                "split.count": struct.pack("<IH", _UINT16, n_parts),
                "split.tensors.count": struct.pack("<Ii", _INT32, len(self.tensors)),
            }
            part = Gguf({**keys, **about}, self.tensors[at * each : (at + 1) * each])
            paths.append(part.write(folder / f"{name}-{at + 1:05}-of-{n_parts:05}.gguf"))
        return paths


def read(path: Path) -> Gguf:
    data = path.read_bytes()
    at = 24
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)

    def text() -> str:
        nonlocal at
        (n,) = struct.unpack_from("<Q", data, at)
        at += 8 + n
        return data[at - n : at].decode()

    def skip(kind: int) -> None:
        nonlocal at
        if kind == _STRING:
            text()
        elif kind == _ARRAY:
            of, n = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(n):
                skip(of)
        else:
            at += _SIZES[kind]

    keys = {}
    for _ in range(n_keys):
        key, start = text(), at
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        skip(kind)
        keys[key] = data[start:at]
    found = []
    for _ in range(n_tensors):
        name = text()
        (n_dims,) = struct.unpack_from("<I", data, at)
        *shape, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", data, at + 4)
        at += 4 + 8 * n_dims + 12
        found.append((name, tuple(shape), kind, offset))
    start = at + -at % _ALIGNMENT
    ends = sorted([offset for *_, offset in found] + [len(data) - start])
    tensors = [
        Tensor(name, shape, kind, data[start + offset : start + ends[ends.index(offset) + 1]])
        for name, shape, kind, offset in found
    ]
    return Gguf(keys, tuple(tensors))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT, value)
    return struct.pack("<II", _UINT32, value)
