"""Captured rows in fewer bytes: float16, or int8 with a scale per row or per block of it.

The rules for values that do not fit (beyond float16's range, NaN, infinities) stand in csrc/core/compress.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ._native import _core
from .errors import NotCapturedError, StatesError

if TYPE_CHECKING:
    from .states import NodeValues, Roles, States

Array = npt.NDArray[Any]
Kind = Literal["float16", "int8"]
KINDS: tuple[str, ...] = get_args(Kind)


class CompressedRows(NamedTuple):
    """Rows of one node."""

    data: Array  # float16 or int8, rows first; as captured where the node has no rows or holds integers
    scales: Array | None = None  # int8: float32 (n_rows, n_blocks); value = data * scale
    scale_block: int = 0  # values per scale; 0: a whole row
    saturated: int = 0  # float16: values beyond +-65504 that became +-65504

    def decompress(self) -> Array:
        """float32 rows (or the integers as they are)."""
        if self.scales is not None:
            return np.asarray(_core.decompress_int8(self.data, self.scales, self.scale_block))
        return self.data.astype(np.float32) if self.data.dtype == np.float16 else self.data

    @property
    def nbytes(self) -> int:
        """Size of the numbers and scales, in bytes."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def check_kind(kind: str, scale_block: int) -> None:
    """Raise StatesError where there is no such compression."""
    if kind not in KINDS:
        raise StatesError(f"compression is one of {', '.join(KINDS)}, not {kind!r}")
    if isinstance(scale_block, bool) or not isinstance(scale_block, int) or scale_block < 0:
        raise StatesError(f"scale_block is a number of values, or 0 for whole rows, not {scale_block!r}")
    if scale_block and kind != "int8":
        raise StatesError("scale_block belongs to int8: float16 has no scales")


def compress_rows(rows: Array, kind: Kind, scale_block: int = 0) -> CompressedRows:
    """Compress float32 rows (n_rows, ...), without Python's lock."""
    check_kind(kind, scale_block)
    if kind == "float16":
        halves, saturated = _core.compress_float16(rows)
        return CompressedRows(halves, saturated=saturated)
    numbers, scales = _core.compress_int8(rows, scale_block)
    return CompressedRows(numbers, scales, scale_block)


class CompressedStates(Mapping[str, CompressedRows]):
    """States in fewer bytes, by node key."""

    def __init__(self, rows: Mapping[str, CompressedRows], kind: Kind, like: States) -> None:
        """`rows`: of every captured node. `like`: states of the same nodes and tokens, with the compressed numbers."""
        self._rows = dict(rows)
        self.kind: Kind = kind
        self.tokens = list(like.tokens)
        self.positions = list(like.positions)
        self._like = like

    def __getitem__(self, key: str) -> CompressedRows:
        """The compressed rows of a node (also those of a single step have the rows' axis)."""
        try:
            return self._rows[key]
        except KeyError:
            raise NotCapturedError(
                f"{key!r} was not captured; captured: {', '.join(self._rows) or 'nothing'}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        """Keys, in graph order."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self._rows)

    def __repr__(self) -> str:
        """Nodes, rows and size."""
        return (
            f"<CompressedStates: {self.kind}, {len(self)} nodes, {len(self.tokens)} rows, {self.nbytes / 1e6:.1f} MB>"
        )

    def _repr_html_(self) -> str:
        from .notebook import compressed_html

        return compressed_html(self)

    @property
    def outline(self) -> States:
        """The same nodes, tokens, positions and roles as States, without their numbers."""
        return self._like.without_numbers()

    @property
    def roles(self) -> Roles:
        """Which nodes are hidden states."""
        return self._like.roles

    @property
    def values_by_key(self) -> Mapping[str, NodeValues]:
        """Every captured node, with or without rows; the numbers are the compressed ones, without their scales."""
        return self._like.values_by_key

    @property
    def nbytes(self) -> int:
        """Size of all numbers and scales, in bytes."""
        return sum(rows.nbytes for rows in self._rows.values())

    def decompress(self) -> States:
        """The states again, as float32, as far as the compression kept them."""
        return self._like.with_numbers({key: rows.decompress() for key, rows in self._rows.items()})
