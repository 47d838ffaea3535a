"""`expose_hidden`: from the request to a Capture, and from captured rows to records that JSON can hold.

Every row that was asked for is in exactly one record. Rows stay numpy arrays until orjson writes them.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ...capture import Capture
from ...compression import CompressedRows, CompressedStates, Kind
from ...jobs import Captured, PromptRows, Token
from ...states import Roles
from ..errors import HiddenConfigError, first_problem
from .schemas import ExposeHidden, Record

Array = npt.NDArray[Any]

_RECORD_VALUES = 2**20  # numbers in one record of a prompt; longer ones are cut between rows
_LINE_VALUES = 2**20  # numbers after which a line of a prompt's records is full


@dataclass(frozen=True)
class _Meta:
    """What all records of one event have in common."""

    phase: Literal["prompt", "generate"]
    tokens: list[int]  # read, one per row
    positions: list[int]
    token_index: int | None
    next_token_id: int | None


class Hidden:
    """The hidden states that one request wants."""

    def __init__(self, wanted: ExposeHidden) -> None:
        """Use parse()."""
        self._wanted = wanted
        self.n_bytes = 0  # of the numbers in the records so far
        indices = wanted.layers
        self._layers = None if indices is None else frozenset(indices)
        if indices is not None and any(index < 0 for index in indices):
            raise HiddenConfigError("layers must be non-negative")
        if wanted.scale_block is not None and wanted.compression != "int8":
            raise HiddenConfigError(f"scale_block belongs to int8; the compression is {wanted.compression}")

    @classmethod
    def parse(cls, value: Any) -> Hidden | None:
        """The request's object; None where it wants nothing."""
        if value is None:
            return None
        if not isinstance(value, dict):
            raise HiddenConfigError("it must be an object, such as {}")
        try:
            wanted = ExposeHidden.model_validate(value)
        except ValidationError as error:
            raise HiddenConfigError(first_problem(error)) from None
        hidden = cls(wanted)  # checked also where it is not enabled
        return hidden if wanted.enabled else None

    def capture(self, n_layer: int) -> Capture | None:
        """What to capture of a model with so many blocks; None where that is nothing."""
        wanted = self._wanted
        for index in wanted.layers or ():
            if index >= n_layer:
                raise HiddenConfigError(f"there is no layer {index}; this model's layers are 0 to {n_layer - 1}")
        capture = Capture(embedding=wanted.embedding, final=wanted.final, patterns=tuple(dict.fromkeys(wanted.nodes)))
        if wanted.last_layer_only:
            capture |= Capture.layers([n_layer - 1])
        elif wanted.layers is None:
            capture |= Capture.all_layers()
        else:
            capture |= Capture.layers(sorted(set(wanted.layers)))
        return capture or None

    @property
    def prompt(self) -> bool:
        """Whether the prompt's rows are wanted too."""
        return self._wanted.prompt

    @property
    def compression(self) -> Kind | None:
        """For the engine."""
        return None if self._wanted.compression == "none" else self._wanted.compression

    @property
    def scale_block(self) -> int:
        """For the engine; 0: whole rows."""
        return self._wanted.scale_block or 0

    # -- records --------------------------------------------------------------------------------------------------

    def of_token(self, token: Token) -> list[Record]:
        """The records of a generated token."""
        states = token.states
        if states is None:
            return []
        meta = _Meta("generate", states.tokens, states.positions, token.index, token.token_id)
        return [record for record, _ in self._records(states, meta)]

    def of_prompt(self, event: PromptRows) -> Iterator[list[Record]]:
        """The records of a piece of the prompt, in portions that make lines of bounded length."""
        states = event.states
        portion: list[Record] = []
        n_values = 0
        for record, size in self._records(states, _Meta("prompt", states.tokens, states.positions, None, None)):
            if portion and n_values + size > _LINE_VALUES:
                yield portion
                portion, n_values = [], 0
            portion.append(record)
            n_values += size
        if portion:
            yield portion

    def _records(self, states: Captured, meta: _Meta) -> Iterator[tuple[Record, int]]:
        """Records with the number of their values."""
        roles = states.roles
        layer_of = {key: il for il, key in roles.layers.items()}
        for key, value in states.values_by_key.items():
            rows = states[key] if isinstance(states, CompressedStates) else CompressedRows(value.array)
            for layer, node in self._names(key, layer_of.get(key), roles):
                if value.row_axis is None:
                    yield self._record(rows, meta, layer, node, whole=True), rows.data.size
                    continue
                per_row = max(rows.data[:1].size, 1)
                step = max(_RECORD_VALUES // per_row, 1)
                for start in range(0, len(rows.data), step):
                    part = _cut(rows, start, start + step)
                    here = _Meta(
                        meta.phase,
                        meta.tokens[start : start + step],
                        meta.positions[start : start + step],
                        meta.token_index,
                        meta.next_token_id,
                    )
                    yield self._record(part, here, layer, node), part.data.size

    def _names(self, key: str, layer: int | None, roles: Roles) -> list[tuple[int | None, str]]:
        """What a node was asked for as: a layer, the embedding or the final state, or by its name; more than one where
        the same node is both.
        """
        wanted = self._wanted
        names: list[tuple[int | None, str]] = []
        if layer is not None and self._wants_layer(layer, roles.n_layer):
            names.append((layer, key))
        if wanted.embedding and key == roles.embedding:
            names.append((None, "embedding"))
        if wanted.final and key == roles.final:
            names.append((None, "final"))
        if not names or (key in wanted.nodes and all(node != key for _, node in names)):
            names.append((layer, key))
        return names

    def _wants_layer(self, layer: int, n_layer: int) -> bool:
        if self._wanted.last_layer_only:
            return layer == n_layer - 1
        return self._layers is None or layer in self._layers

    def _record(
        self, rows: CompressedRows, meta: _Meta, layer: int | None, node: str, *, whole: bool = False
    ) -> Record:
        """One record. Its position is that of its first row; all its rows are of consecutive tokens."""
        data = rows.data
        self.n_bytes += rows.nbytes
        record: Record = {
            "layer": layer,
            "node": node,
            "phase": meta.phase,
            "position": meta.positions[0],
            "token_ids": meta.tokens,
            "token_index": meta.token_index,
            "shape": [1, *data.shape],
            "data": self._data(rows, node),
            "compression": "none",
        }
        if meta.next_token_id is not None:
            record["next_token_id"] = meta.next_token_id
        if self._wanted.encoding == "base64":
            record["encoding"] = "base64"
        if rows.scales is not None:
            record["compression"] = "int8"
            record["scale"] = np.ascontiguousarray(rows.scales).ravel()
            if rows.scale_block:  # which the number of scales alone does not tell, where the last block is short
                record["scale_block"] = rows.scale_block
        elif data.dtype == np.float16:
            record["compression"] = "float16"
            record["saturated"] = rows.saturated
        elif data.dtype != np.float32:
            record["dtype"] = data.dtype.name
        if whole:
            record["whole"] = True
        return record

    def _data(self, rows: CompressedRows, node: str) -> Any:
        flat = np.ascontiguousarray(rows.data).ravel()
        if self._wanted.encoding == "base64":
            little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
            return b2a_base64(little.data, newline=False).decode("ascii")
        if not (_finite(flat) and (rows.scales is None or _finite(rows.scales))):
            raise HiddenConfigError(
                f'{node} has NaN or infinite values, which JSON cannot hold: use "encoding": "base64"'
            )
        return flat


def _cut(rows: CompressedRows, start: int, stop: int) -> CompressedRows:
    """Some of the rows. What was saturated was counted for all of them: the first part tells it."""
    if start == 0 and stop >= len(rows.data):
        return rows
    scales = None if rows.scales is None else rows.scales[start:stop]
    return CompressedRows(rows.data[start:stop], scales, rows.scale_block, rows.saturated if start == 0 else 0)


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
