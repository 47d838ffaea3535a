"""Captured rows: numbers with the node, position and token that each row belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .compression import CompressedRows, CompressedStates, Kind, check_kind, compress_rows
from .errors import CaptureUnsupportedError, NotCapturedError, StatesError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from .picture import Picture
    from .plots import Measure
    from .tables import Texts

Array = npt.NDArray[Any]


class NodeValues(NamedTuple):  # made for every node of every step: a frozen dataclass costs five times as much
    """What was captured of one node."""

    array: Array  # rows first; for a node without rows the tensor as it is
    row_axis: int | None  # where the rows stand in the graph's own tensor (numpy's order); None: it has no rows
    occurrence: int = 0  # which of the nodes of its name
    cell_axis: int | None = None  # the dimension of `array` that counts the sequence's positions (attention weights)


@dataclass(frozen=True)
class Roles:
    """Which of the captured nodes are hidden states, in the model's order."""

    n_layer: int
    layers: Mapping[int, str]  # block index -> key
    embedding: str | None
    final: str | None


class States(Mapping[str, Array]):
    """Rows of one sequence, by node key.

    `states["l_out-5"]` has shape (n_rows, n_embd), float32: row r was computed where the model read token
    `states.tokens[r]` at position `states.positions[r]`. The states of a generation step are one row, without the
    first axis: (n_embd,).

    A node that has no rows (`model.nodes()` tells) is given whole by `states.tensor(key)`.
    """

    def __init__(
        self,
        values: Mapping[str, NodeValues],
        roles: Roles,
        tokens: Sequence[int],
        positions: Sequence[int],
        *,
        sequence: int = 0,
        single: bool = False,
    ) -> None:
        """`single`: one row, to be shown without its axis."""
        self._values = dict(values)
        self._roles = roles
        self.tokens = [int(t) for t in tokens]
        self.positions = [int(p) for p in positions]
        self.sequence = sequence
        self._single = single
        for key, value in self._values.items():
            if value.row_axis is not None and len(value.array) != len(self.tokens):
                raise StatesError(f"{key} has {len(value.array)} rows for {len(self.tokens)} tokens")

    # -- as a mapping -------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Array:
        """The rows of a node, by name or key."""
        value = self._value(key)
        if value.row_axis is None:
            raise NotCapturedError(f"{key} has no rows (no axis counts tokens): use states.tensor({key!r})")
        return value.array[0] if self._single else value.array

    def __iter__(self) -> Iterator[str]:
        """Keys of the nodes that have rows, in graph order."""
        return (key for key, value in self._values.items() if value.row_axis is not None)

    def __len__(self) -> int:
        """Number of nodes that have rows."""
        return sum(value.row_axis is not None for value in self._values.values())

    def __contains__(self, key: object) -> bool:
        """Whether this node was captured, with rows or whole."""
        return isinstance(key, str) and self._find(key) is not None

    def __eq__(self, other: object) -> bool:
        """Whether the same rows of the same tokens were captured, number for number (NaN equals NaN)."""
        if not isinstance(other, States):
            return NotImplemented
        return (
            (self._roles, self.tokens, self.positions) == (other._roles, other.tokens, other.positions)
            and self._values.keys() == other._values.keys()
            and all(_same(value.array, other._values[key].array) for key, value in self._values.items())
        )

    __hash__ = None  # type: ignore[assignment]  # arrays can be changed

    def __repr__(self) -> str:
        """Nodes, rows and size."""
        n_bytes = self.nbytes
        return f"<States: {len(self._values)} nodes, {len(self.tokens)} rows, {n_bytes / 1e6:.1f} MB>"

    def _repr_html_(self) -> str:
        from .notebook import states_html

        return states_html(self)

    # -- hidden states ------------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[int]:
        """Indices of the captured layers."""
        return sorted(self._roles.layers)

    @property
    def n_layer(self) -> int:
        """Number of blocks of the model, captured or not."""
        return self._roles.n_layer

    def layer(self, index: int) -> Array:
        """The output of a block, before any final norm; negative indices count from the model's last block."""
        il = index + self._roles.n_layer if index < 0 else index
        key = self._roles.layers.get(il)
        if key is None:
            raise NotCapturedError(f"layer {index} was not captured; captured layers: {self.layers or 'none'}")
        return self[key]

    @property
    def embedding(self) -> Array:
        """The input of block 0 (Hugging Face's hidden_states[0])."""
        if self._roles.embedding is None:
            raise NotCapturedError("the embedding was not captured: use Capture.layers([...], embedding=True)")
        return self[self._roles.embedding]

    @property
    def final(self) -> Array:
        """The last block's output after the final norm (Hugging Face's hidden_states[-1])."""
        if self._roles.final is None:
            raise NotCapturedError("the final state was not captured: use Capture.layers([...], final=True)")
        return self[self._roles.final]

    @property
    def hidden_states(self) -> tuple[Array, ...]:
        """n_layer + 1 arrays as Hugging Face orders them: the embedding, the outputs of blocks 0 to n_layer-2, final.

        The last block's own output, before the final norm, is not among them: `layer(-1)` has it.
        """
        blocks = range(self._roles.n_layer - 1)
        return (self.embedding, *(self.layer(il) for il in blocks), self.final)

    def tensor(self, key: str) -> Array:
        """A node whole, in the graph's own shape (numpy's order), whether it has rows or not."""
        value = self._value(key)
        return value.array if value.row_axis is None else np.moveaxis(value.array, 0, value.row_axis)

    @property
    def tensors(self) -> list[str]:
        """Keys of the captured nodes that have no rows."""
        return [key for key, value in self._values.items() if value.row_axis is None]

    # -- looking at them ----------------------------------------------------------------------------------------

    def plot(
        self,
        texts: Texts | None = None,
        *,
        title: str | None = None,
        measure: Measure = "turn",
        n_prompt: int | None = None,
    ) -> Picture:
        """Layers x tokens as a picture, which a notebook shows and `.save(path)` writes.

        texts: the model, which knows each token's text, or one text per row; None writes token ids. The other
        arguments are those of `plots.heat_map`.
        """
        from .plots import draw_heat_map
        from .tables import texts_of

        return draw_heat_map(self, texts_of(self, texts), title=title, measure=measure, n_prompt=n_prompt)

    def to_dataframe(self, texts: Texts | None = None, *, nodes: Iterable[str] | None = None) -> pd.DataFrame:
        """One line per hidden state and token, one float32 column per feature (0 to n_embd - 1). Needs pandas.

        The index has the levels state ("embedding", "0", "1", ..., "final"), node, position, token_id and, where
        `texts` gives them (a model, or one text per row), token. `frame.xs("5", level="state")` is layer 5,
        `frame.reset_index()` makes the levels columns, and `frame.stack()` puts one number on each line.

        nodes: other nodes to put into the table, of one width; their names stand in the level state too.
        """
        from .tables import to_dataframe

        return to_dataframe(self, texts, nodes)

    def to_xarray(self, texts: Texts | None = None, *, nodes: Iterable[str] | None = None) -> xr.DataArray:
        """The hidden states as one array with named axes: state, position and feature, float32. Needs xarray.

        Along state lie the labels "embedding", "0", "1", ..., "final" and the coordinate node; along position the
        coordinates token_id and, as in `to_dataframe`, token. nodes: as in `to_dataframe`.
        """
        from .tables import to_xarray

        return to_xarray(self, texts, nodes)

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None) -> None:
        """Write these states to a .safetensors or .npz file; `metadata` is anything that JSON holds."""
        from .states_file import save_states

        save_states(self, path, metadata=metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> States:
        """The states that `save` wrote to this file."""
        from .states_file import load_states

        return load_states(path)

    def compress(self, kind: Kind, scale_block: int = 0) -> CompressedStates:
        """These states in fewer bytes: "float16", or "int8" with one scale per row or per `scale_block` values.

        Rows of floats are compressed; integers and nodes without rows stay as they are.
        """
        check_kind(kind, scale_block)
        rows = {
            key: compress_rows(value.array, kind, scale_block)
            if value.row_axis is not None and value.array.dtype == np.float32
            else CompressedRows(value.array)
            for key, value in self._values.items()
        }
        return CompressedStates(rows, kind, self.with_numbers({key: each.data for key, each in rows.items()}))

    # -- parts --------------------------------------------------------------------------------------------------

    @property
    def values_by_key(self) -> Mapping[str, NodeValues]:
        """Every captured node, with or without rows, as it is stored."""
        return self._values

    @property
    def roles(self) -> Roles:
        """Which nodes are hidden states."""
        return self._roles

    @property
    def nbytes(self) -> int:
        """Size of all numbers, in bytes."""
        return sum(value.array.nbytes for value in self._values.values())

    def without_numbers(self) -> States:
        """The same nodes, tokens and positions, with no memory behind the arrays."""
        return self.with_numbers(
            {key: np.broadcast_to(np.float32(0), v.array.shape) for key, v in self._values.items()}
        )

    def with_numbers(self, arrays: Mapping[str, Array]) -> States:
        """The same nodes, tokens and positions, with other numbers."""
        values = {key: value._replace(array=arrays[key]) for key, value in self._values.items()}
        return States(values, self._roles, self.tokens, self.positions, sequence=self.sequence, single=self._single)

    @classmethod
    def concatenate(cls, parts: Sequence[States]) -> States:
        """The rows of several states after one another: the pieces of a prompt, or the steps of a generation.

        Nodes without rows cannot be put together, and must not be in more than one part.
        """
        if not parts:
            raise StatesError("nothing to concatenate: no states given")
        first = parts[0]
        if len(parts) == 1:
            return cls(first._values, first._roles, first.tokens, first.positions, sequence=first.sequence)
        values = {}
        for part in parts[1:]:
            if part._values.keys() != first._values.keys():
                odd = sorted(part._values.keys() ^ first._values.keys())
                raise CaptureUnsupportedError(
                    f"parts of different lengths have different nodes ({', '.join(odd[:3])}, ...): their graphs "
                    f"differ. Name the nodes that you want instead of capturing everything"
                )
        for key, value in first._values.items():
            if value.row_axis is None:
                raise CaptureUnsupportedError(
                    f"node {key} has no rows, so its values from {len(parts)} decodes cannot be one array. Leave "
                    f"it out, or open the model with an n_ubatch that holds the whole prompt"
                )
            arrays = [part._values[key].array for part in parts]
            if value.cell_axis is not None:
                arrays = _same_length(arrays, value.cell_axis)
            values[key] = value._replace(array=np.concatenate(arrays))
        return cls(
            values,
            first._roles,
            [t for part in parts for t in part.tokens],
            [p for part in parts for p in part.positions],
            sequence=first.sequence,
        )

    def _find(self, key: str) -> NodeValues | None:
        value = self._values.get(key)
        if value is None:
            # The last occurrence is stored under its bare name, but may be asked for by number.
            name, mark, number = key.rpartition("#")
            last = self._values.get(name) if mark else None
            if last is not None and number == str(last.occurrence):
                value = last
        return value

    def _value(self, key: str) -> NodeValues:
        value = self._find(key)
        if value is None:
            have = list(self._values)
            shown = ", ".join(have[:6]) + (", ..." if len(have) > 6 else "")
            raise NotCapturedError(f"{key!r} was not captured; captured: {shown or 'nothing'}")
        return value


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _same_length(arrays: list[Array], axis: int) -> list[Array]:
    """Rows over a growing number of positions, filled up: what did not exist yet got no attention."""
    longest = max(array.shape[axis] for array in arrays)
    widths = [[(0, longest - a.shape[axis] if d == axis else 0) for d in range(a.ndim)] for a in arrays]
    return [np.pad(array, width) for array, width in zip(arrays, widths, strict=True)]
