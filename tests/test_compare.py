"""Comparisons of two models: a planted difference is found where it is, rounding where it should be."""

import ctypes
import shutil

import numpy as np
import pytest
from oracle import FIDELITY, fidelity_file, torch_says

from loom_gguf import (
    Capture,
    ComparisonError,
    DifferentModelsError,
    DifferentTokensError,
    LoomError,
    Model,
    ModelNotFoundError,
    NoVocabularyError,
    TokenError,
)
from loom_gguf._native import lib
from loom_gguf.compare import DEFAULT_PROMPTS, compare
from loom_gguf.gguf_file import read_gguf
from loom_gguf.library import demo_path

EXACT = {"precision": "exact", "n_threads": 1}
FAST = {"n_threads": 1}
BLOCK_WEIGHT = {
    "llama": "ffn_down",
    "gemma2": "ffn_down",
    "gpt2": "ffn_up",
    "mamba": "ssm_out",
    "olmo2": "attn_output",
}
PLANTED = [(name, il) for name in BLOCK_WEIGHT for il in range(len(torch_says(name)["block_outputs"]))]


def tokens_of(name):
    return torch_says(name)["tokens"].tolist()


def planted(tmp_path, name, tensor, row=0, change=8.0):
    """A copy of a fidelity model with one float32 weight changed: the first of this row of a tensor."""
    path = tmp_path / f"{name}-planted.gguf"
    shutil.copy(fidelity_file(name), path)
    (info,) = [info for info in read_gguf(path).tensors if info.name == tensor]
    assert info.type == "f32"
    width = info.shape[-1] if len(info.shape) > 1 else 1
    with path.open("r+b") as file:
        file.seek(info.offset + 4 * width * row)
        (weight,) = np.frombuffer(file.read(4), "<f4")
        file.seek(-4, 1)
        file.write(np.float32(weight + change).tobytes())
    return path


def exactly(a, b, tokens, **more):
    return compare(a, b, tokens=tokens, a_options=EXACT, b_options=EXACT, **more)


# -- where they part --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "il"), PLANTED)
def test_one_changed_weight_of_a_block_is_found_at_that_block(tmp_path, name, il):
    path = planted(tmp_path, name, f"blk.{il}.{BLOCK_WEIGHT[name]}.weight")
    found = exactly(fidelity_file(name), path, tokens_of(name))
    assert found.first_parting == found.first_difference == str(il)
    before = found.states.index(str(il))
    assert not found.errors[:before].any()
    assert not found.cosine_distances[:before].any()
    assert found.errors[before:].any(axis=1).all()
    assert found.kl_statistics["max"] > 0
    assert not found.identical


@pytest.mark.parametrize("il", [0, 1, 2])
def test_the_largest_jump_is_at_the_changed_block(tmp_path, il):
    found = exactly(fidelity_file("llama"), planted(tmp_path, "llama", f"blk.{il}.ffn_down.weight"), tokens_of("llama"))
    assert found.largest_jump == str(il)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_changed_embedding_is_found_there_and_in_its_token_alone(tmp_path, name):
    tokens = tokens_of(name)
    path = planted(tmp_path, name, "token_embd.weight", row=tokens[5])
    found = exactly(fidelity_file(name), path, tokens)
    assert found.first_parting == found.first_difference == "embedding"
    assert (found.errors[0] > 0).tolist() == [token == tokens[5] for token in tokens]
    assert not found.errors[:, :5].any()  # no token sees those after it
    assert not found.errors[0, 0] > 0


def test_a_changed_final_norm_is_found_at_final_and_a_changed_output_matrix_only_in_the_logits(tmp_path):
    tokens = tokens_of("llama")
    found = exactly(fidelity_file("llama"), planted(tmp_path, "llama", "output_norm.weight"), tokens)
    assert found.first_parting == "final"
    found = exactly(fidelity_file("llama"), planted(tmp_path, "llama", "output.weight", row=7), tokens)
    assert found.first_parting is found.first_difference is found.largest_jump is None
    assert not found.identical
    assert found.kl.min() > 0


def test_the_threshold_tells_a_changed_weight_from_another_way_of_computing(tmp_path):
    path = planted(tmp_path, "llama", "blk.1.ffn_down.weight")
    found = compare(fidelity_file("llama"), path, tokens=tokens_of("llama"), a_options=EXACT, b_options=FAST)
    assert found.first_parting == "1"
    assert found.first_difference == "0"
    assert found.first_above(10.0) is None


def test_a_small_change_needs_a_small_threshold(tmp_path):
    path = planted(tmp_path, "llama", "blk.1.ffn_down.weight", change=1e-3)
    found = exactly(fidelity_file("llama"), path, tokens_of("llama"))
    assert found.first_parting is None
    assert found.first_difference == "1"
    assert exactly(fidelity_file("llama"), path, tokens_of("llama"), threshold=1e-6).first_parting == "1"


@pytest.mark.parametrize("name", ["llama", "llama-q4_0", "bert", "lfm2"])
def test_a_file_and_itself_never_part(name):
    tokens = tokens_of(name.split("-")[0])
    found = compare(fidelity_file(name), fidelity_file(name), tokens=tokens, a_options=FAST, b_options=FAST)
    assert found.identical
    assert not found.errors.any()
    np.testing.assert_array_equal(found.cosines, 1.0)
    assert found.first_parting is found.first_difference is found.largest_jump is None
    if name == "bert":
        assert found.kl is found.top1_agreement is found.kl_statistics is None
        assert any("encoder" in note for note in found.notes)
    else:
        assert not found.kl.any()
        assert found.top1_agreement == 1.0
        assert found.notes == ()


# -- quantization -----------------------------------------------------------------------------------------------


def quantized(path, kind):
    """The demo model through llama.cpp's own quantizer, every matrix in the same type."""
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1, True
    assert lib.llama_model_quantize(str(demo_path()).encode(), str(path).encode(), ctypes.byref(params)) == 0
    return path


def test_coarser_weights_are_farther_off_at_every_layer(tmp_path):
    fine, coarse = (
        compare("demo", quantized(tmp_path / f"{kind}.gguf", kind), a_options=EXACT, b_options=EXACT)
        for kind in ("Q8_0", "Q4_0")
    )
    assert fine.states == ("embedding", *map(str, range(8)), "final")
    assert len(fine.tokens) > 300
    assert (fine.a.facts["quantization"], fine.b.facts["quantization"]) == ("F16", "Q8_0")
    for measure in ("median_error", "mean_error", "max_error"):
        assert (getattr(fine, measure) > 0).all()
        assert (getattr(coarse, measure) > 4 * getattr(fine, measure)).all(), measure
    assert (coarse.mean_cosine < fine.mean_cosine).all()
    assert (coarse.min_cosine < fine.min_cosine).all()
    assert 0 < fine.kl_statistics["mean"] < coarse.kl_statistics["mean"] / 10
    assert 1 > fine.top1_agreement > coarse.top1_agreement > 0.5


# -- the same numbers as computed otherwise ---------------------------------------------------------------------


def test_every_number_is_that_of_an_independent_computation(shared):
    """In extended precision, row by row, from the rows that Model.forward gives."""
    a, b, tokens = shared("llama"), shared("llama-q4_0"), tokens_of("llama")
    found = compare(a, b, tokens=tokens)
    everything = Capture.all_layers(embedding=True, final=True) | Capture.names(["result_output"])
    ours, theirs = a.forward(tokens, everything), b.forward(tokens, everything)
    pairs = [(ours.embedding, theirs.embedding)]
    pairs += [(ours.layer(il), theirs.layer(il)) for il in range(a.n_layer)]
    pairs += [(ours.final, theirs.final)]
    for s, (xs, ys) in enumerate(pairs):
        for r, (x, y) in enumerate(zip(xs.astype(np.longdouble), ys.astype(np.longdouble), strict=True)):
            error = np.sqrt(((x - y) ** 2).sum()) / np.sqrt((x**2).sum())
            cosine = (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())
            assert found.errors[s, r] == pytest.approx(float(error), rel=1e-12)
            assert found.cosines[s, r] == pytest.approx(float(cosine), rel=1e-12)
    logits = [states["result_output"].astype(np.longdouble) for states in (ours, theirs)]
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(1).astype(float), rtol=1e-9)
    same = [np.argmax(x) == np.argmax(y) for x, y in zip(*logits, strict=True)]
    assert found.same_top1.tolist() == same
    assert found.top1_agreement == np.mean(same)
    assert 0 < found.top1_agreement < 1
    assert found.tokens.tolist() == tokens
    assert found.positions.tolist() == list(range(len(tokens)))


def test_statistics_over_the_rows(shared):
    found = compare(shared("llama"), shared("llama-q8_0"), tokens=tokens_of("llama"))
    np.testing.assert_allclose(found.median_error, np.median(found.errors, axis=1))
    np.testing.assert_allclose(found.mean_error, found.errors.mean(1))
    np.testing.assert_array_equal(found.max_error, found.errors.max(1))
    np.testing.assert_array_equal(found.worst_rows, found.errors.argmax(1))
    np.testing.assert_allclose(found.mean_cosine, found.cosines.mean(1))
    np.testing.assert_allclose(found.min_cosine, found.cosines.min(1))
    assert found.median_error.min() > found.median_error.max() / 100
    np.testing.assert_allclose(found.growth[1:], found.median_error[1:] / found.median_error[:-1])
    np.testing.assert_allclose(found.growth[0], 100 * found.median_error[0] / found.median_error.max())
    assert (found.error_quantile(0.1) <= found.median_error).all()
    assert (found.error_quantile(0.9) >= found.median_error).all()
    assert found.kl_statistics["mean"] == pytest.approx(found.kl.mean())
    assert found.kl_statistics["max"] == found.kl.max()


# -- what is read -----------------------------------------------------------------------------------------------


def test_several_prompts_stand_after_one_another(shared):
    model = shared("llama")
    found = compare(model, shared("llama-q8_0"), ["one", "two three"])
    one, two = model.tokenize("one"), model.tokenize("two three")
    assert found.tokens.tolist() == one + two
    assert found.prompts.tolist() == [0] * len(one) + [1] * len(two)
    assert found.positions.tolist() == [*range(len(one)), *range(len(two))]
    assert found.texts[one[0]] == model.token_text(one[0])
    alone = compare(model, shared("llama-q8_0"), "two three")
    np.testing.assert_array_equal(found.errors[:, len(one) :], alone.errors)
    np.testing.assert_array_equal(found.kl[len(one) :], alone.kl)


def test_texts_of_its_own_are_read_where_none_are_given():
    found = compare("demo", "demo", a_options=FAST, b_options=FAST)
    assert found.prompts[-1] + 1 == len(DEFAULT_PROMPTS)


def test_one_token(shared):
    found = compare(shared("llama"), shared("llama-q4_0"), tokens=[7])
    assert found.errors.shape[1] == 1
    assert found.median_error[1] == found.errors[1, 0] > 0


def test_one_model_at_a_time_gives_the_same_numbers(tmp_path):
    calls = []
    how = {"tokens": [tokens_of("llama"), [1, 2, 3]], "a_options": EXACT, "b_options": EXACT}
    a, b = fidelity_file("llama"), fidelity_file("llama-q4_0")
    together = compare(a, b, **how, one_at_a_time=False, progress=lambda *call: calls.append(call))
    apart = compare(a, b, **how, one_at_a_time=True, progress=lambda *call: calls.append(call))
    np.testing.assert_array_equal(together.errors, apart.errors)
    np.testing.assert_array_equal(together.kl, apart.kl)
    assert (together.texts, together.a, together.b) == (apart.texts, apart.a, apart.b)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2


def test_the_first_model_is_closed_before_the_second_is_opened(monkeypatch):
    opened, most = [], []

    class Counted(Model):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            opened.append(self)
            most.append(len(opened))

        def close(self):
            super().close()
            opened[:] = [model for model in opened if model is not self]

    monkeypatch.setattr("loom_gguf.compare.sides.Model", Counted)
    for apart, wanted in ((True, 1), (False, 2)):
        most.clear()
        how = {"a_options": FAST, "b_options": FAST, "one_at_a_time": apart}
        compare(fidelity_file("llama"), fidelity_file("llama"), tokens=[1], **how)
        assert max(most) == wanted
        assert not opened
    monkeypatch.setattr("loom_gguf.compare.sides.available_bytes", lambda: 10**5)
    most.clear()
    compare(fidelity_file("llama"), fidelity_file("llama"), tokens=[1], a_options=FAST, b_options=FAST)
    assert max(most) == 1


def test_hidden_states_alone(shared):
    found = compare(shared("llama"), shared("llama-q8_0"), tokens=[1, 2], logits=False)
    assert found.kl is found.top_a is found.same_top1 is None
    assert found.errors.any()


# -- what cannot be compared ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "how", "error", "text"),
    [
        ("llama", "gemma2", {"prompts": "a"}, DifferentModelsError, "3 layers, gemma2.gguf has 4"),
        ("llama", "mixtral", {"tokens": [5]}, DifferentModelsError, "64 values in a hidden state, mixtral.gguf has 32"),
        ("llama", "bert", {"prompts": "a"}, DifferentTokensError, "320 and 146 tokens"),
        ("llama", "llama-no-vocab", {"prompts": "a"}, DifferentTokensError, "no vocabulary .* Give token ids"),
        ("llama-no-vocab", "llama", {"prompts": "a"}, NoVocabularyError, "token ids"),
        ("llama", "llama", {"tokens": [5, 10**6]}, TokenError, "1000000"),
        ("llama", "llama", {"prompts": "a", "tokens": [1]}, ComparisonError, "both given"),
        ("llama", "llama", {"prompts": []}, ComparisonError, "at least one"),
        ("llama", "llama", {"tokens": [[1], []]}, LoomError, "empty"),
        ("llama", "llama", {"tokens": [1], "threshold": -1}, ComparisonError, "threshold"),
        ("llama", "llama", {"tokens": [1], "threshold": float("nan")}, ComparisonError, "threshold"),
    ],
)
def test_two_models_that_cannot_be_compared(a, b, how, error, text):
    with pytest.raises(error, match=text):
        compare(fidelity_file(a), fidelity_file(b), a_options=FAST, b_options=FAST, **how)


def test_a_vocabulary_with_one_other_token_is_refused_but_for_token_ids(tmp_path):
    path = tmp_path / "other.gguf"
    data = fidelity_file("llama").read_bytes()
    name = b"\x01\x00\x00\x00\x00\x00\x00\x00Z"  # a string of length 1: the token of the byte Z
    assert data.count(name) == 1
    path.write_bytes(data.replace(name, name[:-1] + b"\x01"))
    with pytest.raises(DifferentTokensError, match=r"different vocabularies .*token 90 is 'Z' and '.x01'"):
        compare(fidelity_file("llama"), path, "a")
    assert compare(fidelity_file("llama"), path, tokens=[90], a_options=FAST, b_options=FAST).identical


def test_open_models_cannot_be_opened_otherwise(llama):
    with pytest.raises(TypeError, match="b_options"):
        compare(llama, llama, tokens=[1], b_options=EXACT)


def test_missing_files():
    with pytest.raises(ModelNotFoundError):
        compare(FIDELITY / "none.gguf", "demo")
    with pytest.raises(LoomError, match=r"no file .*none\.safetensors"):
        compare("demo", FIDELITY / "none.safetensors")


def test_models_of_other_sizes_that_are_open_already(shared):
    with pytest.raises(DifferentModelsError, match=r"layers|values"):
        compare(shared("llama"), shared("gpt2"), tokens=[1])
