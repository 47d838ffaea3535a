"""Rows in fewer bytes, against numpy's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from oracle import random_tokens

from loom_gguf import Capture, NotCapturedError, StatesError
from loom_gguf.batch import Batch
from loom_gguf.compression import compress_rows

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
ROWS = st_numpy.arrays(np.float32, st_numpy.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=FLOATS)


def int8_by_numpy(row: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """One row by the rule: scale = max|x| / 127 per block, q = x / scale, half to even."""
    numbers, scales = [], []
    for start in range(0, row.size, block or row.size):
        part = row[start : start + (block or row.size)].astype(np.float64)
        largest = np.abs(part).max()
        if not np.isfinite(part).all():
            scale, q = np.float32("nan"), np.zeros(part.size)
        elif largest == 0:
            scale, q = np.float32(0), np.zeros(part.size)
        else:
            scale = max(np.float32(largest / 127), np.float32(1e-45))
            if np.float64(scale) * 127 > np.finfo(np.float32).max:
                scale = np.nextafter(scale, np.float32(0))
            q = np.clip(np.rint((part / np.float64(scale)).astype(np.float32)), -127, 127)
        numbers.append(q)
        scales.append(scale)
    return np.concatenate(numbers).astype(np.int8), np.array(scales, np.float32)


@given(ROWS, st.sampled_from([0, 1, 3, 4, 32]))
@settings(max_examples=200, deadline=None)
def test_int8_follows_its_rule(rows, block):
    got = compress_rows(rows, "int8", block)
    flat = rows.reshape(len(rows), -1)
    for r, row in enumerate(flat):
        numbers, scales = int8_by_numpy(row, block)
        np.testing.assert_array_equal(got.scales[r], scales)
        # x / scale and x * (1 / scale) may round to different sides of a half.
        assert np.abs(got.data.reshape(flat.shape)[r].astype(int) - numbers).max() <= 1


@given(ROWS.filter(lambda rows: np.isfinite(rows).all()), st.sampled_from([0, 4]))
@settings(max_examples=200, deadline=None)
def test_int8_comes_back_within_half_a_step(rows, block):
    got = compress_rows(rows, "int8", block)
    assert got.decompress().shape == rows.shape
    n = rows[0].size
    scales = np.repeat(got.scales, block or n, axis=1)[:, :n].reshape(rows.shape).astype(np.float64)
    smallest = 1e-44  # where scales themselves are only a few units of the last place
    with np.errstate(over="ignore"):
        error = np.abs(got.decompress().astype(np.float64) - rows)
    assert (error <= 0.5001 * scales + smallest).all()


def test_int8_ties_go_to_the_even_number():
    rows = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)  # scale 1
    assert compress_rows(rows, "int8").data.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_int8_of_zeros_is_zeros():
    got = compress_rows(np.zeros((2, 4), np.float32), "int8")
    assert not got.scales.any()
    assert not got.decompress().any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_never_makes_numbers_of_what_is_none(bad):
    rows = np.array([[1, bad, 3, 4], [1, 2, 3, 4]], np.float32)
    back = compress_rows(rows, "int8", 2).decompress()
    assert np.isnan(back[0, :2]).all()
    np.testing.assert_allclose(back[0, 2:], rows[0, 2:], rtol=0.01)
    np.testing.assert_allclose(back[1], rows[1], rtol=0.01)


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_float16_is_numpys_but_saturates(rows):
    got = compress_rows(rows, "float16")
    finite = np.isfinite(rows)
    beyond = finite & (np.abs(rows) > 65504)
    expected = np.where(beyond, np.copysign(np.float32(65504), rows), rows).astype(np.float16)
    np.testing.assert_array_equal(got.data, expected)
    assert got.saturated == beyond.sum()


@pytest.mark.parametrize(("kind", "block"), [("float16", 0), ("int8", 0), ("int8", 32), ("int8", 7)])
def test_straight_from_the_graph_is_the_same(shared, kind, block):
    """Compressed while the rows still lie in the graph's memory, or afterwards: the same bytes."""
    context = shared("llama")._context
    capture = Capture.all_layers(embedding=True) | Capture.names(["Qcur-0", "Qcur-0#0", "kqv-1"])
    tokens = np.array(random_tokens(9), np.int32)
    kept = np.array([0, 3, 8])
    found = []
    for compression, scale_block in ((None, 0), (kind, block)):
        sequence = context.open_sequence()
        try:
            batch = Batch.of_one(tokens, 0, sequence)
            found.append(
                context.decode_capturing(batch, capture, kept, compression=compression, scale_block=scale_block)
            )
        finally:
            context.close_sequence(sequence)
    plain, packed = found
    for node, rows, small in zip(plain.selection.nodes, plain.arrays, packed.arrays, strict=True):
        expected = compress_rows(rows.data, kind, block)
        np.testing.assert_array_equal(small.data, expected.data, err_msg=node.key)
        assert small.saturated == expected.saturated
        if expected.scales is not None:
            np.testing.assert_array_equal(small.scales, expected.scales, err_msg=node.key)


def test_states_there_and_back(shared):
    states = shared("llama").forward(random_tokens(5), Capture.everything())
    small = states.compress("float16")
    back = small.decompress()
    assert list(back) == list(states)
    assert (back.tokens, back.positions, back.layers) == (states.tokens, states.positions, states.layers)
    for key in states:
        np.testing.assert_array_equal(back[key], states[key].astype(np.float16).astype(np.float32))
    for key in states.tensors:
        np.testing.assert_array_equal(back.tensor(key), states.tensor(key))
    layers = shared("llama").forward(random_tokens(5), Capture.all_layers())
    assert layers.compress("int8").nbytes == sum(a.size + 4 * len(a) for a in layers.values())


def test_a_steps_rows_there_and_back(shared):
    step = next(shared("llama").generate(random_tokens(5), capture=Capture.all_layers(), max_tokens=1))
    back = step.states.compress("int8", 16).decompress()
    assert back["l_out-0"].shape == step.states["l_out-0"].shape == (64,)


def test_bad_wishes(shared):
    states = shared("llama").forward([1], Capture.layers([0]))
    with pytest.raises(StatesError, match="float16, int8"):
        states.compress("int4")
    with pytest.raises(StatesError, match="float16 has no scales"):
        states.compress("float16", 32)
    with pytest.raises(StatesError, match="scale_block"):
        states.compress("int8", -1)
    with pytest.raises(NotCapturedError, match="captured: l_out-0"):
        states.compress("int8")["l_out-1"]
