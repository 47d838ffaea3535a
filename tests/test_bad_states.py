"""What analyze, compare and lens make of states that lack something: a clear error, or a defined value."""

import json
import math

import numpy as np
import pytest
from oracle import fidelity_file

from loom_gguf import (
    Capture,
    ComparisonError,
    DifferentModelsError,
    DifferentTokensError,
    NotCapturedError,
    States,
    StatesError,
)
from loom_gguf.analysis import analyze
from loom_gguf.analysis.export import save_analyses
from loom_gguf.cli import main
from loom_gguf.compare import compare
from loom_gguf.lens import lens
from loom_gguf.states import NodeValues, Roles

TOKENS = [7, 20, 31, 20, 5]


def without_nodes(states):
    return States({"Qcur-0": NodeValues(states.final, 0)}, Roles(3, {}, None, None), states.tokens, states.positions)


def of_one_layer(states):
    roles = Roles(3, {0: "l_out-0"}, None, None)
    return States({"l_out-0": NodeValues(states.layer(0), 0)}, roles, states.tokens, states.positions)


def cut(states, rows=slice(None), columns=slice(None)):
    values = {key: NodeValues(value.array[rows, columns], 0) for key, value in states.values_by_key.items()}
    return States(values, states.roles, states.tokens[rows], states.positions[rows])


def of_tokens(tokens):
    return lambda states: States(dict(states.values_by_key), states.roles, tokens, states.positions)


def filled(number, row=slice(None)):
    def change(states):
        array = states.values_by_key["l_out-1"].array.copy()
        array[row] = number
        return states.with_numbers({**{k: v.array for k, v in states.values_by_key.items()}, "l_out-1": array})

    return change


CHANGES = {
    "without hidden states": without_nodes,
    "of one layer alone": of_one_layer,
    "half as wide": lambda states: cut(states, columns=slice(32)),
    "without rows": lambda states: cut(states, rows=slice(0)),
    "of one token": lambda states: cut(states, rows=slice(1)),
    "of other tokens": of_tokens([7, 20, 31, 20, 6]),
    "of a token beyond the vocabulary": of_tokens([7, 20, 31, 20, 320]),
    "of constant rows": filled(0.5),
    "of zeros": filled(0),
    "with NaN": filled(np.nan, row=2),
    "with Inf": filled(np.inf, row=2),
    "of nothing but NaN": filled(np.nan),
}

# What each says of them beside the whole states; not here: it has numbers for them.
REFUSED = {
    ("without hidden states", "analyze"): (NotCapturedError, "no hidden states (embedding, layers or final)"),
    ("without hidden states", "compare"): (NotCapturedError, "no hidden states (embedding, layers or final)"),
    ("without hidden states", "lens"): (NotCapturedError, "no hidden states (embedding, layers or final)"),
    ("of one layer alone", "analyze"): (StatesError, "capture the same ones of one model"),
    ("of one layer alone", "lens"): (NotCapturedError, "capture with final=True"),
    ("half as wide", "analyze"): (StatesError, "rows of 32 values, that of text 1 of 64: they are of different models"),
    ("half as wide", "compare"): (DifferentModelsError, "64 values in A and 32 in B: only states of the same model"),
    ("half as wide", "lens"): (StatesError, "not of llama.gguf: they have 3 layers and rows of 32 values"),
    ("without rows", "analyze"): (StatesError, "has 0 rows"),
    ("without rows", "compare"): (ComparisonError, "rows"),
    ("without rows", "lens"): (StatesError, "capture at least one token"),
    ("of one token", "compare"): (DifferentTokensError, "A has rows of 5 tokens, B of 1"),
    ("of other tokens", "compare"): (
        DifferentTokensError,
        "token 5 at position 4 in A, and token 6 at position 4 in B",
    ),
    ("of a token beyond the vocabulary", "compare"): (DifferentTokensError, "token 320 at position 4 in B"),
    ("of a token beyond the vocabulary", "lens"): (StatesError, "they have token 320, but its ids end at 319"),
}
# Side by side in one report they may differ; each of the two files is whole in itself.
DIFFERENT_SOURCES = {"of one layer alone", "half as wide"}


@pytest.fixture(scope="module")
def whole(shared):
    return shared("llama").forward(TOKENS, Capture.all_layers(embedding=True, final=True))


def found_by(tool, model, whole, states):
    if tool == "analyze":
        return analyze([whole, states])
    return compare(whole, states) if tool == "compare" else lens(model, states)


def strict(text):
    """JSON as everybody reads it, without NaN."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("tool", ["analyze", "compare", "lens"])
@pytest.mark.parametrize("name", CHANGES)
def test_an_error_that_says_what_is_wrong_or_numbers(name, tool, whole, llama, tmp_path, capsys, monkeypatch):
    states = CHANGES[name](whole)
    error, said = REFUSED.get((name, tool), (None, ""))
    if error is not None:
        with pytest.raises(error) as caught:
            found_by(tool, llama, whole, states)
        assert said in str(caught.value)
    else:
        found = found_by(tool, llama, whole, states)
        for kind in ("json", "csv"):
            found.save(f"x.{kind}")
        assert strict((tmp_path / "x.json").read_text())
        assert "nan" not in (tmp_path / "x.csv").read_text().lower()

    # The command, on files of the same states.
    for file, each in (("whole.safetensors", whole), ("other.npz", states)):
        each.save(file)
    files = ["--states", "other.npz"] if tool == "lens" else ["other.npz"]
    first = str(fidelity_file("llama")) if tool == "lens" else "whole.safetensors"
    status = main([tool, first, *files, "--json"])
    out, err = capsys.readouterr()
    if error is None or (tool == "analyze" and name in DIFFERENT_SOURCES):
        assert (status, err) == (0, "")
        assert strict(out)
    else:
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert said.split(",")[0] in err


def test_the_defined_values(whole, llama):
    """What stands where a row has no number, or only one."""
    one = cut(whole, rows=slice(1))
    assert [layer.d_eff_pca90 for layer in analyze(one).layers] == [0] * 5
    assert math.isnan(analyze(one).layers[1].anisotropy)
    assert compare(one, one).identical
    assert lens(llama, one).kl.shape == (5, 1)

    constant = CHANGES["of constant rows"](whole)
    assert analyze(constant).layers[2].anisotropy == pytest.approx(1)
    assert np.isfinite(compare(whole, constant).errors).all()
    assert (lens(llama, constant).top_ids[2] == lens(llama, constant).top_ids[2, 0]).all()

    zeros = CHANGES["of zeros"](whole)
    assert (compare(whole, zeros).errors[2] == 1).all()
    assert np.isinf(compare(zeros, whole).errors[2]).all()
    assert analyze(zeros).layers[2].norm_max == 0

    for name in ("with NaN", "with Inf"):
        spoilt = CHANGES[name](whole)
        assert [layer.n_nonfinite for layer in analyze(spoilt).layers] == [0, 0, 64, 0, 0]
        assert np.isinf(compare(whole, spoilt).errors).tolist() == [
            [s == 2 and r == 2 for r in range(5)] for s in range(5)
        ]
        read = lens(llama, spoilt)
        assert np.isnan(read.kl).tolist() == [[s == 2 and r == 2 for r in range(5)] for s in range(5)]


@pytest.mark.usefixtures("small_pictures")
def test_pictures_and_pages_of_what_has_no_numbers(whole, llama):
    for name in ("with NaN", "of nothing but NaN", "of zeros"):
        states = CHANGES[name](whole)
        save_analyses([analyze(states)], "analysis.html")
        compare(whole, states).save("comparison.html")
        for kind in ("html", "png"):
            lens(llama, states).save(f"lens.{kind}", measure="kl")
