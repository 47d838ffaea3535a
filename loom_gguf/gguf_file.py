"""What a GGUF file says about itself, read without its weights."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import preflight
from ._native import _core, complaints, forget_complaints
from .errors import CorruptGGUFError, MissingPartError, ModelNotFoundError, NotGGUFError, TruncatedGGUFError
from .split import files_of

_MAGIC = b"GGUF"


@dataclass(frozen=True)
class TensorInfo:
    """A weight as the file announces it."""

    name: str
    shape: tuple[int, ...]  # numpy's order: the last dimension is the innermost
    type: str  # "F32", "Q4_0", ...: lower case as ggml writes it
    offset: int  # in bytes, from the beginning of the file
    size: int  # in bytes


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file."""

    path: Path
    size: int  # of the file, in bytes
    version: int
    metadata: dict[str, Any]  # arrays of numbers are numpy arrays, arrays of strings are lists
    tensors: tuple[TensorInfo, ...]

    @property
    def arch(self) -> str:
        """The architecture, as llama.cpp calls it ("llama", "gemma2", ...)."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def hparam(self, name: str, default: Any = None) -> Any:
        """The metadata value `<arch>.<name>`."""
        return self.metadata.get(f"{self.arch}.{name}", default)

    @property
    def n_params(self) -> int:
        """Number of weights."""
        return sum(_elements(tensor.shape) for tensor in self.tensors)

    @property
    def quantization(self) -> str:
        """The type that holds most of the weights, in capitals ("F16", "Q4_0", "Q4_K", ...)."""
        weights: Counter[str] = Counter()
        for tensor in self.tensors:
            weights[tensor.type] += _elements(tensor.shape)
        return weights.most_common(1)[0][0].upper() if weights else "none"


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """The header of the file at `path`, checked as far as it can be without loading it.

    Raises ModelNotFoundError, NotGGUFError, CorruptGGUFError or TruncatedGGUFError.
    """
    file = read_header(Path(path))
    preflight.check(file)
    return file


def read_model(path: str | os.PathLike[str]) -> GGUFFile:
    """Like read_gguf(); of a split model, whose first part `path` is, with the size and the tensors of all parts.

    Raises also MissingPartError. The offsets of the tensors are those in their parts.
    """
    path = Path(path)
    first = read_header(path)
    count, number = first.metadata.get("split.count"), first.metadata.get("split.no")
    if not isinstance(count, int) or count <= 1:
        preflight.check(first)
        return first
    files = files_of(path)
    if number != 0:
        raise MissingPartError(f"{path} is not the first of {count} parts: name {files.path.name} or its like")
    if files.n_parts != count:
        raise MissingPartError(
            f"{path} is one of {count} parts, which llama.cpp finds by their names: call it "
            f"NAME-00001-of-{count:05}.gguf, and the others accordingly"
        )
    files.check()
    parts = [read_header(part) for part in files.parts]
    for at, part in enumerate(parts):
        preflight.check_size(part)
        if (part.metadata.get("split.count"), part.metadata.get("split.no")) != (count, at):
            raise MissingPartError(f"{part.path} is not part {at + 1} of {count} of this model: download it again")
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    announced = first.metadata.get("split.tensors.count")
    if announced != len(tensors):
        raise MissingPartError(f"{path} announces {announced} tensors, but its parts have {len(tensors)}: they differ")
    whole = replace(first, size=sum(part.size for part in parts), tensors=tensors)
    preflight.check_facts(whole)
    return whole


def read_header(path: Path) -> GGUFFile:
    """The header of one file as it is, of which nothing is checked but that it can be read."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ModelNotFoundError(f"no model file at {path}: check the path") from None
    except IsADirectoryError:
        raise ModelNotFoundError(f"{path} is a folder: name the .gguf file in it") from None
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from None
    if magic != _MAGIC:
        if _MAGIC.startswith(magic):
            raise TruncatedGGUFError(f"{path} has {size} bytes, too few for a GGUF file: download it again")
        raise NotGGUFError(
            f"{path} is not a GGUF file (it begins with {magic!r}). PyTorch and safetensors models must be "
            f"converted first, with llama.cpp's convert_hf_to_gguf.py"
        )
    forget_complaints()
    try:
        version, metadata, tensors = _core.read_gguf(str(path))
    except ValueError:
        reason = complaints() or "its header cannot be read"
        raise CorruptGGUFError(f"{path} is damaged: {reason}. Download or convert it again") from None
    return GGUFFile(
        path=path,
        size=size,
        version=version,
        metadata=metadata,
        tensors=tuple(
            TensorInfo(name, _numpy_shape(ne), type_name, offset, n_bytes)
            for name, ne, type_name, offset, n_bytes in tensors
        ),
    )


def _numpy_shape(ne: list[int]) -> tuple[int, ...]:
    while len(ne) > 1 and ne[-1] == 1:
        ne = ne[:-1]
    return tuple(reversed(ne))
