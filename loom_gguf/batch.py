"""What goes into a decode, and the rows that come out of it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._native import lib
from .catalog import Selection
from .compression import CompressedRows, CompressedStates, Kind
from .errors import DecodeError
from .states import NodeValues, States

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Tokens of one decode, of one or several sequences, in any order."""

    tokens: Array  # int32 (n_tokens,)
    positions: Array  # int32 (n_tokens,), absolute in their sequence
    sequences: Array  # int32 (n_tokens,)
    outputs: Array  # bool (n_tokens,): compute this token's logits

    @classmethod
    def of_one(cls, tokens: Array, start: int, sequence: int) -> Batch:
        """Consecutive tokens of one sequence, from position `start`; none of them is an output yet."""
        n = len(tokens)
        return cls(
            np.asarray(tokens, np.int32),
            np.arange(start, start + n, dtype=np.int32),
            np.full(n, sequence, np.int32),
            np.zeros(n, bool),
        )


@dataclass(frozen=True)
class Rows:
    """What a decode gave: one array per node of the selection.

    Row r of an array belongs to the batch's token number `kept[r]`; a node without rows is there whole.
    """

    selection: Selection
    arrays: tuple[CompressedRows, ...]  # `data` alone where nothing was compressed
    kept: Array  # int32 (n_rows,)
    batch: Batch
    compression: Kind | None = None

    def take(self, which: Array | slice) -> Rows:
        """Only some of the rows: an index or a mask over `kept`; a slice, which copies nothing."""
        arrays = tuple(
            rows
            if node.token_axis is None
            else CompressedRows(
                rows.data[which],
                None if rows.scales is None else rows.scales[which],
                rows.scale_block,
                rows.saturated,
            )
            for node, rows in zip(self.selection.nodes, self.arrays, strict=True)
        )
        return Rows(self.selection, arrays, self.kept[which], self.batch, self.compression)

    def only(self, selection: Selection) -> Rows:
        """Only the nodes of `selection`, which must be among these."""
        if selection is self.selection:
            return self
        by_key = {node.key: rows for node, rows in zip(self.selection.nodes, self.arrays, strict=True)}
        arrays = tuple(by_key[node.key] for node in selection.nodes)
        return Rows(selection, arrays, self.kept, self.batch, self.compression)

    def of(self, sequence: int) -> Rows:
        """Only the rows of one sequence."""
        mine = self.batch.sequences[self.kept] == sequence
        return self if mine.all() else self.take(mine)

    def states(self, *, single: bool = False) -> States:
        """The rows, as float32, with the tokens and positions that they belong to; all of one sequence."""
        if self.compression is None:
            return self._states([rows.data for rows in self.arrays], single)
        return self._states([rows.decompress() for rows in self.arrays], single)

    def compressed_states(self, *, single: bool = False) -> CompressedStates:
        """As states(), of rows that were captured with a compression, and without undoing it."""
        assert self.compression is not None
        rows = {node.key: rows for node, rows in zip(self.selection.nodes, self.arrays, strict=True)}
        return CompressedStates(rows, self.compression, self._states([rows.data for rows in self.arrays], single))

    def _states(self, arrays: Sequence[Array], single: bool) -> States:
        kept = self.kept.tolist()
        tokens, positions = self.batch.tokens.tolist(), self.batch.positions.tolist()
        values = {
            node.key: NodeValues(
                array,
                node.token_axis,
                node.occurrence,
                # Only weights may be filled up with zeros; scores of positions that are not there are no zeros.
                node.cell_axis if node.op == "SOFT_MAX" else None,
            )
            for node, array in zip(self.selection.nodes, arrays, strict=True)
        }
        return States(
            values,
            self.selection.roles,
            [tokens[i] for i in kept],
            [positions[i] for i in kept],
            sequence=int(self.batch.sequences[kept[0]]) if kept else 0,
            single=single,
        )


class BatchBuffers:
    """The memory behind a llama_batch, made once and filled for each decode."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: tokens."""
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._n_sequences = np.ones(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        # seq_id is an array of pointers: each token points to its own entry of one array.
        pointer = ctypes.POINTER(ctypes.c_int32)
        addresses = self._sequences.ctypes.data + 4 * np.arange(capacity, dtype=np.uintp)
        self._sequence_pointers = addresses
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(pointer),
            embd=None,
            pos=self._positions.ctypes.data_as(pointer),
            n_seq_id=self._n_sequences.ctypes.data_as(pointer),
            seq_id=addresses.ctypes.data_as(ctypes.POINTER(pointer)),
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, batch: Batch) -> Any:
        """The llama_batch of these tokens, valid until the next call."""
        n = len(batch.tokens)
        if n > len(self._tokens):
            raise DecodeError(f"a batch of {n} tokens is longer than n_ubatch ({len(self._tokens)}): cut it")
        self._tokens[:n] = batch.tokens
        self._positions[:n] = batch.positions
        self._sequences[:n] = batch.sequences
        self._outputs[:n] = batch.outputs
        self._batch.n_tokens = n
        return self._batch
