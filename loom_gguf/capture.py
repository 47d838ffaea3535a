"""What is wanted of a forward pass: layers, the embedding, the final state, nodes by name, or everything."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Capture:
    """What to capture. Made by the constructors below; two of them add up with `|`.

    A name may be a node's name (`l_out-3`: its last occurrence), a key (`Qcur-0#2`: occurrence 2, counted from 0
    in graph order) or a glob (`attn_out-*`: the last occurrence of every name that matches; `Qcur-0#*`: all
    occurrences).
    """

    layer_indices: tuple[int, ...] = ()  # 0-based block indices; negative ones count from the last block
    every_layer: bool = False
    embedding: bool = False  # the input of block 0
    final: bool = False  # the last block's output after the final norm
    patterns: tuple[str, ...] = ()  # names, keys and globs
    every_node: bool = False

    @classmethod
    def layers(cls, layers: Iterable[int], *, embedding: bool = False, final: bool = False) -> Capture:
        """The outputs of these blocks (0-based, -1 is the last), before any final norm."""
        indices = []
        for index in layers:
            if isinstance(index, bool) or not hasattr(index, "__index__"):
                raise TypeError(f"layer indices are integers, not {type(index).__name__}")
            indices.append(operator.index(index))  # numpy's integers are integers too
        return cls(layer_indices=tuple(indices), embedding=embedding, final=final)

    @classmethod
    def all_layers(cls, *, embedding: bool = False, final: bool = False) -> Capture:
        """The output of every block."""
        return cls(every_layer=True, embedding=embedding, final=final)

    @classmethod
    def names(cls, names: Iterable[str]) -> Capture:
        """Nodes by name, key or glob."""
        if isinstance(names, str):
            raise TypeError("names takes a list of names; for one name write names([name])")
        patterns = tuple(names)
        for name in patterns:
            if not isinstance(name, str):
                raise TypeError(f"names of nodes are strings, not {type(name).__name__}")
        return cls(patterns=patterns)

    @classmethod
    def prefix(cls, prefix: str) -> Capture:
        """Every node whose name begins so (its last occurrence)."""
        escaped = "".join(f"[{c}]" if c in "*?[" else c for c in prefix)
        return cls(patterns=(escaped + "*",))

    @classmethod
    def everything(cls) -> Capture:
        """Every node of the graph in all its occurrences, except the KV cache and views of it."""
        return cls(every_node=True)

    def __or__(self, other: Capture) -> Capture:
        """What either of the two wants."""
        if not isinstance(other, Capture):
            return NotImplemented
        return replace(
            self,
            layer_indices=_union(self.layer_indices, other.layer_indices),
            every_layer=self.every_layer or other.every_layer,
            embedding=self.embedding or other.embedding,
            final=self.final or other.final,
            patterns=_union(self.patterns, other.patterns),
            every_node=self.every_node or other.every_node,
        )

    def __bool__(self) -> bool:
        """Whether anything is wanted."""
        return self != Capture()


def _union(a: tuple, b: tuple) -> tuple:  # type: ignore[type-arg]
    return a + tuple(item for item in b if item not in a)
