"""The measures against closed forms."""

import numpy as np
import pytest

from loom_gguf import NotCapturedError, States
from loom_gguf.analysis import hidden_state_rows, row_norms, row_turns
from loom_gguf.states import NodeValues, Roles


def made(rows, *, embedding=True, final=True, single=False):
    """States of the given arrays (S, T, ...): the embedding, layers 0, 1, ..., the final state."""
    keys = [f"n{i}" for i in range(len(rows))]
    values = {key: NodeValues(np.asarray(row, np.float32), 0) for key, row in zip(keys, rows, strict=True)}
    n_layer = len(rows) - embedding - final
    roles = Roles(
        n_layer=n_layer,
        layers={il: keys[il + embedding] for il in range(n_layer)},
        embedding=keys[0] if embedding else None,
        final=keys[-1] if final else None,
    )
    n_tokens = len(rows[0])
    return States(values, roles, range(n_tokens), range(n_tokens), single=single)


def test_norms_are_euclidean_lengths_in_the_models_order():
    states = made([[[3, 4], [0, 0]], [[5, 12], [1, 0]], [[8, 15], [0, -2]]])
    assert list(hidden_state_rows(states)) == ["embedding", "0", "final"]
    np.testing.assert_array_equal(row_norms(states), [[5, 0], [13, 1], [17, 2]])


def test_norms_are_computed_in_float64():
    states = made([np.full((1, 4), 1e30, np.float32)], embedding=False, final=False)
    np.testing.assert_allclose(row_norms(states), [[2e30]], rtol=1e-6)


@pytest.mark.parametrize("degrees", [0, 1e-4, 1, 45, 90, 135, 179.99, 180])
def test_a_turn_is_the_angle_whatever_the_lengths(degrees):
    angle = np.radians(degrees)
    rows = np.array([[[7.0, 0.0]], [[0.01 * np.cos(angle), 0.01 * np.sin(angle)]]])
    turns = row_turns(made(rows, final=False))
    np.testing.assert_allclose(turns, [[degrees]], rtol=1e-5, atol=1e-5)


def test_turns_need_finite_states_that_are_not_zero():
    turns = row_turns(made([[[1, 0], [1, 0], [0, 0], [1, 0]], [[0, 1], [np.nan, 1], [1, 1], [np.inf, 1]]], final=False))
    assert turns[0, 0] == pytest.approx(90)
    assert np.isnan(turns[0, 1:]).all()


def test_states_of_several_streams_count_as_one_vector():
    states = made([[[[3, 0], [0, 4]]]], embedding=False, final=False)
    np.testing.assert_array_equal(row_norms(states), [[5]])


def test_a_single_step_is_one_token():
    assert row_norms(made([[[3, 4]]], embedding=False, final=False, single=True)).shape == (1, 1)


def test_what_was_not_captured_is_said():
    nothing = States({}, Roles(2, {}, None, None), [], [])
    with pytest.raises(NotCapturedError, match="all_layers"):
        row_norms(nothing)
    with pytest.raises(NotCapturedError, match="two hidden states"):
        row_turns(made([[[1, 0]]], embedding=False, final=False))
