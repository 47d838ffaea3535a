"""Hidden states through the model's own final norm and output matrix, streamed over the vocabulary."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..capture import Capture
from ..errors import LensUnsupportedError, NotCapturedError, StatesError
from ..states import Array, States
from ..states_file import token_texts
from .head import LOGITS, Head, find_head
from .result import LensResult
from .stream import Progress, final_facts, read_blocks

if TYPE_CHECKING:
    from ..model import Model

_N_CHECKED = 4  # tokens computed anew where the given states hold nothing to check against

# How far our own logits may be from llama.cpp's, largest difference over largest value. Its CPU multiplies quantized
# matrices with activations that it rounds to 8 bits, F16 and BF16 ones with activations of their own type; a GPU may
# use its tensor cores' short floats for F32 too. A norm, a bias or a scale that was mistaken is far beyond all of it.
_BOUND_OF_TYPE = {"f32": 5e-3, "f16": 1e-2, "bf16": 2e-2}
_BOUND_QUANTIZED = 6e-2
_BOUND_NORM = 1e-3  # computed in float32 on both sides
_BOUND_GIVEN = 6e-2  # of given states, which may have been compressed to int8


def lens(
    model: Model,
    source: str | Sequence[int] | States,
    top_k: int = 5,
    layers: Iterable[int] | None = None,
    *,
    progress: Progress | None = None,
) -> LensResult:
    """Read every layer as if it were the last: token probabilities of each hidden state at each position.

    source: a text, token ids, or captured states of this model: these need the layers to look at, and the final state
        (or the last layer) to compare them with.
    top_k: how many of the most probable tokens to keep.
    layers: indices of the blocks to look at, negative ones counted from the last; None for all of them and the
        embedding. The final state is always there.
    progress: called with (what is being done, steps done, steps in all).

    A hidden state h (n_embd,) gives softmax(after(W before(h))), where W is the model's output matrix, dequantized by
    ggml, and `before` and `after` are what the model's own graph does between its last layer and W (RMS norm or
    LayerNorm) and between W and its logits (a bias, a scale, a cap). The final row is the model's own prediction:
    llama.cpp's logits where they were captured, as they are for a text. The last layer's row differs from it only by
    rounding, which is checked: LensUnsupportedError where it differs more, and where the graph does something else
    that is not understood.

    The method is nostalgebraist's, "interpreting GPT: the logit lens", LessWrong, 2020.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k must be an integer of at least 1, not {top_k!r}")
    head = find_head(model.topology, model.file)
    if head.n_vocab != model.n_vocab or head.n_embd != model.n_embd:
        raise LensUnsupportedError(
            f"no logit lens for {model.path.name} ({model.arch}): its output matrix is {head.n_vocab} x {head.n_embd}, "
            f"not n_vocab x n_embd ({model.n_vocab} x {model.n_embd})"
        )
    wanted = None if layers is None else _indices(layers, model.n_layer)
    if isinstance(source, States):
        states = source
        _check_given(model, states)
    else:
        if progress is not None:
            progress("reading", 0, 1)
        states = model.forward(source, _capture(head, wanted))
    rows = _rows(states, wanted)
    own_logits = _own_logits(head, states)
    read = [head.normed(array) for array in rows.values()]
    if own_logits is None:
        read.append(_final_normed(head, states))
    normed = np.stack(read) if read else np.zeros((0, len(states.tokens), head.n_embd), np.float32)
    final = final_facts(head, normed, own_logits)
    proof = _proof(model, head, states, own_logits, given=isinstance(source, States))
    top_k = min(top_k, head.n_vocab)
    numbers = read_blocks(head, normed, own_logits, final, top_k, proof.rows, proof.logits, progress)
    proof.check(numbers.check_error)
    used = sorted({*np.unique(numbers.top_ids).tolist(), *final.ids.tolist()} - {-1})
    names = token_texts(model, used) or []
    return LensResult(
        labels=[*rows, "final"],
        tokens=list(states.tokens),
        positions=list(states.positions),
        texts=token_texts(model, states.tokens),
        top_ids=numbers.top_ids,
        top_probs=numbers.top_probs,
        final_ids=final.ids,
        rank_of_final=numbers.rank,
        prob_of_final=numbers.prob,
        kl=numbers.kl,
        vocabulary=dict(zip(used, names, strict=False)),
        model=model.path.name,
        arch=model.arch,
        matrix=f"{head.matrix.info.name} ({head.matrix.type.upper()})",
        engine_logits=own_logits is not None,
    )


def _indices(layers: Iterable[int], n_layer: int) -> list[int]:
    found = set()
    for index in layers:
        # A capture of it says what is wrong with an index.
        Capture.layers([index])
        il = operator.index(index)
        found.add(il + n_layer if -n_layer <= il < 0 else il)
    return sorted(found)


def _capture(head: Head, wanted: list[int] | None) -> Capture:
    """What the lens of a text needs: the last layer and the logits in any case, one to check the other."""
    final = head.final_at is not None
    if wanted is None:
        layers = Capture.all_layers(embedding=True, final=final)
    else:
        layers = Capture.layers([*wanted, -1], final=final)
    return layers | Capture.names([LOGITS])


def _check_given(model: Model, states: States) -> None:
    roles = states.roles
    keys = [key for key in (*roles.layers.values(), roles.embedding, roles.final) if key is not None]
    if not keys:
        raise NotCapturedError(
            "these states hold no hidden states (embedding, layers or final): capture e.g. "
            "Capture.all_layers(embedding=True, final=True)"
        )
    if not states.tokens:
        raise StatesError("these states have no rows: capture at least one token")
    for key in keys:
        shape = states.values_by_key[key].array.shape
        if len(shape) != 2 or shape[1] != model.n_embd or states.n_layer != model.n_layer:
            raise StatesError(
                f"these states are not of {model.path.name}: they have {states.n_layer} layers and rows of "
                f"{' x '.join(map(str, shape[1:]))} values, it has {model.n_layer} layers and rows of {model.n_embd}"
            )
    if not all(0 <= token < model.n_vocab for token in states.tokens):
        raise StatesError(
            f"these states are not of {model.path.name}: they have token {max(states.tokens)}, but its ids end at "
            f"{model.n_vocab - 1}"
        )


def _rows(states: States, wanted: list[int] | None) -> dict[str, Array]:
    """The states to read, (T, n_embd) each, in the model's order by their labels; without the final one."""
    roles = states.roles
    keys: dict[str, str] = {}
    if wanted is None:
        if roles.embedding is not None:
            keys["embedding"] = roles.embedding
        keys |= {str(il): roles.layers[il] for il in states.layers}
    else:
        for il in wanted:
            if il not in roles.layers:
                raise NotCapturedError(f"layer {il} was not captured; captured layers: {states.layers or 'none'}")
            keys[str(il)] = roles.layers[il]
    return {label: _array(states, key) for label, key in keys.items()}


def _array(states: States, key: str) -> Array:
    """float32 (T, n_embd), also of a generation step's single row."""
    return np.asarray(states.values_by_key[key].array, np.float32)


def _own_logits(head: Head, states: States) -> Array | None:
    """The logits that llama.cpp computed, float32 (T, n_vocab), where they were captured."""
    value = states.values_by_key.get(LOGITS)
    if value is None or value.row_axis is None or value.array.shape[1:] != (head.n_vocab,):
        return None
    return np.asarray(value.array, np.float32)


def _final_normed(head: Head, states: States) -> Array:
    """What the output matrix read, (T, n_embd): of the final state, else of the last layer."""
    roles = states.roles
    last = roles.layers.get(states.n_layer - 1)
    if roles.final is not None and head.final_at is not None:
        return head.normed(_array(states, roles.final), head.final_at)
    if last is not None:
        return head.normed(_array(states, last))
    raise NotCapturedError(
        "the lens compares layers with the model's own prediction, but these states hold neither the final state nor "
        "the last layer: capture with final=True"
    )


# -- the proof --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Proof:
    """Rows of the last layer behind our own norm, with the logits that llama.cpp made of the same rows."""

    rows: Array  # (C, n_embd)
    logits: Array  # (C, n_vocab)
    model: Model
    bound: float

    given: bool  # by the caller, who may have taken those of another model

    def check(self, error: float) -> None:
        """Raise unless the logits that the lens makes of these rows are llama.cpp's."""
        if error > self.bound and self.given:
            raise StatesError(
                f"these states are not of {self.model.path.name}: it makes other logits of their last layer than they "
                f"hold (they differ by {error:.1%} of the largest). Open the model that they are of"
            )
        if error > self.bound:
            raise LensUnsupportedError(
                f"no logit lens for {self.model.path.name} ({self.model.arch}): its last layer read through the norm "
                f"and the output matrix that its graph shows gives other logits than llama.cpp's own (they differ by "
                f"{error:.1%} of the largest, {self.bound:.1%} is what rounding explains)"
            )


def _proof(model: Model, head: Head, states: States, own_logits: Array | None, *, given: bool) -> _Proof:
    last, final = states.roles.layers.get(states.n_layer - 1), states.roles.final
    if given and last is not None and final is not None:
        _check_norm(model, head, _array(states, last), _array(states, final), given=True)
    if given and (own_logits is None or last is None):
        # Nothing in these states says what llama.cpp makes of the last layer: let it tell anew, of a few tokens.
        states = model.forward(states.tokens[: min(_N_CHECKED, model.n_ctx)], _capture(head, []))
        own_logits, given = _own_logits(head, states), False
        last, final = states.roles.layers.get(states.n_layer - 1), states.roles.final
    if own_logits is None or last is None:
        raise LensUnsupportedError(
            f"no logit lens for {model.path.name} ({model.arch}): its logits are not a row of {head.n_vocab} per token"
        )
    if not given and final is not None:
        _check_norm(model, head, _array(states, last), _array(states, final), given=False)
    bound = _BOUND_GIVEN if given else _BOUND_OF_TYPE.get(head.matrix.type, _BOUND_QUANTIZED)
    return _Proof(head.normed(_array(states, last)), own_logits, model, bound, given)


def _check_norm(model: Model, head: Head, last: Array, final: Array, *, given: bool) -> None:
    """That the last layer's rows give the final ones."""
    if head.final_at is None:
        return
    ours = head.apply_before(last, 0, head.final_at)
    known = np.isfinite(ours).all(axis=-1) & np.isfinite(final).all(axis=-1)
    if not known.any():
        return
    error = float(np.abs(ours[known] - final[known]).max() / max(float(np.abs(final[known]).max()), 1e-30))
    if error <= (_BOUND_GIVEN if given else _BOUND_NORM):
        return
    if given:
        raise StatesError(
            f"these states are not of {model.path.name}: its final norm makes something else of their last layer than "
            f"their final state (they differ by {error:.1%} of the largest value). Open the model that they are of"
        )
    raise LensUnsupportedError(
        f"no logit lens for {model.path.name} ({model.arch}): the final norm that its graph shows makes something else "
        f"of its last layer than the final state that llama.cpp computed (they differ by {error:.1%} of the largest "
        f"value)"
    )
