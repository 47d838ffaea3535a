"""The nodes of a model's graphs: what they are called, which way their rows run, and which ones a capture wants."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from ._native import _core
from .capture import Capture
from .errors import AttentionUnsupportedError, CaptureUnsupportedError, LayerRangeError, UnknownNodeError
from .states import Roles

_AXIS_NAMES = {
    _core.Axis.TOKEN: "n_tokens",
    _core.Axis.OUTPUT: "n_outputs",
    _core.Axis.KV: "n_kv",
    _core.Axis.OTHER: "varies",
}


@dataclass(frozen=True)
class Node:
    """One node of a forward pass."""

    key: str  # `name`, or `name#k` where another node of this name comes later
    name: str
    occurrence: int  # which of the nodes of this name, from 0 in graph order
    op: str  # ggml's operation, e.g. "MUL_MAT"
    shape: tuple[int | str, ...]  # numpy's order; "n_tokens", "n_outputs", "n_kv" where the size depends on them
    dtype: str  # ggml's type, e.g. "f32"
    token_axis: int | None  # the dimension of `shape` with one entry per row; None: the node has no rows
    per_output: bool  # its rows are only those tokens whose logits are computed
    computed: bool  # False: in a branch of the graph that was not taken; it cannot be captured
    memory: bool  # a view of the KV cache or other memory that outlives the pass

    def __repr__(self) -> str:
        """Key, operation, type and shape."""
        return f"<Node {self.key}: {self.op}, {self.dtype} [{', '.join(map(str, self.shape))}]>"

    def _repr_html_(self) -> str:
        from .notebook import node_html

        return node_html(self)

    @property
    def cell_axis(self) -> int | None:
        """The dimension of its rows (rows first) that counts cells of the cache: attention scores and weights."""
        if self.token_axis is None or "n_kv" not in self.shape:
            return None
        at = self.shape.index("n_kv")
        return at + 1 if at < self.token_axis else at


@dataclass(frozen=True)
class Selection:
    """The nodes of one graph that a capture wants."""

    nodes: tuple[Node, ...]  # in graph order, as the plan reads them
    plan: _core.Plan
    roles: Roles
    per_output: bool  # some node has rows only for outputs
    per_cell: bool  # some node's rows run over the cells of the cache


class Topology:
    """The graphs of one shape: same operations, same names, other sizes."""

    def __init__(self, graph: _core.Graph, axes: list[list[_core.Axis]], n_layer: int) -> None:
        """`axes`: per node, ggml's order."""
        self.graph = graph
        self.n_layer = n_layer
        self._axes = axes
        self.hidden = _core.find_hidden_states(graph, n_layer)
        self._selections: dict[Capture, Selection] = {}

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node, in graph order."""
        return tuple(self._node(node, axes) for node, axes in zip(self.graph.nodes, self._axes, strict=True))

    def _node(self, node: _core.Node, axes: list[_core.Axis]) -> Node:
        n_dims = _n_dims(node, axes)
        row_axis = _core.row_axis(axes)
        shape = tuple(_AXIS_NAMES.get(axes[d], node.ne[d]) for d in reversed(range(n_dims)))
        return Node(
            key=node.name if node.last else f"{node.name}#{node.occurrence}",
            name=node.name,
            occurrence=node.occurrence,
            op=node.op,
            shape=shape,
            dtype=node.type,
            token_axis=None if row_axis < 0 else n_dims - 1 - row_axis,
            per_output=row_axis >= 0 and axes[row_axis] is _core.Axis.OUTPUT,
            computed=node.computed,
            memory=node.memory,
        )

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        by_name: dict[str, list[int]] = {}
        for ordinal, node in enumerate(self.nodes):
            by_name.setdefault(node.name, []).append(ordinal)
        return by_name

    def select(self, capture: Capture) -> Selection:
        """The nodes that `capture` wants. Resolved once for this graph shape."""
        selection = self._selections.get(capture)
        if selection is None:
            if len(self._selections) >= 256:  # a caller that makes up ever new captures must not fill the memory
                self._selections.clear()
            selection = self._selections[capture] = self._select(capture)
        return selection

    def _select(self, capture: Capture) -> Selection:
        ordinals: set[int] = set()
        for index in range(self.n_layer) if capture.every_layer else capture.layer_indices:
            ordinals.add(self._layer(index))
        if capture.embedding:
            ordinals.add(self._hidden_state(self.hidden.embedding, "the input of block 0"))
        if capture.final:
            ordinals.add(self._hidden_state(self.hidden.final, "the state after the final norm"))
        for pattern in capture.patterns:
            ordinals.update(self._matching(pattern))
        if capture.every_node:
            ordinals.update(i for i, node in enumerate(self.nodes) if node.computed and not node.memory)

        wanted = sorted(ordinals)
        nodes = tuple(self.nodes[i] for i in wanted)
        key_of = {i: self.nodes[i].key for i in wanted}
        try:
            plan = _core.Plan(self.graph, [self._tap(i) for i in wanted])
        except ValueError as error:
            raise CaptureUnsupportedError(f"{error}; leave it out of the capture") from None
        return Selection(
            nodes=nodes,
            plan=plan,
            roles=Roles(
                n_layer=self.n_layer,
                layers={il: key_of[i] for il, i in enumerate(self.hidden.layers) if i in key_of},
                embedding=key_of.get(self.hidden.embedding),
                final=key_of.get(self.hidden.final),
            ),
            per_output=any(node.per_output for node in nodes),
            per_cell=any(node.cell_axis is not None for node in nodes),
        )

    def _tap(self, ordinal: int) -> _core.Tap:
        axes, node = self._axes[ordinal], self.nodes[ordinal]
        kind = _core.RowKind.WHOLE
        if node.token_axis is not None:
            kind = _core.RowKind.OUTPUT if node.per_output else _core.RowKind.TOKEN
        n_dims = _n_dims(self.graph.nodes[ordinal], axes)
        return _core.Tap(ordinal, kind, _core.row_axis(axes), n_dims)

    def _layer(self, index: int) -> int:
        il = index + self.n_layer if index < 0 else index
        if not 0 <= il < self.n_layer:
            raise LayerRangeError(
                f"there is no layer {index}: this model's layers are 0 to {self.n_layer - 1} "
                f"(or -{self.n_layer} to -1, counted from the last)"
            )
        return self._hidden_state(self.hidden.layers[il], f"the output of layer {il}")

    def _hidden_state(self, ordinal: int, what: str) -> int:
        by_name = "choose nodes from model.nodes() and capture them with Capture.names([...])"
        if ordinal < 0:
            raise CaptureUnsupportedError(
                f"{what} cannot be found in this model's graph: llama.cpp does not name it there. Instead, {by_name}"
            )
        node = self.nodes[ordinal]
        if node.token_axis != 0 or len(node.shape) != 2:
            raise CaptureUnsupportedError(
                f"{what} is not one row per token in this architecture: node {node.key} has shape "
                f"{node.shape}. Instead, {by_name}"
            )
        return ordinal

    def _matching(self, pattern: str) -> Iterable[int]:
        if pattern in self._by_name:
            return [self._by_name[pattern][-1]]
        name, mark, number = pattern.rpartition("#")
        if mark and number.isascii() and number.isdigit() and name in self._by_name:
            same_name = self._by_name[name]
            if int(number) < len(same_name):
                return [same_name[int(number)]]
            raise UnknownNodeError(
                f"there is no node {pattern!r}: {name!r} occurs {len(same_name)} times, as {name}#0 to "
                f"{name}#{len(same_name) - 1}"
            )
        if any(c in pattern for c in "*?["):
            # Views of the cache are captured by their exact names only.
            nodes = [(i, node) for i, node in enumerate(self.nodes) if node.computed and not node.memory]
            if mark:
                found = [i for i, n in nodes if fnmatch.fnmatchcase(f"{n.name}#{n.occurrence}", pattern)]
            else:
                found = [i for i, n in nodes if n.key == n.name and fnmatch.fnmatchcase(n.name, pattern)]
            if found:
                return found
            self._refuse_attention(pattern)
            raise UnknownNodeError(
                f"no node's name matches {pattern!r}; model.nodes() and `loom-gguf nodes MODEL` list all names"
            )
        self._refuse_attention(pattern)
        raise UnknownNodeError(f"there is no node {pattern!r}{self._hint(name if mark else pattern)}")

    def _refuse_attention(self, pattern: str) -> None:
        """Say why there are no attention weights, where they are meant."""
        meant = pattern.startswith(("kq-", "kq_", "*kq_", "*soft_max"))
        if not meant or all(node.op != "FLASH_ATTN_EXT" for node in self.nodes):
            return
        raise AttentionUnsupportedError(
            f"there is no node {pattern!r}: attention weights are computed apart only without flash attention; open "
            f'the model with precision="exact"'
        )

    def _hint(self, name: str) -> str:
        named = [n for n in self._by_name if not n.startswith(("node_", "leaf_"))]  # ggml's own numbers
        near = difflib.get_close_matches(name, named, n=3, cutoff=0.6)
        listing = "model.nodes() and `loom-gguf nodes MODEL` list all names"
        return f"; did you mean {', '.join(near)}? {listing}" if near else f"; {listing}"


def _n_dims(node: _core.Node, axes: list[_core.Axis]) -> int:
    """Dimensions of the node in any batch: sizes of 1 beyond the last varying or larger one do not count."""
    return max((d + 1 for d in range(4) if node.ne[d] != 1 or axes[d] is not _core.Axis.FIXED), default=1)


class Catalog:
    """The topologies of one context: one for batches of several tokens, one for single tokens, more as they show up."""

    def __init__(self, listings: list[tuple[_core.Graph, int, int, int]], n_layer: int) -> None:
        """`listings`: (graph, n_tokens, n_outputs, fill); those of more than one token tell the axes."""
        self._n_layer = n_layer
        several = [listing for listing in listings if listing[1] > 1]
        axes = _core.find_axes(several)
        self.several = Topology(several[0][0], axes, n_layer)
        self._axes = {
            (node.name, node.occurrence): node_axes
            for node, node_axes in zip(self.several.graph.nodes, axes, strict=True)
        }
        self._by_signature = {self.several.graph.signature(): self.several}
        self._by_n_tokens: dict[int, Topology] = {}
        for graph, n_tokens, _, _ in listings:
            self.learn(graph, n_tokens)

    def topology(self, n_tokens: int) -> Topology:
        """The shape to expect of a batch of this many tokens."""
        return self._by_n_tokens.get(n_tokens, self.several)

    def learn(self, graph: _core.Graph, n_tokens: int) -> Topology:
        """Take note that a batch of this many tokens has this graph."""
        signature = graph.signature()
        topology = self._by_signature.get(signature)
        if topology is None:
            axes = [
                self._axes.get((node.name, node.occurrence), [_unknown(size) for size in node.ne])
                for node in graph.nodes
            ]
            topology = self._by_signature[signature] = Topology(graph, axes, self._n_layer)
        if topology is not self.topology(n_tokens):
            self._by_n_tokens[n_tokens] = topology
        return topology


def _unknown(size: int) -> _core.Axis:
    """A node that the listings of several tokens lack is given whole."""
    return _core.Axis.FIXED if size == 1 else _core.Axis.OTHER
