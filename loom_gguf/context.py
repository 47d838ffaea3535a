"""A llama_context: sequences, batches, and the rows that come out of a decode."""

from __future__ import annotations

import ctypes
import threading
import weakref
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np

from ._native import _core, complaints, forget_complaints, lib
from .batch import Array, Batch, BatchBuffers, Rows
from .capture import Capture
from .catalog import Catalog, Selection
from .compression import CompressedRows, Kind, compress_rows
from .errors import (
    AttentionUnsupportedError,
    ContextError,
    ContextFullError,
    DecodeError,
    LoomError,
    ModelClosedError,
    RowMismatchError,
)
from .memory import capture_bytes, out_of_memory
from .weights import Weights

Precision = Literal["fast", "exact"]
InPlace = Literal["host", "never", "always"]

# The batches that tell the axes apart: (n_tokens, n_outputs). No size is a multiple of another pair's.
_LISTED = ((3, 1), (4, 2))
MIN_UBATCH = 4
_MAX_INT32 = 2**31 - 1
_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
_MAX_THREADS = 512  # GGML_MAX_N_THREADS: beyond, ggml ends the process
_KV_PAD = 256  # llama.cpp rounds the number of cells that a graph reads up to this


@dataclass(frozen=True)
class ContextParams:
    """What a context is made with; a change needs a new one."""

    n_ctx: int = 4096  # tokens of a sequence at most
    n_cells: int | None = None  # tokens that fit, over all sequences; None: n_ctx
    n_ubatch: int = 512  # tokens of one decode at most; longer prompts are cut into decodes of this length
    n_seq_max: int = 8  # sequences that may be open at once
    n_threads: int | None = None
    precision: Precision = "fast"
    # Where wanted nodes may stay until a decode is over: in the host's memory, nowhere (the graph is cut and each one
    # copied), or in any device's memory.
    in_place: InPlace = "host"


class Context:
    """Runs batches on loaded weights. One thread at a time: take `lock` around decode and sampling."""

    def __init__(self, weights: Weights, params: ContextParams) -> None:
        """Make the context, and list the graphs that it computes."""
        _check(params)
        self._weights = weights
        self.lock = threading.RLock()
        self.tapper = _core.Tapper(_core.InPlace[params.in_place.upper()])
        self.n_ctx = min(params.n_ctx, weights.n_ctx_train) if weights.n_ctx_train > 0 else params.n_ctx
        n_seq_max = 1 if weights.recurrent else params.n_seq_max
        self._free_sequences = list(range(n_seq_max))[::-1]
        self._open_sequences: set[int] = set()
        self._alone: set[int] = set()  # the sequence that never shared the cache with another one
        n_cells = max(self.n_ctx, params.n_cells or 0)
        self._ctx: Any = _make_context(weights, params, n_cells, params.n_ubatch, n_seq_max, self.tapper)
        self._memory = lib.llama_get_memory(self._ctx)
        # An encoder, whose tokens all see each other: its whole text must be one ubatch. Most have no cache either.
        self.encoder = self._memory is None or not weights.causal
        if self.encoder and params.n_ubatch < self.n_ctx:
            lib.llama_free(self._ctx)
            self._ctx = _make_context(weights, params, n_cells, self.n_ctx, n_seq_max, self.tapper)
        self.one_at_a_time = weights.recurrent
        # The tapper is the callback's user data: the context is freed before it, also at the interpreter's exit.
        self._finalizer = weakref.finalize(self, _free_context, self._ctx, self.tapper)
        self.n_cells = int(lib.llama_n_ctx(self._ctx))
        self.n_ubatch = int(lib.llama_n_ubatch(self._ctx))
        self._buffers = BatchBuffers(self.n_ubatch)
        try:
            self.catalog = Catalog(self._list_graphs(), weights.n_layer)
        except BaseException:
            self.close()
            raise

    # -- sequences ----------------------------------------------------------------------------------------------

    def open_sequence(self) -> int:
        """A sequence id of one's own; give it back with close_sequence."""
        with self.lock:
            self.need_open()
            if not self._free_sequences:
                raise ContextFullError(
                    "no free sequence: too many generations are running on this model. Finish or close() one of "
                    "the generators first"
                )
            sequence = self._free_sequences.pop()
            self._open_sequences.add(sequence)
            self._alone = {sequence} if len(self._open_sequences) == 1 else set()
            return sequence

    def close_sequence(self, sequence: int) -> None:
        """Forget the sequence and its cells."""
        with self.lock:
            if self._finalizer.alive:
                lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            self._open_sequences.discard(sequence)
            self._alone.discard(sequence)
            self._free_sequences.append(sequence)

    def forget_from(self, sequence: int, position: int) -> bool:
        """Forget a sequence's tokens from this position on; False where its state cannot be cut there."""
        with self.lock:
            self.need_open()
            return bool(lib.llama_memory_seq_rm(self._memory, sequence, position, -1))

    def park(self, sequence: int, limit: int) -> Array | None:
        """Take a sequence's tokens out of the cache, into an array for unpark(); the sequence is then empty.

        None, and nothing is done, where that needs more than `limit` bytes. Cells cost time in every decode of any
        sequence: llama.cpp looks at all of them up to the last one in use.
        """
        with self.lock:
            self.need_open()
            size = int(lib.llama_state_seq_get_size(self._ctx, sequence))
            if size > limit:
                return None
            parked = np.empty(size, np.uint8)
            if lib.llama_state_seq_get_data(self._ctx, _bytes_of(parked), size, sequence) != size:
                return None
            self.forget_from(sequence, 0)
            return parked

    def unpark(self, sequence: int, parked: Array) -> bool:
        """Put the tokens back into an empty sequence; False where they cannot be, and it stays empty."""
        with self.lock:
            self.need_open()
            n = lib.llama_state_seq_set_data(self._ctx, _bytes_of(parked), parked.nbytes, sequence)
            return int(n) == parked.nbytes

    # -- captures -----------------------------------------------------------------------------------------------

    def selection(self, capture: Capture, n_tokens: int) -> Selection:
        """What a capture means in batches of this many tokens."""
        return self.catalog.topology(n_tokens).select(capture)

    def check_capture(self, capture: Capture) -> bool:
        """Raise CaptureError where it cannot be had in a context of several sequences.

        Returns whether it must have batches for itself: nodes without rows mix all sequences of a batch.
        """
        found = [self.selection(capture, n_tokens) for n_tokens in (1, 2)]
        if found[0].per_cell and self._memory is not None and len(self._free_sequences) + len(self._open_sequences) > 1:
            raise AttentionUnsupportedError(
                "attention weights can be told apart only in a context of one sequence: open the model with one"
            )
        return any(node.token_axis is None for selection in found for node in selection.nodes)

    # -- decoding -----------------------------------------------------------------------------------------------

    def decode(self, batch: Batch) -> None:
        """Compute a batch."""
        with self.lock:
            self.need_open()
            self.tapper.off()
            self._run(batch)

    def decode_capturing(
        self,
        batch: Batch,
        capture: Capture,
        keep: Array,
        *,
        stop_early: bool = False,
        compression: Kind | None = None,
        scale_block: int = 0,
    ) -> Rows:
        """Compute a batch and return what `capture` wants, for the batch's tokens number `keep`.

        Where a wanted node has rows only for outputs, the kept tokens are made outputs. `stop_early` computes
        nothing after the last wanted node: the logits are then garbage and upper layers' cells unwritten, so nothing
        may be generated from the sequence afterwards. With `compression`, rows of floats are compressed straight from
        the graph's memory; int8 has one scale per `scale_block` values (0: per row).
        """
        keep = np.asarray(keep, np.int32)
        with self.lock:
            self.need_open()
            n_tokens = len(batch.tokens)
            for first_try in (True, False):
                selection = self.catalog.topology(n_tokens).select(capture)
                if selection.per_cell:
                    self._need_cells_in_order(batch)
                if self.encoder:
                    batch.outputs[:] = True
                elif selection.per_output:
                    batch.outputs[keep] = True
                # Padding goes before anything is compressed: it would set the scales.
                cut = selection.per_cell and self._memory is not None
                kind = None if cut else compression
                status, detail, arrays = self._tapped(batch, selection, keep, stop_early, kind, scale_block)
                if status is not _core.Status.GRAPH_CHANGED or not first_try:
                    break
                # This many tokens have a graph of their own: take the batch back, learn the graph, compute again.
                self._take_back(batch, detail)
                self.catalog.learn(self._listed(batch), n_tokens)
                self._take_back(batch, detail)
            if status is not _core.Status.OK:
                raise _error_of(status, detail, capture_bytes(selection, len(keep)))
            rows = Rows(selection, tuple(CompressedRows(*array) for array in arrays), keep, batch, kind)
            return _cut_cells(rows, compression, scale_block) if cut else rows

    def _tapped(
        self,
        batch: Batch,
        selection: Selection,
        keep: Array,
        stop_early: bool,
        compression: Kind | None,
        scale_block: int,
    ) -> tuple[_core.Status, str, list[tuple[Array, Array | None, int, int]]]:
        # Plain lists: for the few tokens of most decodes, numpy's calls would cost more than all the rest here.
        outputs, kept = batch.outputs.tolist(), keep.tolist()
        # Among the outputs, a token's row is the number of outputs before it.
        before = list(accumulate(outputs, initial=0))
        output_rows = [before[i] for i in kept] if all(outputs[i] for i in kept) else []
        kind = _core.Compression.NONE if compression is None else _core.Compression[compression.upper()]
        n_outputs = int(before[-1])
        self.tapper.tap(selection.plan, len(outputs), n_outputs, kept, output_rows, stop_early, kind, scale_block)
        try:
            self._run(batch)
        except BaseException:
            self.tapper.off()
            raise
        status, detail, arrays = self.tapper.finish()
        return status, detail, [(array, scales, scale_block, saturated) for array, scales, saturated in arrays]

    def _need_cells_in_order(self, batch: Batch) -> None:
        """Cells are positions only while a sequence has the cache for itself: llama.cpp fills gaps that others left."""
        if self._memory is not None and any(int(s) not in self._alone for s in np.unique(batch.sequences)):
            raise AttentionUnsupportedError(
                "attention weights can be told apart only while a sequence has the context for itself: finish or "
                "close() other generations on this model before starting this one"
            )

    def _run(self, batch: Batch) -> None:
        forget_complaints()
        status = lib.llama_decode(self._ctx, self._buffers.fill(batch))
        if status == 1:
            raise ContextFullError(
                f"no room for {len(batch.tokens)} more tokens: the context has {self.n_cells} cells for all "
                f"sequences together. Close a running generation, or open the model with a larger n_ctx"
            )
        if status != 0:
            raise DecodeError(f"llama.cpp could not compute a batch ({status}): {complaints() or 'no reason given'}")

    def _take_back(self, batch: Batch, detail: str) -> None:
        for sequence in np.unique(batch.sequences):
            start = int(batch.positions[batch.sequences == sequence].min())
            if not lib.llama_memory_seq_rm(self._memory, int(sequence), start, -1):
                raise RowMismatchError(
                    f"the graph of {len(batch.tokens)} tokens differs from those listed ({detail}), and this "
                    f"model's state cannot be taken back to compute it again. Set n_ubatch so that prompts are cut "
                    f"differently"
                )

    # -- listing ------------------------------------------------------------------------------------------------

    def _listed(self, batch: Batch) -> _core.Graph:
        self.tapper.list()
        try:
            self._run(batch)
        except BaseException:
            self.tapper.off()
            raise
        return self.tapper.listed()

    def _list_graphs(self) -> list[tuple[_core.Graph, int, int, int]]:
        """Graphs of batches that differ in tokens, outputs and cells in use, as (graph, n_tokens, n_outputs, fill).

        Token 0, over and over: only the graphs count. It also warms the weights up.
        """
        listings = []
        for n_tokens, n_outputs in _LISTED:
            listings.append((self._listed(_dummy(n_tokens, n_outputs)), n_tokens, n_outputs, 0))
            lib.llama_memory_clear(self._memory, False)
        if self._memory is not None:
            # Cells count as used once a batch has taken them, whether it was computed or not.
            start = 0
            while start < _KV_PAD:
                n = min(self.n_ubatch, _KV_PAD - start)
                self.tapper.skip()
                self._run(_dummy(n, 0, start))
                start += n
            n_tokens, n_outputs = _LISTED[0]
            listings.append((self._listed(_dummy(n_tokens, n_outputs, start)), n_tokens, n_outputs, 1))
            lib.llama_memory_clear(self._memory, False)
        listings.append((self._listed(_dummy(1, 1)), 1, 1, 0))
        # With the data: cells written from what was not computed must not hold NaN.
        lib.llama_memory_clear(self._memory, True)
        return listings

    # -- the end ------------------------------------------------------------------------------------------------

    @property
    def handle(self) -> Any:
        """The llama_context, for the sampler."""
        self.need_open()
        return self._ctx

    def need_open(self) -> None:
        """Raise ModelClosedError after close()."""
        if not self._finalizer.alive:
            raise ModelClosedError("this model was closed; open it again with Model(...)")

    def close(self) -> None:
        """Free the context. A second call does nothing."""
        with self.lock:
            self._finalizer()


def _bytes_of(array: Array) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _cut_cells(rows: Rows, compression: Kind | None, scale_block: int) -> Rows:
    """Attention rows over the positions that exist, 0 to that of the last kept row; then compressed."""
    n_past = int(rows.batch.positions[rows.kept].max(initial=-1)) + 1
    arrays = []
    for node, array in zip(rows.selection.nodes, rows.arrays, strict=True):
        data = array.data
        if node.cell_axis is not None:
            index = [slice(None)] * data.ndim
            index[node.cell_axis] = slice(n_past)
            data = data[tuple(index)].copy()  # a view would keep all the padding in memory
        if compression is not None and node.token_axis is not None and data.dtype == np.float32:
            arrays.append(compress_rows(data, compression, scale_block))
        else:
            arrays.append(CompressedRows(data))
    return Rows(rows.selection, tuple(arrays), rows.kept, rows.batch, compression)


def _error_of(status: _core.Status, detail: str, size: int) -> LoomError:
    if status is _core.Status.OUT_OF_MEMORY:
        return out_of_memory(f"the rows of {detail}", size)
    return RowMismatchError(f"the capture was given up: {detail}. Please report this with the model's name")


def _check(params: ContextParams) -> None:
    for name, low, high in (
        ("n_ctx", 1, _MAX_INT32),
        ("n_ubatch", MIN_UBATCH, _MAX_INT32),
        ("n_seq_max", 1, _MAX_SEQUENCES),
        ("n_threads", 1, _MAX_THREADS),
    ):
        value = getattr(params, name)
        if value is None and name == "n_threads":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ContextError(f"{name} must be an integer from {low} to {high}, not {value!r}")
    if params.precision not in get_args(Precision):
        raise ContextError(f'precision is "fast" or "exact", not {params.precision!r}')
    if params.in_place not in get_args(InPlace):
        raise ContextError(f"in_place is one of {', '.join(get_args(InPlace))}, not {params.in_place!r}")


def _make_context(
    weights: Weights, params: ContextParams, n_ctx: int, n_ubatch: int, n_seq_max: int, tapper: _core.Tapper
) -> Any:
    c = lib.llama_context_default_params()
    # Room for two sizes of the cache's view, so that the listing can tell which dimensions are cells.
    c.n_ctx = max(n_ctx, 2 * _KV_PAD)
    # One decode is one ubatch, so that one pass of the graph has all rows of a batch.
    c.n_batch = c.n_ubatch = max(n_ubatch, MIN_UBATCH)
    # Encoders: rows of all tokens, not pooled ones. It means nothing to generating models.
    c.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    c.n_seq_max = n_seq_max
    # Rows then come in batch order, whatever sequences they belong to.
    c.kv_unified = True
    # Without it, cells behind the sliding window are gone and a batch could not be taken back.
    c.swa_full = True
    c.n_threads = c.n_threads_batch = params.n_threads or _default_threads()
    if params.precision == "exact":
        c.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        c.type_k = c.type_v = lib.GGML_TYPE_F32
    c.cb_eval = lib.ggml_backend_sched_eval_callback(_core.eval_callback())
    c.cb_eval_user_data = tapper.user_data
    forget_complaints()
    ctx = lib.llama_init_from_model(weights.llama_model, c)
    if not ctx:
        raise ContextError(
            f"llama.cpp cannot make a context of {n_ctx} tokens: {complaints() or 'no reason given'}. "
            f"Try a smaller n_ctx"
        )
    return ctx


def _free_context(ctx: Any, _tapper: _core.Tapper) -> None:
    """The tapper comes along only to outlive the context."""
    lib.llama_free(ctx)


def _default_threads() -> int:
    import os

    try:
        n = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        n = os.cpu_count() or 1
    # Two logical processors of a core share its arithmetic; small machines are mostly virtual, where all count.
    return n if n <= 4 else n // 2


def _dummy(n_tokens: int, n_outputs: int, start: int = 0) -> Batch:
    outputs = np.zeros(n_tokens, bool)
    outputs[n_tokens - n_outputs :] = True
    positions = np.arange(start, start + n_tokens, dtype=np.int32)
    zeros = np.zeros(n_tokens, np.int32)
    return Batch(zeros, positions, zeros, outputs)
