"""Linear probes: they find what is there, and nothing where nothing is."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from loom_gguf import Capture, LabelledFileError, LabelsError, MissingPackageError, Model, PromptError, StatesFileError
from loom_gguf.cli import main
from loom_gguf.probes import Features, collect_rows, draw_curves, probe_layers, read_labelled
from loom_gguf.probes.crossval import interval

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from probe_demo import PROBES, beginnings

LABELS = ["red", "green", "blue"]


def planted(n=150, e=40, strength=4.0, states=4, at=(2,), seed=0):
    """Noise (n, states, e) with three labels, which shift it along known directions at the states `at`."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3)
    values = rng.standard_normal((n, states, e)).astype(np.float32)
    directions = np.linalg.qr(rng.standard_normal((e, 3)))[0].T
    for s in at:
        values[:, s] += strength * directions[labels]
    # Scales and offsets of real models' features: some a thousand times the others.
    values = values * rng.choice([0.01, 1, 1000], e) + rng.standard_normal(e) * 10
    return values.astype(np.float32), [LABELS[i] for i in labels]


@pytest.fixture(autouse=True)
def _one_thread():
    """The oracle's small fits are as slow with several threads of a BLAS as the package's own."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


@pytest.fixture(scope="module")
def model():
    with Model("demo", n_threads=1, n_ctx=512) as model:
        yield model


# -- what it finds ----------------------------------------------------------------------------------------------


def test_a_planted_feature_is_found_where_it_is_and_a_shuffled_one_nowhere():
    values, labels = planted(at=(2,))
    result = probe_layers(values, labels, repeats=2)
    assert result.best == "2"
    assert result.accuracy[2] > 0.95
    assert result.known_from == "2"
    others = [0, 1, 3]
    assert (result.low[others] < result.chance).all()
    assert (result.accuracy[others] < 0.5).all()
    assert (np.abs(result.control - 1 / 3) < 0.12).all()
    assert result.selectivity[2] > 0.5
    assert result.chance == pytest.approx(1 / 3)
    assert not result.unfinished.any()


def test_far_more_features_than_texts_do_not_help_with_noise():
    rng = np.random.default_rng(1)
    values = rng.standard_normal((60, 2, 1500)).astype(np.float32)
    labels = np.arange(60) % 2
    result = probe_layers(values, labels, repeats=2)
    # Any leak from test to training texts would be blown up to an accuracy near 1 here.
    assert (np.abs(result.accuracy - 0.5) < 0.2).all()
    assert result.known_from is None
    assert (result.low < 0.5).all()


def test_the_accuracy_is_scikit_learns_own():
    values, labels = planted(strength=1.5, states=2, at=(1,))
    result = probe_layers(values, labels, folds=4, repeats=2, c=0.1, seed=5)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    for s in range(2):
        scores = np.concatenate(
            [
                cross_val_score(
                    pipeline,
                    values[:, s].astype(np.float64),
                    labels,
                    cv=StratifiedKFold(4, shuffle=True, random_state=5 + repeat),
                )
                for repeat in range(2)
            ]
        )
        assert result.accuracy[s] == pytest.approx(scores.mean(), abs=0.01)


def test_the_scale_of_features_comes_from_training_texts_alone():
    labels = np.arange(80) % 2
    values = (2 * labels - 1 + 0.1 * np.random.default_rng(0).standard_normal(80)).astype(np.float32)
    values[0] = 1e9
    result = probe_layers(values[:, None, None], labels, folds=2, repeats=1)
    # Where the outlier is a test text the label is plain; in the scale of all texts it would be invisible everywhere.
    assert result.accuracy[0] > 0.7


def test_groups_are_never_split():
    """Every group has a fingerprint and a label at random: only texts of the same group could tell it."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(30), 5)
    label = rng.permutation(np.arange(30) % 2)[group]
    values = rng.standard_normal((30, 64))[group][:, None] + 0.01 * rng.standard_normal((150, 1, 64))
    assert probe_layers(values, label).accuracy[0] > 0.95
    grouped = probe_layers(values, label, groups=group)
    assert grouped.accuracy[0] < 0.75
    assert grouped.n_groups == 30
    # The control exchanges the labels of whole groups; single texts' labels would hide the fingerprints.
    assert abs(grouped.control[0] - 0.5) < 0.25


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    values, labels = planted(strength=1)
    first, again, other = (probe_layers(values, labels, seed=seed, repeats=1) for seed in (3, 3, 4))
    assert first.to_dict() == again.to_dict()
    assert not np.array_equal(first.accuracy, other.accuracy)
    assert not np.array_equal(first.control, other.control)


def test_features_that_do_not_vary_tell_nothing():
    values, labels = planted(states=1, at=())
    values[:] = values[:1]
    result = probe_layers(values, labels, repeats=1)
    assert result.accuracy[0] == pytest.approx(1 / 3, abs=0.05)


# -- the interval -----------------------------------------------------------------------------------------------


def test_the_interval_is_nadeau_and_bengios_where_folds_differ():
    scores = np.array([0.5, 0.9, 0.7, 0.6, 0.8])
    low, high = interval(scores, 10_000, folds=5, confidence=0.95)
    # t(4 degrees of freedom, 97.5 %) = 2.776445; s² = 0.025; s² (1/5 + 1/4) = 0.01125
    assert (low, high) == pytest.approx((0.7 - 2.776445 * 0.01125**0.5, 0.7 + 2.776445 * 0.01125**0.5), abs=1e-5)


def test_the_interval_is_wilsons_where_all_folds_agree():
    low, high = interval(np.ones(5), 100, folds=5, confidence=0.95)
    assert (low, high) == pytest.approx((100 / (100 + 1.959964**2), 1.0), abs=1e-6)
    low, high = interval(np.full(5, 0.5), 100, folds=5, confidence=0.95)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-4)  # as tables of Wilson's interval have it


# -- what cannot be probed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a"] * 30}, "all texts have the label 'a'"),
        ({"labels": ["a"] * 27 + ["b"] * 3}, "only 3 texts have the label 'b'"),
        ({"labels": ["a"] * 29}, "29 labels for 30 texts"),
        ({"groups": [1] * 29}, "29 groups for 30 texts"),
        ({"groups": [1, 2, 3] * 10}, "3 groups cannot be split into 5 folds"),
        ({"groups": [0] * 15 + list(range(1, 16))}, "all texts of the label 'a' are in one group"),
        ({"features": np.ones((30, 4))}, "features are numbers of shape"),
        ({"features": np.ones((30, 0, 4))}, "features are numbers of shape"),
        ({"features": np.array([["x"] * 2] * 30)[:, None]}, "features are numbers of shape"),
    ],
)
def test_what_cannot_be_probed_is_said(change, message):
    given = {"features": np.ones((30, 1, 4)), "labels": ["a"] * 15 + ["b"] * 15, "groups": None, **change}
    with pytest.raises(LabelsError, match=message):
        probe_layers(given["features"], given["labels"], groups=given["groups"])


@pytest.mark.parametrize("bad", [{"folds": 1}, {"folds": 2.0}, {"repeats": 0}, {"c": 0}, {"c": float("nan")},
                                 {"confidence": 1}])  # fmt: skip
def test_settings_out_of_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        probe_layers(np.ones((30, 1, 4)), ["a", "b"] * 15, **bad)


def test_nan_is_named():
    values, labels = planted(states=2, at=())
    values[7, 1, 3] = np.nan
    with pytest.raises(LabelsError, match="text 8 at state final"):
        probe_layers(Features(values, ("0", "final")), labels)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    values, labels = planted()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"pip install scikit-learn.*\[study\]") as caught:
        probe_layers(values, labels)
    assert isinstance(caught.value, ImportError)


# -- rows of texts ----------------------------------------------------------------------------------------------

TEXTS = ["A fox named Finn lived at the mill.", "It was a wet day.", "Two hens"]


def test_features_are_the_models_own_rows(model):
    everything = Capture.all_layers(embedding=True, final=True)
    states = [model.forward(text, everything) for text in TEXTS]
    expected = [[s.embedding, *(s.layer(i) for i in range(8)), s.final] for s in states]
    pools = {
        "last_token": lambda rows: rows[-1],
        "first_token": lambda rows: rows[0],
        "mean": lambda rows: rows.mean(axis=0),
        "max": lambda rows: rows.max(axis=0),
        2: lambda rows: rows[2],
        -2: lambda rows: rows[-2],
    }
    for pooling, pool in pools.items():
        features = collect_rows(model, TEXTS, pooling)
        assert features.states == ("embedding", *map(str, range(8)), "final")
        assert features.values.dtype == np.float32
        rows = np.array([[pool(array) for array in text] for text in expected])
        np.testing.assert_allclose(features.values, rows, rtol=1e-2, atol=2e-2)
        assert features.facts["pooling"] == pooling
    assert "3 texts" in repr(features)


def test_a_choice_of_states_and_progress(model):
    seen = []
    features = collect_rows(model, TEXTS, capture=Capture.layers([5, -1]), progress=lambda *done: seen.append(done))
    assert features.states == ("5", "7")
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_texts_that_cannot_be_read_are_named(model):
    with pytest.raises(PromptError, match="text 2: it has 2 tokens"):
        collect_rows(model, [[1, 2, 3], [1, 2]], 2)
    with pytest.raises(PromptError, match="text 1: the prompt is empty"):
        collect_rows(model, [[]])
    with pytest.raises(PromptError, match="text 1: the prompt has 600 tokens"):
        collect_rows(model, [[1] * 600])
    with pytest.raises(ValueError, match="no texts"):
        collect_rows(model, [])
    with pytest.raises(ValueError, match="pooling"):
        collect_rows(model, TEXTS, "middle")
    with pytest.raises(TypeError, match="list of texts"):
        collect_rows(model, "text")


# -- results ----------------------------------------------------------------------------------------------------


def test_a_result_as_table_json_picture_and_html(tmp_path):
    values, labels = planted()
    result = probe_layers(Features(values, ("embedding", "0", "1", "final"), {"model": "<x>"}), labels, repeats=1)
    frame = result.to_dataframe()
    assert list(frame.state) == ["embedding", "0", "1", "final"]
    np.testing.assert_array_equal(frame.accuracy, result.accuracy)
    read = json.loads(result.to_json())
    assert read["n_texts"] == 150
    assert read["classes"] == {"blue": 50, "green": 50, "red": 50}
    assert read["states"][2]["high"] == result.high[2]
    assert read["facts"] == {"model": "<x>"}
    picture = result.plot("$mood$ <x>")
    assert picture._repr_png_().startswith(b"\x89PNG")
    for suffix in ("png", "svg", "pdf"):
        picture.save(tmp_path / f"x.{suffix}")
        assert (tmp_path / f"x.{suffix}").stat().st_size > 1000
    with pytest.raises(StatesFileError, match=r"must end in \.png"):
        picture.save(tmp_path / "x.jpg")
    axes = draw_curves({str(i): result for i in range(4)}).figure.axes
    assert [a.get_title(loc="left") for a in axes] == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), result.accuracy)
    assert result.best in repr(result)
    assert "<td>embedding</td>" in result._repr_html_()


# -- the demo model ---------------------------------------------------------------------------------------------


def test_the_demo_model_knows_mood_and_number_at_a_full_stop(model):
    stories = beginnings(250)
    assert not {s.story.mood for s in stories} & set(" ".join(s.text for s in stories).split())
    layers = Capture.layers([0, 5], embedding=True)
    features = collect_rows(model, [s.text for s in stories], capture=layers)
    assert (features.values[:, 0] == features.values[0, 0]).all()  # the same token everywhere: it tells nothing
    for name in ("mood", "number"):
        attribute, group = PROBES[name]
        result = probe_layers(
            features,
            [s.attribute(attribute) for s in stories],
            groups=[s.attribute(group) for s in stories],
            repeats=1,
            c=0.1,
        )
        assert result.low[0] <= result.chance
        assert result.low[2] > max(result.chance, result.control[2])
        assert result.control[2] < result.chance + 0.1
    before = collect_rows(model, [s.before for s in stories], capture=Capture.layers([5]))
    result = probe_layers(before, [s.story.mood for s in stories], repeats=1, c=0.1)
    assert result.known_from is None


# -- files and the command --------------------------------------------------------------------------------------


def written(path, rows, header=("text", "label", "group")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def test_labelled_files_in_every_format(tmp_path):
    rows = [('Hello, "you"\nthere', "a", "g1"), ("né 中", "b", "g2")]
    lines = "\n".join(json.dumps(dict(zip(("text", "label", "group"), row, strict=True))) for row in rows)
    (tmp_path / "x.jsonl").write_text("\ufeff" + lines + "\n\n", encoding="utf-8")
    for path in (written(tmp_path / "x.csv", rows), written(tmp_path / "x.tsv", rows), tmp_path / "x.jsonl"):
        data = read_labelled(path)
        assert list(zip(data.texts, data.labels, data.groups, strict=True)) == rows
    other = read_labelled(tmp_path / "x.csv", text="group", label="text")
    assert other.texts == ["g1", "g2"]
    assert read_labelled(written(tmp_path / "y.csv", [("t", "l")], ("text", "label"))).groups is None
    (tmp_path / "n.jsonl").write_text('{"text": "t", "label": 3}\n{"text": "u", "label": true}')
    assert read_labelled(tmp_path / "n.jsonl").labels == ["3", "true"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "must end in one of"),
        ("x.csv", None, "cannot be read: No such file"),
        ("x.csv", "", "holds no texts"),
        ("x.csv", "text,label\n", "holds no texts"),
        ("x.csv", "text,mood\na,b\n", "has no 'label', only text, mood"),
        ("x.csv", "text,label\na,b\nc,\n", "line 3: 'label' is empty"),
        ("x.csv", "text,label\na,b\nc\n", "line 3: 'label' is empty"),
        ("x.csv", "text,label\na, b,c\n", "more fields than the header"),
        ("x.csv", 'text,label\n"a,b\n', "cannot be read: unexpected end"),
        ("x.csv", b"text,label\n\xff,b\n", "it is not UTF-8"),
        ("x.jsonl", '{"text": "a", "label": "b"}\n{', "line 2 is no JSON"),
        ("x.jsonl", "[" * 100_000, "is no JSON"),
        ("x.jsonl", "[1]", "no JSON object"),
        ("x.jsonl", '{"text": ["a"], "label": "b"}', "'text' is no text or number"),
        ("x.jsonl", '{"text": "a", "label": null}', "'label' is empty"),
    ],
)
def test_labelled_files_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LabelledFileError, match=message):
        read_labelled(path)


def test_the_command(tmp_path, capsys):
    rows = [(s.text, s.story.number, s.event) for s in beginnings(60)]
    path = written(tmp_path / "x.csv", rows, ("text", "number", "group"))
    arguments = ["probe", "demo", str(path), "--label", "number", "--repeats", "1", "--threads", "1", "--ctx", "512"]
    assert main([*arguments, "--plot", str(tmp_path / "x.png")]) == 0
    out, err = capsys.readouterr()
    assert "embedding" in out
    assert "95% interval" in out
    assert "60 texts in " in out
    assert "plural" in out
    assert err == f"wrote {tmp_path / 'x.png'}\n"
    assert (tmp_path / "x.png").stat().st_size > 5000
    assert main([*arguments, "--json", "--pooling", "mean"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["facts"]["pooling"] == "mean"
    assert result["known_from"] == "embedding"  # a mean has seen the words themselves
    with Model("demo", n_threads=1, n_ctx=512) as model:
        features = collect_rows(model, [row[0] for row in rows], "mean")
    expected = probe_layers(features, [r[1] for r in rows], groups=[r[2] for r in rows], repeats=1)
    assert [state["accuracy"] for state in result["states"]] == pytest.approx(expected.accuracy.tolist(), abs=0.02)


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--plot", "x.jpg"], 1, "must end in"),
        (["--plot", "no/x.png"], 1, "no folder"),
        (["--label", "mood"], 1, "has no 'mood'"),
        (["--folds", "1"], 2, "at least 2"),
        (["--pooling", "middle"], 2, "nor a token's index"),
        (["--c", "0"], 2, "positive"),
        ([], 1, "only 1 texts have the label"),
    ],
)
def test_what_the_command_refuses(tmp_path, capsys, more, status, message):
    path = written(tmp_path / "x.csv", [("a", "x", "1"), ("b", "y", "2"), ("c", "y", "3")])
    assert main(["probe", "demo", str(path), "--threads", "1", *more]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
