"""Made by scripts/make_stubs.py from the extension: change csrc/bindings and run `make stubs`."""

import builtins
import collections.abc
import enum
import typing

import numpy.typing

GGML_VERSION_BUILT_WITH: str
LLAMA_CPP_PYTHON_VERSION: str

class Axis(enum.Enum):
    FIXED = 0
    TOKEN = 1
    OUTPUT = 2
    KV = 3
    OTHER = 4

class Compression(enum.Enum):
    NONE = 0
    FLOAT16 = 1
    INT8 = 2

class Graph:
    def signature(self) -> int: ...
    @property
    def nodes(self) -> builtins.list[Node]: ...

class HiddenStates:
    @property
    def embedding(self) -> int: ...
    @property
    def final(self) -> int: ...
    @property
    def layers(self) -> builtins.list[int]: ...

class InPlace(enum.Enum):
    NEVER = 0
    HOST = 1
    ALWAYS = 2

class Node:
    @property
    def computed(self) -> bool: ...
    @property
    def last(self) -> bool: ...
    @property
    def memory(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def ne(self) -> builtins.list[int]: ...
    @property
    def occurrence(self) -> int: ...
    @property
    def op(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def view(self) -> bool: ...

class Plan:
    def __init__(self, graph: Graph, taps: collections.abc.Sequence[Tap]) -> None: ...

class RowKind(enum.Enum):
    TOKEN = 0
    OUTPUT = 1
    WHOLE = 2

class Status(enum.Enum):
    OK = 0
    GRAPH_CHANGED = 1
    WRONG_ROWS = 2
    SEVERAL_PASSES = 3
    OUT_OF_MEMORY = 4

class Tap:
    def __init__(self, ordinal: int, kind: RowKind, axis: int, n_dims: int) -> None: ...

class Tapper:
    def __init__(self, in_place: InPlace) -> None: ...
    def finish(
        self,
    ) -> tuple[
        Status,
        str,
        builtins.list[tuple[numpy.typing.NDArray[typing.Any], numpy.typing.NDArray[numpy.float32] | None, int]],
    ]: ...
    def list(self) -> None: ...
    def listed(self) -> Graph: ...
    def off(self) -> None: ...
    def skip(self) -> None: ...
    def tap(
        self,
        plan: Plan,
        n_tokens: int,
        n_outputs: int,
        token_rows: collections.abc.Sequence[int],
        output_rows: collections.abc.Sequence[int],
        stop_early: bool,
        compression: Compression,
        scale_block: int,
    ) -> None: ...
    @property
    def arena_size(self) -> int: ...
    @property
    def user_data(self) -> int: ...

def compress_float16(rows: numpy.typing.ArrayLike) -> tuple[numpy.typing.NDArray[numpy.float16], int]: ...
def compress_int8(
    rows: numpy.typing.ArrayLike, block: int = ...
) -> tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32]]: ...
def decompress_int8(
    numbers: numpy.typing.ArrayLike, scales: numpy.typing.ArrayLike, block: int = ...
) -> numpy.typing.NDArray[numpy.float32]: ...
def eval_callback() -> int: ...
def find_axes(listings: collections.abc.Sequence[tuple[Graph, int, int, int]]) -> list[list[Axis]]: ...
def find_hidden_states(graph: Graph, n_layer: int) -> HiddenStates: ...
def ggml_version() -> str: ...
def read_gguf(path: str) -> tuple[int, dict[str, typing.Any], list[tuple[str, list[int], str, int, int]]]: ...
def row_axis(axes: collections.abc.Sequence[Axis]) -> int: ...
