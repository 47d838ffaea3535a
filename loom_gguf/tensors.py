"""Weights of a GGUF file as numbers, block by block: the file is mapped, and only what is asked for is widened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ._native import _core
from .errors import ModelLoadError
from .gguf_file import GGUFFile, TensorInfo, read_gguf
from .states import Array

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")  # llama.cpp's names of a file in several parts


@dataclass(frozen=True)
class Tensor:
    """One weight, in the file."""

    path: Path  # the part of the file that holds it
    info: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        """In numpy's order."""
        return self.info.shape

    @property
    def type(self) -> str:
        """How ggml stores it: "f32", "q4_0", ..."""
        return self.info.type

    def all(self) -> Array:
        """Every number of it, float32, in its shape."""
        return self._widened(self._bytes()).reshape(self.shape)

    def rows(self, first: int, end: int) -> Array:
        """Rows `first` to `end` - 1 of a matrix, float32 (end - first, n), dequantized by ggml itself."""
        return self._widened(self._bytes()[first:end])

    def rows_at(self, indices: Array) -> Array:
        """Rows of a matrix in any order, float32 (len(indices), n)."""
        return self._widened(np.ascontiguousarray(self._bytes()[indices]))

    def _bytes(self) -> Array:
        """uint8 (n_rows, bytes of a row), not yet read."""
        n_rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        shape = (n_rows, self.info.size // n_rows)
        try:
            return np.memmap(self.path, np.uint8, "r", self.info.offset, shape)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelLoadError(
                f"the weight {self.info.name} cannot be read from {self.path}: {reason}. The file must stay in its "
                f"place while the model is in use"
            ) from None

    def _widened(self, data: Array) -> Array:
        try:
            return _core.read_weights(self.type, data, self.shape[-1])
        except ValueError as error:
            raise ModelLoadError(f"the weight {self.info.name} of {self.path} cannot be read: {error}") from None


def find_tensor(file: GGUFFile, name: str) -> Tensor | None:
    """The weight of this name, in the file or in another part of it; None where there is none."""
    for part in _parts(file):
        for info in part.tensors:
            if info.name == name:
                return Tensor(part.path, info)
    return None


def _parts(file: GGUFFile) -> Iterator[GGUFFile]:
    yield file
    number = _PART.search(file.path.name)
    n_parts = int(file.metadata.get("split.count", 1))
    if number is None or n_parts < 2:
        return
    head = file.path.name[: number.start()]
    for i in range(1, n_parts + 1):
        path = file.path.with_name(f"{head}-{i:05d}-of-{n_parts:05d}.gguf")
        if path.name != file.path.name:
            yield read_gguf(path)
