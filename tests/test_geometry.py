"""The measures against closed forms, against other implementations, and what must not change them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loom_gguf import LoomError, MeasureError
from loom_gguf.analysis import (
    alignment,
    anisotropy,
    beta_energy,
    beta_ratio,
    cosine_below,
    cosine_next_token,
    energy90,
    entropy,
    outlier_dimensions,
    pca90,
    recurring_outliers,
    sparsity,
    vector_statistics,
)

ROWS = {"pca90": pca90, "entropy": entropy, "anisotropy": anisotropy, "cosine_next_token": cosine_next_token}


def rotation(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def random_rows(n_rows, width, seed=0):
    return np.random.default_rng(seed).standard_normal((n_rows, width)).astype(np.float32)


# -- closed forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(2, 1), (5, 4), (11, 9), (12, 10), (21, 18), (101, 90)])
def test_the_identity_has_one_dimension_less_than_rows_all_alike(n, expected):
    """Centred, n - 1 equal eigenvalues: pca90 is the ceiling of 90% of them, also where that is hit exactly."""
    assert pca90(np.eye(n)) == expected == math.ceil(0.9 * (n - 1) - 1e-9)
    assert entropy(np.eye(n)) == pytest.approx(n)
    assert anisotropy(np.eye(n)) == pytest.approx(0, abs=1e-12)
    assert cosine_next_token(np.eye(n)) == 0


def test_rank_one_is_one_dimension_or_none():
    direction = np.array([3.0, -4.0, 12.0])
    same = np.outer([1, 2, 5, 1e-3], direction)
    assert pca90(same) == 0  # the directions do not vary
    assert entropy(same) == pytest.approx(1)
    assert anisotropy(same) == pytest.approx(1)
    rounded = np.outer(np.linspace(0.1, 9, 50), rotation(300)[0])  # equal directions, but for rounding
    assert pca90(rounded) == 0
    both = np.outer([1, -2, 5, -7], direction)
    assert pca90(both) == 1
    assert entropy(both) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(6, 6), (6, 40), (40, 6)])
def test_a_known_spectrum(shape):
    singular = np.array([9.0, 5.0, 3.0, 2.0, 1.0, 0.5])
    left, right = rotation(shape[0], 1)[:, :6], rotation(shape[1], 2)[:, :6]
    rows = left @ np.diag(singular) @ right.T
    shares = singular**2 / (singular**2).sum()
    assert entropy(rows) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-12)


@pytest.mark.parametrize(("weights", "expected"), [((8, 1, 1), 2), ((95, 4, 1), 1), ((6, 3, 1), 2), ((1, 1, 1), 3)])
def test_pca90_of_a_known_spectrum(weights, expected):
    """Pairs e_i and -e_i of unit length: no mean, and eigenvalues as the numbers of pairs."""
    rows = np.concatenate([np.tile([[1.0], [-1.0]], (w, 1)) * np.eye(3)[i] for i, w in enumerate(weights)])
    assert pca90(rows * np.linspace(0.1, 9, len(rows))[:, None]) == expected  # lengths make no difference


@pytest.mark.parametrize(
    ("vector", "expected"),
    [([5, 0, 0, 0], 1), ([1] * 10, 9), ([-1] * 11, 10), ([1] * 4096, 3687), ([3, 1], 1), ([2.9, 1], 2), ([0, 0], 0)],
)
def test_energy90(vector, expected):
    assert energy90(vector) == expected
    if expected:
        assert beta_energy(vector) == len(vector) / expected
    else:
        assert math.isnan(beta_energy(vector))


def test_beta_ratio():
    assert beta_ratio(12, 4) == 3
    assert math.isnan(beta_ratio(0, 4))
    assert math.isnan(beta_ratio(4, 0))
    assert math.isnan(beta_ratio(math.nan, 4))
    with pytest.raises(MeasureError, match="negative"):
        beta_ratio(-1, 4)


@pytest.mark.parametrize(
    ("u", "v", "cosine"),
    [([1, 0], [5, 0], 1), ([1, 0], [0, 2], 0), ([1, 1], [-3, -3], -1), ([1, 0], [1, 1], 0.5**0.5), ([0, 0], [1, 1], 0)],
)
def test_alignment(u, v, cosine):
    assert alignment(u, v) == pytest.approx(cosine, abs=1e-15)
    assert cosine_below([u, v], [v, v]) == pytest.approx((cosine + 1) / 2, abs=1e-15)


def test_anisotropy_is_over_all_pairs_and_neighbours_are_pairs_in_order():
    angles = np.radians([0, 60, 90])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [10], [0.1]]
    assert anisotropy(rows) == pytest.approx((np.cos(np.radians([60, 30, 90]))).mean())
    assert cosine_next_token(rows) == pytest.approx(np.cos(np.radians([60, 30])).mean())


def test_outlier_dimensions_are_large_in_enough_rows():
    rows = np.ones((50, 200))
    rows[:3, 7] = -100  # 6% of the rows
    rows[:2, 9] = 100  # too few
    assert outlier_dimensions(rows) == (7,)
    assert outlier_dimensions(rows * np.linspace(1e-3, 1e3, 50)[:, None]) == (7,)
    assert outlier_dimensions(rows, tokens=0.04) == (7, 9)
    assert outlier_dimensions(rows, magnitude=20) == ()
    assert outlier_dimensions(np.eye(35)) == ()  # sqrt(35) < 6
    assert outlier_dimensions(np.eye(36)[:, :36][:1]) == (0,)
    assert recurring_outliers([(1, 2), (2,), (3,), (), (), (), (), ()]) == (2,)


def test_vector_statistics():
    values = np.array([[0, 1e-7, 2, -4], [1, 3, -1e-6, 5]], np.float32)
    found = vector_statistics(values).to_dict()
    assert found.pop("shape") == [2, 4]
    assert found.pop("dtype") == "float32"
    exact = values.astype(np.float64)
    assert found == {
        "mean": pytest.approx(exact.mean()),
        "std": pytest.approx(exact.std()),
        "min": -4,
        "max": 5,
        "l2_norm": pytest.approx(np.linalg.norm(exact)),
        "sparsity": 3 / 8,  # 1e-6 as float32 is a little less than 1e-6
        "percentile_25": pytest.approx(np.sort(exact.ravel())[[1, 2]] @ [0.25, 0.75], abs=1e-6),
        "percentile_50": pytest.approx(0.5, rel=1e-6),
        "percentile_75": pytest.approx(2.25),
    }
    assert sparsity([0, 1e-6, 1]) == pytest.approx(1 / 3)


# -- other implementations --------------------------------------------------------------------------------------

SHAPES = [(2, 5), (7, 64), (64, 7), (30, 30), (150, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_against_the_explicit_covariance(shape, seed):
    rows = random_rows(*shape, seed) * np.geomspace(1, 50, shape[1])
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    covariance = np.linalg.eigvalsh(np.cov(units, rowvar=False))[::-1]
    assert pca90(rows) == np.argmax(np.cumsum(covariance) / covariance.sum() >= 0.9) + 1
    energies = np.linalg.svd(rows.astype(np.float64), compute_uv=False) ** 2
    energies /= energies.sum()
    assert entropy(rows) == pytest.approx(np.exp(-np.sum(energies * np.log(energies + 1e-300))), rel=1e-9)
    cosines = units @ units.T
    assert anisotropy(rows) == pytest.approx(cosines[~np.eye(len(rows), dtype=bool)].mean(), abs=1e-6)
    for row in rows[:3]:
        squares = sorted((float(x) ** 2 for x in row), reverse=True)
        total, count = 0.0, 0
        while total < 0.9 * math.fsum(squares):
            total, count = total + squares[count], count + 1
        assert energy90(row) == count


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_against_scikit_learn(shape):
    decomposition = pytest.importorskip("sklearn.decomposition")
    rows = random_rows(*shape).astype(np.float64) * np.geomspace(1, 50, shape[1])
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert pca90(rows) == decomposition.PCA(0.9, svd_solver="full").fit(units).n_components_


# -- what must not change a measure -----------------------------------------------------------------------------

some_rows = arrays(
    np.float64,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.one_of(st.just(0.0), st.floats(-100, 100, allow_subnormal=False).filter(lambda x: abs(x) > 1e-3)),
)


@given(some_rows)
def test_bounds(rows):
    n_rows, width = rows.shape
    assert 0 <= pca90(rows) <= min(max(n_rows - 1, 0), width)
    assert 0 <= entropy(rows) <= min(n_rows, width) * (1 + 1e-12)
    assert all(0 <= energy90(row) <= width for row in rows)
    if n_rows > 1:
        assert -1 <= anisotropy(rows) <= 1
        assert -1 <= cosine_next_token(rows) <= 1


@given(some_rows, st.floats(-300, 300))
def test_scale_changes_nothing(rows, exponent):
    scaled = rows * 10.0 ** min(exponent, 300.0)
    if np.isinf(scaled).any() or (np.abs(scaled[scaled != 0]) < 1e-300).any():
        return
    for measure in ROWS.values():
        np.testing.assert_allclose(measure(scaled), measure(rows), rtol=1e-9, atol=1e-9)
    for row, other in zip(rows, scaled, strict=True):
        assert energy90(row) == energy90(other)
    assert outlier_dimensions(scaled) == outlier_dimensions(rows)


@pytest.mark.parametrize("measure", ROWS)
@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (40, 30)])
def test_a_rotation_changes_nothing(measure, shape):
    rows = random_rows(*shape).astype(np.float64)
    turned = rows @ rotation(shape[1])
    assert ROWS[measure](turned) == pytest.approx(ROWS[measure](rows), rel=1e-9, abs=1e-12)


@given(some_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    for measure in (pca90, entropy, anisotropy):
        np.testing.assert_allclose(measure(rows[order]), measure(rows), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("measure", [pca90, anisotropy])
def test_lengths_of_rows_change_nothing(measure):
    rows = random_rows(8, 20).astype(np.float64)
    assert measure(rows * np.geomspace(1e-3, 1e3, 8)[:, None]) == pytest.approx(measure(rows), rel=1e-9)


# -- bad input --------------------------------------------------------------------------------------------------


def test_one_row_and_constant_rows():
    one, constant = random_rows(1, 8), np.tile(random_rows(1, 8), (5, 1))
    assert pca90(one) == pca90(constant) == 0
    assert entropy(one) == pytest.approx(1)
    assert entropy(constant) == pytest.approx(1)
    assert math.isnan(anisotropy(one))
    assert math.isnan(cosine_next_token(one))
    assert anisotropy(constant) == pytest.approx(1)
    assert cosine_next_token(constant) == pytest.approx(1)


def test_zeros():
    zeros = np.zeros((4, 6))
    assert (pca90(zeros), entropy(zeros), anisotropy(zeros), cosine_next_token(zeros)) == (0, 0, 0, 0)
    assert outlier_dimensions(zeros) == ()
    found = vector_statistics(zeros)
    assert (found.l2_norm, found.std, found.sparsity) == (0, 0, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_give_nan(bad):
    rows = random_rows(6, 8)
    rows[2, 3] = bad
    assert all(math.isnan(measure(rows)) for measure in ROWS.values())
    assert math.isnan(energy90(rows[2]))
    assert math.isnan(alignment(rows[2], rows[1]))
    assert math.isnan(sparsity(rows))
    assert math.isnan(cosine_below(rows, random_rows(6, 8)))
    found = vector_statistics(rows)
    assert all(math.isnan(x) for x in (found.mean, found.std, found.min, found.max, found.l2_norm, found.percentile_50))
    rows[:, 5] = 1e4
    assert outlier_dimensions(np.concatenate([rows] * 5, axis=1)) == ()


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2)), [[1], [2, 3]]])
@pytest.mark.parametrize("measure", [*ROWS.values(), outlier_dimensions])
def test_what_are_no_rows(measure, bad):
    with pytest.raises(MeasureError):
        measure(bad)


def test_other_arrays_without_a_measure():
    for bad in (["a", "b"], [1j, 2], [None, 1]):
        with pytest.raises(MeasureError, match="real numbers"):
            energy90(bad)
    for bad in ([], np.zeros((2, 2))):
        with pytest.raises(MeasureError, match="shape"):
            energy90(bad)
    with pytest.raises(MeasureError, match="lengths"):
        alignment([1, 2], [1, 2, 3])
    with pytest.raises(MeasureError, match="shapes"):
        cosine_below(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(MeasureError, match="at least one value"):
        vector_statistics([])
    with pytest.raises(MeasureError, match="share"):
        outlier_dimensions(np.ones((2, 2)), tokens=2)
    assert issubclass(MeasureError, LoomError)
