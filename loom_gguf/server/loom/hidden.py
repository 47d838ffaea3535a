"""Hidden states as Hugging Face numbers them: from a request to a Capture, and from captured rows to the answer.

Of a model with N blocks, index 0 is the embedding, index i the output of block i-1, and N the final state, after the
norm. Negative indices count from the end, so -1 is the final state too.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...capture import Capture
from ...states import States
from ..errors import BodyError, RequestError
from .schemas import Format, GenerationRequest, Values

Array = npt.NDArray[np.float32]

_ATTENTION = "kq_soft_max-"  # llama.cpp's name for a block's attention weights, without the block's number


class Budget:
    """How many bytes of numbers an answer may hold yet; one for all prompts of a request."""

    def __init__(self, n_bytes: int) -> None:
        """`n_bytes`: at most."""
        self._most = n_bytes
        self._used = 0

    def take(self, arrays: Sequence[Array]) -> None:
        """Count arrays that are kept; RequestError where they are too many."""
        self._used += sum(array.nbytes for array in arrays)
        if self._used > self._most:
            raise RequestError(
                400,
                f"more than {self._most:,} bytes of hidden states for one answer: ask for fewer layers, tokens or "
                f"prompts, or without return_full_sequence",
            )


class Hidden:
    """The numbers that one prompt's answer has beside its text."""

    def __init__(self, body: GenerationRequest, default: Sequence[int] | None, budget: Budget) -> None:
        """`default`: layers where the request names none; None: all."""
        self._body = body
        layers = body.hidden_state_layers
        self._layers = default if layers is None else None if layers == "all" else layers
        self._rows_wanted = body.return_hidden_states or body.return_full_sequence
        self._budget = budget
        self._indices: dict[str, int] = {}  # by the key that the answer has: 0 to N
        self._last: dict[str, Array] = {}  # of the last step: (n_embd,)
        self._steps: dict[str, list[Array]] = {}  # of every step
        self._attention: dict[str, Array] = {}  # of the last step: (n_head, n_past)

    def capture(self, n_layer: int) -> Capture | None:
        """What to capture of a model with so many blocks; None where that is nothing."""
        capture = Capture()
        if self._rows_wanted:
            self._indices = _indices(self._layers, n_layer)
            wanted = set(self._indices.values())
            blocks = sorted(index - 1 for index in wanted - {0, n_layer})
            capture |= Capture.layers(blocks, embedding=0 in wanted, final=n_layer in wanted)
        if self._body.return_attention:
            capture |= Capture.prefix(_ATTENTION)
        return capture or None

    def take(self, states: States) -> None:
        """A step's rows. Only a full sequence keeps those of more than the last step."""
        if self._indices:
            self._last = {key: _row(states, index) for key, index in self._indices.items()}
            if self._body.return_full_sequence:
                self._budget.take(list(self._last.values()))
                for key, row in self._last.items():
                    self._steps.setdefault(key, []).append(row)
        if self._body.return_attention:
            self._attention = {
                key.removeprefix(_ATTENTION): states[key] for key in states if key.startswith(_ATTENTION)
            }

    def answer(self) -> dict[Literal["hidden_states", "attention_weights", "sequence_hidden_states"], Any]:
        """The keys of the answer; None where nothing was asked for."""
        self._budget.take([*self._last.values(), *self._attention.values()])
        shown = self._last if self._body.return_hidden_states else {}
        return {
            "hidden_states": self._encoded({key: row[None] for key, row in shown.items()}, nested=False),
            "attention_weights": self._encoded(
                {key: weights[None, :, None] for key, weights in self._attention.items()}, nested=False
            ),
            "sequence_hidden_states": self._encoded(
                {key: np.stack(rows) for key, rows in self._steps.items()}, nested=True
            ),
        }

    def _encoded(self, arrays: Mapping[str, Array], *, nested: bool) -> dict[str, Values] | None:
        form = self._body.hidden_state_format
        return {key: _encode(key, array, form, nested=nested) for key, array in arrays.items()} or None


def _indices(layers: Sequence[int] | None, n_layer: int) -> dict[str, int]:
    """Keys as the client wrote them, with indices from 0 to n_layer."""
    wanted = range(-n_layer, 0) if layers is None else layers
    for layer in wanted:
        if not -n_layer - 1 <= layer <= n_layer:
            raise BodyError(
                text := f"there is no hidden state {layer}: this model's are 0 (the embedding) to {n_layer} (the final "
                f"state), or -{n_layer + 1} to -1 counted from the end",
                [{"loc": ["body", "hidden_state_layers"], "msg": text, "type": "value_error"}],
            )
    return {str(layer): layer if layer >= 0 else layer + n_layer + 1 for layer in wanted}


def _row(states: States, index: int) -> Array:
    """The row of one hidden state, float32 (n_embd,)."""
    if index == states.n_layer:
        return states.final
    return states.layer(index - 1) if index else states.embedding


def _encode(key: str, array: Array, form: Format, *, nested: bool) -> Values:
    array = np.ascontiguousarray(array, np.float32)
    data: Any
    if form == "base64":
        data = base64.b64encode(array.astype("<f4", copy=False).tobytes()).decode("ascii")
    elif not np.isfinite(array).all():
        raise RequestError(
            400, f'layer {key} has NaN or infinite values, which JSON cannot hold: use "hidden_state_format": "base64"'
        )
    else:
        data = array if nested else array.ravel()
    return {
        "data": data,
        "shape": list(array.shape),
        "dtype": "float32",
        "encoding": "base64" if form == "base64" else None,
    }
