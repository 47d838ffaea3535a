"""The captured hidden states as rows, their lengths, and the angles between them.

S is the number of captured hidden states (embedding, layers, final), T that of rows, E is n_embd.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..errors import NotCapturedError
from ..states import Array, States

Floats = npt.NDArray[np.float64]


def hidden_state_rows(states: States) -> dict[str, Array]:
    """The captured hidden states in the model's order: label -> (T, ...), float32.

    The labels are "embedding", the layers' indices ("0", "1", ...) and "final". A generation step's single row is
    given back its first axis: T is 1.
    """
    roles = states.roles
    keys = {"embedding": roles.embedding, **{str(il): roles.layers[il] for il in states.layers}, "final": roles.final}
    found = {label: states.values_by_key[key].array for label, key in keys.items() if key is not None}
    if not found:
        raise NotCapturedError(
            "these states hold no hidden states (embedding, layers or final): capture e.g. Capture.all_layers()"
        )
    return found


def row_norms(states: States) -> Floats:
    """Euclidean (L2) length of every hidden state, (S, T), in the model's own units.

    Rows are in the order of `hidden_state_rows`. NaN and Inf in a state give NaN and Inf here.
    """
    return np.stack([norms(flat(array)) for array in hidden_state_rows(states).values()])


def row_turns(states: States) -> Floats:
    """Angle between every hidden state and the captured one before it, (S - 1, T), in degrees, 0 to 180.

    Row s belongs to state s + 1 in the order of `hidden_state_rows`: with the embedding and all layers captured, row
    i is how far block i turns the state of each token. NaN where a state is zero, NaN or Inf.

    The angle is 2 atan2(|u - v|, |u + v|) of the unit vectors u and v (W. Kahan, "How Futile are Mindless Assessments
    of Roundoff in Floating-Point Computation?", section 12), which is as exact for small angles as for right ones;
    the arc cosine of their product is not. Blocks compared by angle: A. Gromov et al., "The Unreasonable
    Ineffectiveness of the Deeper Layers", 2024.
    """
    arrays = [flat(array) for array in hidden_state_rows(states).values()]
    if len(arrays) < 2:
        raise NotCapturedError(
            "a turn needs two hidden states, but only one was captured: capture more layers, or the embedding"
        )
    return np.stack([turns(before, after) for before, after in pairwise(arrays)])


def flat(array: Array) -> Floats:
    """(T, ...) as (T, E), float64: several streams ([n_embd, T, 4] in some models) count as one long vector."""
    return array.reshape(len(array), -1).astype(np.float64)


def turns(before: Floats, after: Floats) -> Floats:
    """Angle between row t of one array (T, E) and row t of the other, (T,), in degrees; see `row_turns`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = before / norms(before)[:, None], after / norms(after)[:, None]
        return np.asarray(np.degrees(2 * np.arctan2(norms(v - u), norms(v + u))))


def norms(rows: Floats) -> Floats:
    """Euclidean (L2) length of each row of (T, E), (T,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(np.einsum("te,te->t", rows, rows)))
