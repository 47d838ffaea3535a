"""Comparisons with captured states: made by hand, from files, and from PyTorch."""

import numpy as np
import pytest
from oracle import FIDELITY, GELU, fidelity_file, torch_says
from safetensors.numpy import save_file

from loom_gguf import (
    Capture,
    ComparisonError,
    DifferentModelsError,
    DifferentTokensError,
    NotCapturedError,
    States,
    StatesFileError,
)
from loom_gguf.compare import compare
from loom_gguf.compare.measures import cosine_distances, kl_divergences, relative_errors, top_tokens
from loom_gguf.states import NodeValues, Roles
from loom_gguf.states_file import model_facts, token_texts

EVERYTHING = Capture.all_layers(embedding=True, final=True) | Capture.names(["result_output"])
NAN, INF = np.nan, np.inf


def made(layers, *, tokens=None, positions=None, logits=None, n_layer=None):
    """States with these layers (index -> rows), and perhaps logits."""
    values = {f"l_out-{il}": NodeValues(np.asarray(rows, np.float32), 0) for il, rows in layers.items()}
    n_rows = len(next(iter(values.values())).array) if values else 0
    if logits is not None:
        values["result_output"] = NodeValues(np.asarray(logits, np.float32), 0)
    roles = Roles(n_layer or max(layers, default=0) + 1, {il: f"l_out-{il}" for il in layers}, None, None)
    tokens = range(n_rows) if tokens is None else tokens
    return States(values, roles, tokens, range(n_rows) if positions is None else positions)


# -- defined values ---------------------------------------------------------------------------------------------


def test_relative_errors_of_known_rows():
    a = [[3, 4], [0, 0], [0, 0], [1, 0], [NAN, 1], [1, 1], [INF, 0], [2, 2]]
    b = [[3, 4.5], [0, 0], [0, 1], [-1, 0], [NAN, 1], [NAN, 1], [INF, 0], [2, -INF]]
    found = relative_errors(np.array(a, np.float32), np.array(b, np.float32))
    np.testing.assert_array_equal(found, [0.1, 0, INF, 2, NAN, INF, NAN, INF])


def test_cosines_of_known_rows():
    a = [[1, 0], [1, 0], [1, 0], [3, 3], [0, 0], [0, 0], [NAN, 1], [5, 5]]
    b = [[2, 0], [0, 7], [-4, 0], [1, 0], [0, 0], [0, 1], [1, 1], [INF, 1]]
    found = 1 - cosine_distances(np.array(a, np.float32), np.array(b, np.float32))
    np.testing.assert_allclose(found, [1, 0, -1, 0.5**0.5, 1, 0, NAN, NAN], atol=1e-15)


def test_a_tiny_angle_is_not_rounded_away():
    a, b = np.array([[1.0, 0.0]]), np.array([[1.0, 1e-10]])
    np.testing.assert_allclose(cosine_distances(a, b), [5e-21], rtol=1e-6)


def test_divergences_of_known_distributions():
    p, q = np.array([0.5, 0.25, 0.25, 0.0]), np.array([0.25, 0.25, 0.5, 0.0])
    with np.errstate(divide="ignore"):
        a, b = np.log(p) + 7, np.log(q) - 300  # logits have no zero point
    wanted = 0.5 * np.log(2) - 0.25 * np.log(2)
    np.testing.assert_allclose(kl_divergences(a[None], b[None]), [wanted], rtol=1e-12)
    # b gives no probability to what a does; no numbers on one side, and on both
    rows_a = np.array([[0, 0], [NAN, 0], [0, 0], [INF, 0], [-INF, -INF], [1, 2]])
    rows_b = np.array([[0, -INF], [0, 0], [0, INF], [NAN, 0], [0, 0], [1, 2]])
    np.testing.assert_array_equal(kl_divergences(rows_a, rows_b), [INF, INF, INF, NAN, INF, 0])
    assert top_tokens(rows_a).tolist() == [0, -1, 0, -1, -1, 1]


def test_huge_logits_do_not_overflow():
    a, b = np.array([[1e30, 0, -1e30]]), np.array([[1e30, 1e29, 0]])
    np.testing.assert_array_equal(kl_divergences(a, b), [0])


def test_rows_are_measured_alike_however_long_the_arrays_are(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50, 30)).astype(np.float32)
    whole = [f(a, b) for f in (relative_errors, cosine_distances, kl_divergences)]
    monkeypatch.setattr("loom_gguf.compare.measures._PIECE", 70)
    for measure, wanted in zip((relative_errors, cosine_distances, kl_divergences), whole, strict=True):
        np.testing.assert_array_equal(measure(a, b), wanted)
    assert top_tokens(a).tolist() == a.argmax(1).tolist()


def test_rows_without_numbers_do_not_hide_the_others():
    a = made({0: [[1, 0], [1, 0], [1, 0]], 1: [[1, 0], [NAN, 0], [1, 0]]})
    b = made({0: [[1, 0], [1, 0], [1, 0.5]], 1: [[1, 0], [NAN, 0], [1, INF]]})
    found = compare(a, b, threshold=1.0)
    np.testing.assert_array_equal(found.errors, [[0, 0, 0.5], [0, NAN, INF]])
    assert found.median_error.tolist() == [0, INF]
    assert found.max_error.tolist() == [0.5, INF]
    assert found.first_difference == "0"
    assert found.first_parting == "1"  # a row that only one side has in numbers is beyond every threshold
    assert found.largest_jump == "1"
    assert found.mean_cosine[1] == 1.0


def test_nothing_but_nan_is_no_difference_and_no_warning():
    states = made({0: [[NAN, 0]], 1: [[NAN, 1]]}, logits=[[NAN, 0]])
    found = compare(states, states)
    assert np.isnan(found.median_error).all()
    assert found.first_parting is found.first_difference is found.largest_jump is None
    assert found.identical
    assert found.top1_agreement == 0.0
    assert np.isnan(found.kl_statistics["mean"])


def test_constant_rows():
    a, b = made({0: np.ones((3, 4))}), made({0: np.full((3, 4), 2)})
    found = compare(a, b)
    assert found.errors.tolist() == [[1, 1, 1]]
    assert found.cosines.tolist() == [[1, 1, 1]]


def test_states_of_several_streams_count_as_one_vector():
    a = made({0: np.ones((2, 4, 8))})
    assert compare(a, made({0: np.ones((2, 4, 8)) * 1.5})).errors.tolist() == [[0.5, 0.5]]


NOTHING = States({}, Roles(1, {}, None, None), [0], [0])

# -- what both have ---------------------------------------------------------------------------------------------


def test_what_only_one_side_has_is_said():
    a, b = made({0: [[1.0]], 2: [[1.0]], 5: [[1.0]]}), made({0: [[1.0]], 3: [[1.0]], 5: [[1.0]]}, logits=[[1, 2]])
    found = compare(a, b)
    assert found.states == ("0", "5")
    assert any("only A has layer 2" in note for note in found.notes)
    assert any("only B has layer 3" in note for note in found.notes)
    assert any("A has no logits" in note for note in found.notes)
    assert found.kl is None


@pytest.mark.parametrize(
    ("a", "b", "error", "text"),
    [
        (made({0: [[1.0]]}), made({1: [[1.0]]}, n_layer=2), DifferentModelsError, "1 layers, B has 2"),
        (made({0: [[1.0]]}, n_layer=2), made({1: [[1.0]]}), NotCapturedError, "A has layer 0, B has layer 1"),
        (made({0: [[1.0]]}), made({0: [[1.0, 2.0]]}), DifferentModelsError, "1 values in A and 2 in B"),
        (made({0: [[1.0]]}), made({0: [[1.0], [1.0]]}), DifferentTokensError, "1 tokens, B of 2"),
        (made({0: [[1.0]]}), made({0: [[1.0]]}, tokens=[4]), DifferentTokensError, "token 0 .* and token 4"),
        (made({0: [[1.0]]}), made({0: [[1.0]]}, positions=[4]), DifferentTokensError, "position 0 .* position 4"),
        (made({0: np.ones((0, 2))}), made({0: np.ones((0, 2))}), ComparisonError, "no rows"),
        (made({0: [[1.0]]}, logits=[[1]]), made({0: [[1.0]]}, logits=[[1, 2]]), DifferentModelsError, "no-logits"),
        (NOTHING, made({0: [[1.0]]}), NotCapturedError, "hidden states"),
    ],
)
def test_states_that_cannot_be_compared(a, b, error, text):
    with pytest.raises(error, match=text):
        compare(a, b)


def test_states_have_tokens_of_their_own(llama):
    states = made({0: [[1.0]]})
    with pytest.raises(ComparisonError, match="tokens of their own"):
        compare(states, states, "a text")
    with pytest.raises(ComparisonError, match="tokens of their own"):
        compare(llama, llama.forward([1, 2], Capture.all_layers()), tokens=[1, 2])


def test_states_without_their_beginning_cannot_be_read_again(llama):
    states = llama.forward([1, 2, 3], EVERYTHING, keep="last")
    with pytest.raises(DifferentTokensError, match="from its beginning"):
        compare(llama, states)
    assert compare(states, states).identical


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_of_states_and_the_model_that_it_came_from(tmp_path, llama, suffix):
    states = llama.forward("a text", EVERYTHING)
    path = tmp_path / f"x{suffix}"
    states.save(path, metadata={**model_facts(llama), "token_texts": token_texts(llama, states.tokens)})
    for a, b in ((path, llama), (llama, str(path)), (path, states), (path, path)):
        found = compare(a, b)
        assert found.identical
        assert found.kl is not None
        assert found.tokens.tolist() == states.tokens
        if a is path:
            assert (found.a.name, found.a.facts["quantization"]) == (path.name, "F32")
            assert found.texts[states.tokens[-1]] == llama.token_text(states.tokens[-1]) or b is states


def test_a_file_of_another_vocabulary_is_refused(tmp_path, llama):
    states = llama.forward([65, 66], EVERYTHING)
    states.save(tmp_path / "x.safetensors", metadata={"token_texts": ["A", "not B"]})
    with pytest.raises(DifferentTokensError, match=r"token 66 is 'not B' in x\.safetensors and 'B' in llama\.gguf"):
        compare(tmp_path / "x.safetensors", llama)
    made({0: np.ones((1, 64))}, tokens=[10**6], n_layer=3).save(
        tmp_path / "y.safetensors", metadata={"token_texts": ["x"]}
    )
    with pytest.raises(DifferentTokensError, match="token 1000000"):
        compare(llama, tmp_path / "y.safetensors")


# -- PyTorch ----------------------------------------------------------------------------------------------------


def torch_arrays(name, *, batch=False):
    """What a user of Hugging Face's transformers would write."""
    truth = torch_says(name)
    arrays = {f"hidden_states.{i}": h for i, h in enumerate(truth["hidden_states"])}
    arrays |= {"tokens": truth["tokens"].astype(np.int64), "logits": truth["logits"]}
    return {key: np.ascontiguousarray(array[None] if batch else array) for key, array in arrays.items()}


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2"])
def test_pytorch_and_the_gguf_file_of_the_same_weights(tmp_path, shared, name, batch):
    save_file(torch_arrays(name, batch=batch), tmp_path / "torch.safetensors")
    found = compare(tmp_path / "torch.safetensors", shared(name))
    n_layer = len(torch_says(name)["block_outputs"])
    assert found.states == ("embedding", *map(str, range(n_layer - 1)), "final")
    assert any(f"only B has layer {n_layer - 1}" in note for note in found.notes)
    limit = 3e-3 if name in GELU else 1e-5
    assert found.max_error.max() < limit
    assert found.first_parting is None
    assert found.kl.max() < limit
    assert found.top1_agreement == 1.0
    assert compare(tmp_path / "torch.safetensors", shared(name), threshold=1e-9).first_parting is not None


def test_pytorch_finds_a_layer_that_is_off(tmp_path, llama):
    arrays = torch_arrays("llama")
    arrays["hidden_states.2"] = arrays["hidden_states.2"] * np.float32(1.1)
    save_file(arrays, tmp_path / "torch.safetensors")
    found = compare(llama, tmp_path / "torch.safetensors")
    assert found.first_parting == found.largest_jump == "1"
    assert found.errors[2] == pytest.approx(0.1, rel=1e-3)


def test_pytorch_states_read_as_states(tmp_path):
    arrays = torch_arrays("llama")
    save_file(arrays | {"more": np.zeros(3)}, tmp_path / "torch.safetensors")
    states = States.load(tmp_path / "torch.safetensors")
    assert states.n_layer == 3
    assert states.layers == [0, 1]
    np.testing.assert_array_equal(states.embedding, arrays["hidden_states.0"])
    np.testing.assert_array_equal(states.layer(1), arrays["hidden_states.2"])
    np.testing.assert_array_equal(states.final, arrays["hidden_states.3"])
    np.testing.assert_array_equal(states["result_output"], arrays["logits"])
    assert states.tokens == arrays["tokens"].tolist()
    assert states.positions == list(range(24))


def test_half_precision_becomes_float32(tmp_path):
    arrays = torch_arrays("llama")
    halves = {key: array.astype(np.float16) if key != "tokens" else array for key, array in arrays.items()}
    save_file(halves, tmp_path / "half.safetensors")
    states = States.load(tmp_path / "half.safetensors")
    assert states.final.dtype == np.float32
    np.testing.assert_array_equal(states.final, halves["hidden_states.3"])


def test_bfloat16_becomes_float32(tmp_path):
    """numpy lacks it: the file is put together by hand, as the format says."""
    import json
    import struct

    rows = np.array([[1.0, -2.5], [3.140625, 1e-38]], np.float32)
    bits = (rows.view(np.uint32) >> 16).astype("<u2")
    tokens = np.array([7, 8], "<i8").tobytes()
    header, data = {"tokens": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}, tokens
    for i in range(2):
        header[f"hidden_states.{i}"] = {
            "dtype": "BF16",
            "shape": [1, 2, 2],
            "data_offsets": [len(data), len(data) + 8],
        }
        data += bits.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    states = States.load(tmp_path / "b.safetensors")
    np.testing.assert_array_equal(states.embedding, (bits.astype(np.uint32) << 16).view(np.float32))
    assert states.embedding[0].tolist() == [1.0, -2.5]
    assert states.tokens == [7, 8]


ROWS = np.ones((2, 4), np.float32)
TOKENS = np.array([1, 2])


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"hidden_states.0": ROWS, "hidden_states.1": ROWS}, "`tokens` is missing"),
        ({"hidden_states.0": ROWS, "tokens": TOKENS}, "hidden_states.1 is missing"),
        ({"hidden_states.0": ROWS, "hidden_states.2": ROWS, "tokens": TOKENS}, "hidden_states.1 is missing"),
        ({"hidden_states.1": ROWS, "tokens": TOKENS}, "hidden_states.0 is missing"),
        ({"hidden_states.0": ROWS, "hidden_states.1": ROWS[:, :2].copy(), "tokens": TOKENS}, "has shape"),
        ({"hidden_states.0": ROWS, "hidden_states.1": ROWS, "tokens": TOKENS[:1]}, "2 rows for 1 tokens"),
        ({"hidden_states.0": ROWS, "hidden_states.1": ROWS, "tokens": TOKENS * 1.0}, "integers, not float64"),
        ({"hidden_states.0": ROWS.astype(np.int32), "hidden_states.1": ROWS, "tokens": TOKENS}, "floats, not int32"),
        ({"hidden_states.0": np.stack([ROWS] * 2), "hidden_states.1": ROWS, "tokens": TOKENS}, "without padding"),
        ({"hidden_states.0": ROWS, "hidden_states.1": ROWS, "tokens": TOKENS, "logits": ROWS[0]}, "logits has shape"),
        ({"hidden_states.0": ROWS > 0, "hidden_states.1": ROWS, "tokens": TOKENS}, "type BOOL"),
        ({"something": ROWS}, "hidden_states.0 to hidden_states.N"),
    ],
)
def test_files_that_are_not_as_they_should_be(tmp_path, arrays, text):
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(StatesFileError, match=text):
        States.load(tmp_path / "x.safetensors")


def test_the_fidelity_oracles_own_file_says_what_it_lacks():
    with pytest.raises(StatesFileError, match=r"hidden_states\.0 to hidden_states\.N"):
        compare(FIDELITY / "llama.safetensors", fidelity_file("llama"))
