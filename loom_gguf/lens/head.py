"""What a model does between its last layer and its logits, read from its own graph.

The graph says which operations these are, on which weights and with which constants: RMS norm or LayerNorm and its
epsilon, a bias, a logit scale, a cap on the logits. So no list of architectures is needed, and one that does anything
else there is refused by the name of the operation.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import LensUnsupportedError
from ..tensors import Tensor, find_tensor

if TYPE_CHECKING:
    from .._native import _core
    from ..catalog import Topology
    from ..gguf_file import GGUFFile
    from ..states import Array

LOGITS = "result_output"  # llama.cpp's name for the logits, in every graph that has any

_NORMS = ("RMS_NORM", "NORM")
_SAME_ROWS = ("RESHAPE", "CONT", "GET_ROWS")  # GET_ROWS here picks the tokens whose logits are wanted


@dataclass(frozen=True)
class Operation:
    """One operation on rows (R, n), n being n_embd before the output matrix and n_vocab after it."""

    op: str  # ggml's name; functions of one variable by the function's
    node: int  # ordinal in the graph
    numbers: tuple[float, ...] = ()  # epsilon of a norm; factor and offset of a SCALE
    weight: Array | None = None  # float32 (n,) or (1,), of MUL and ADD

    def apply(self, rows: Array, columns: slice = slice(None)) -> Array:
        """The rows after it, float32; `columns`: which of the n values `rows` has."""
        if self.op in _NORMS:
            return _normed(rows, self.numbers[0], centred=self.op == "NORM")
        if self.op == "SCALE":
            factor, offset = (np.float32(number) for number in self.numbers)
            return np.asarray(rows * factor + offset)
        if self.op == "TANH":
            return np.tanh(rows)
        assert self.weight is not None
        weight = self.weight if len(self.weight) == 1 else self.weight[columns]
        return rows * weight if self.op == "MUL" else rows + weight


def _normed(rows: Array, epsilon: float, *, centred: bool) -> Array:
    """(R, n): rows over their root mean square, or over their standard deviation; summed in float64 as in ggml."""
    wide = rows.astype(np.float64)
    if centred:
        wide -= wide.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + epsilon)
    return np.asarray(wide * scale, np.float32)


@dataclass(frozen=True)
class Head:
    """The way from the last layer's output to the logits."""

    before: tuple[Operation, ...]  # the final norm and what belongs to it
    matrix: Tensor  # (n_vocab, n_embd)
    after: tuple[Operation, ...]  # on logits: each on one value alone
    final_at: int | None  # how many of `before` have been done at the state called "final"; None: it is not on the way

    @property
    def n_vocab(self) -> int:
        """Number of logits."""
        return self.matrix.shape[0]

    @property
    def n_embd(self) -> int:
        """Width of the rows that it reads."""
        return self.matrix.shape[1]

    def normed(self, rows: Array, done: int = 0) -> Array:
        """What the output matrix reads, float32 (R, n_embd), of rows for which `done` operations have been done."""
        return self.apply_before(rows, done, len(self.before))

    def apply_before(self, rows: Array, first: int, end: int) -> Array:
        """Operations `first` to `end` - 1 of those before the matrix; NaN and Inf give NaN, without a warning."""
        with np.errstate(invalid="ignore", over="ignore"):
            for operation in self.before[first:end]:
                rows = operation.apply(rows)
            return np.asarray(rows, np.float32)

    def logits(self, normed: Array, first: int, end: int) -> Array:
        """Logits of tokens `first` to `end` - 1, float32 (R, end - first), of rows (R, n_embd) from `normed`."""
        return self._after(normed @ self.matrix.rows(first, end).T, slice(first, end))

    def logits_at(self, normed: Array, tokens: Array) -> Array:
        """One token's logit for each position: float32 (S, T) of rows (S, T, n_embd) and token ids (T,)."""
        values = np.einsum("ste,te->st", normed, self.matrix.rows_at(tokens))
        for operation in self.after:
            if operation.weight is not None and len(operation.weight) > 1:
                values = Operation(operation.op, operation.node, (), operation.weight[tokens]).apply(values)
            else:
                values = operation.apply(values)
        return np.asarray(values)

    def _after(self, logits: Array, columns: slice) -> Array:
        for operation in self.after:
            logits = operation.apply(logits, columns)
        return np.asarray(logits, np.float32)


def find_head(topology: Topology, file: GGUFFile) -> Head:
    """The head of a model, from its graph. Raises LensUnsupportedError where some part of it is not understood."""
    return _Walk(topology, file).head()


class _Walk:
    """From the logits back to the last layer."""

    def __init__(self, topology: Topology, file: GGUFFile) -> None:
        self._topology, self._file = topology, file
        self._nodes = topology.graph.nodes

    def head(self) -> Head:
        topology = self._topology
        at = max((i for i, node in enumerate(self._nodes) if node.name == LOGITS), default=-1)
        if at < 0:
            raise self._refused(
                "its graph has no logits: such a model (an encoder) reads texts and has no output matrix"
            )
        last = topology.hidden.layers[-1]
        if last < 0:
            raise self._refused("its graph does not name the output of its last layer")
        if topology.nodes[last].token_axis != 0 or len(topology.nodes[last].shape) != 2:
            raise self._refused(f"its layers are not one row per token (shape {topology.nodes[last].shape})")

        way: list[int] = []
        before: list[Operation] = []
        after: list[Operation] = []
        matrix: Tensor | None = None
        while at != last:
            if at < last:
                raise self._refused("its logits are not made of its last layer's output alone")
            node = self._nodes[at]
            way.append(at)
            read, weight = self._operands(node)
            if node.op == "MUL_MAT":
                if matrix is not None:
                    raise self._refused(f"two matrices stand behind its last layer ({matrix.info.name} and {weight})")
                matrix = self._matrix(node, weight)
            else:
                operation = self._operation(at, node, read, weight)
                if operation is not None:
                    (after if matrix is None else before).insert(0, operation)
            at = read
        if matrix is None:
            raise self._refused("there is no output matrix behind its last layer")
        if any(operation.op in _NORMS for operation in after):
            raise self._refused("it normalises its logits, which cannot be done block by block")
        final = topology.hidden.final
        on_the_way = final == last or (final in way and final < self._matrix_node(way))
        done = sum(operation.node <= final for operation in before)
        return Head(tuple(before), matrix, tuple(after), done if on_the_way else None)

    def _matrix_node(self, way: list[int]) -> int:
        return next(at for at in way if self._nodes[at].op == "MUL_MAT")

    def _operands(self, node: _core.Node) -> tuple[int, str]:
        """The one operand that is a node, and the name of the other one, a weight; "" where there is none."""
        nodes = [source for source in node.sources if source >= 0]
        leaves = [name for source, name in zip(node.sources, node.leaf_names, strict=True) if source < 0]
        if len(nodes) != 1 or len(leaves) > 1:
            raise self._refused(f"{self._called(node)} reads {len(nodes)} states and {len(leaves)} weights")
        return nodes[0], leaves[0] if leaves else ""

    def _matrix(self, node: _core.Node, weight: str) -> Tensor:
        matrix = self._weight(node, weight)
        if len(matrix.shape) != 2 or matrix.shape[0] != node.ne[0]:
            raise self._refused(f"{weight} of shape {matrix.shape} is no output matrix for {node.ne[0]} logits")
        return matrix

    def _operation(self, at: int, node: _core.Node, read: int, weight: str) -> Operation | None:
        op = node.function or node.op
        if op in _SAME_ROWS:
            before, after = self._nodes[read], node
            if before.ne[0] != after.ne[0] or len(self._topology.nodes[at].shape) != 2:
                raise self._refused(f"{self._called(node)} changes the shape of the rows")
            return None
        if op in _NORMS:
            return Operation(op, at, struct.unpack_from("=f", node.params))
        if op == "SCALE":
            return Operation(op, at, struct.unpack_from("=2f", node.params))
        if op == "TANH":
            return Operation(op, at)
        if op in ("MUL", "ADD") and weight:
            tensor = self._weight(node, weight)
            values = tensor.all().reshape(-1)
            if len(values) not in (1, node.ne[0]):
                raise self._refused(f"{weight} of shape {tensor.shape} is no vector for {self._called(node)}")
            return Operation(op, at, (), values)
        raise self._refused(f"{self._called(node)} stands behind its last layer")

    def _weight(self, node: _core.Node, name: str) -> Tensor:
        tensor = find_tensor(self._file, name)
        if tensor is None:
            raise self._refused(f"{self._called(node)} reads {name or 'a state'!r}, which is no weight of the file")
        return tensor

    def _called(self, node: _core.Node) -> str:
        return f"the operation {node.function or node.op} ({node.name})"

    def _refused(self, why: str) -> LensUnsupportedError:
        return LensUnsupportedError(
            f"no logit lens for {self._file.path.name} ({self._file.arch}): {why}. Its layers can still be captured: "
            f"Capture.all_layers()"
        )
