"""`analyze`: the right rows in each measure, from models, states and files; what is written; the command."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_golden_analysis import PROMPTS, TARGET, run

from loom_gguf import Capture, Model, NotCapturedError, PromptError, States, StatesError, StatesFileError
from loom_gguf.analysis import MEASURES, TextStates, analyze, analyze_states
from loom_gguf.analysis.export import csv_text, write_report
from loom_gguf.analysis.html import differences, html_report
from loom_gguf.cli import main
from loom_gguf.states import NodeValues, Roles

LLAMA = str(Path(__file__).parent / "fidelity" / "llama.gguf")
COMMAND = ["analyze", "demo", "--threads", "1", "--prompt"]
FILES = {
    "report.html", "report.json", "report.csv", "measures.png", "measures.svg", "tokens-norm.png", "tokens-norm.svg",
    "tokens-turn.png", "tokens-turn.svg",
}  # fmt: skip


def made(n_tokens=7, n_layer=3, width=40, *, seed=0, embedding=True, final=True, change=None):
    """Random states with the embedding, all layers and the final state."""
    rng = np.random.default_rng(seed)
    labels = [*(["embedding"] if embedding else []), *map(str, range(n_layer)), *(["final"] if final else [])]
    arrays = {label: rng.standard_normal((n_tokens, width)).astype(np.float32) for label in labels}
    if change is not None:
        change(arrays)
    roles = Roles(
        n_layer,
        {il: str(il) for il in range(n_layer)},
        "embedding" if embedding else None,
        "final" if final else None,
    )
    values = {label: NodeValues(array, 0) for label, array in arrays.items()}
    return States(values, roles, range(n_tokens), range(n_tokens))


@pytest.fixture(scope="module")
def demo():
    return run()


@pytest.fixture
def file(tmp_path):
    made().save(tmp_path / "some.safetensors", metadata={"prompt": "a <b> & c", "text": "", "architecture": "made"})
    return str(tmp_path / "some.safetensors")


def failed(capsys, arguments, status=1):
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


# -- the numbers ------------------------------------------------------------------------------------------------


def test_golden_numbers_of_the_demo_model(demo):
    golden = json.loads(TARGET.read_text())
    assert [layer.label for layer in demo.layers] == list(golden)
    for layer in demo.layers:
        for name, expected in golden[layer.label].items():
            # Counts may fall to the other side of their bound where another machine rounds otherwise.
            count = name in ("d_eff_pca90", "n_outliers")
            near = pytest.approx(expected, rel=5e-3, abs=1 if count else 2e-3, nan_ok=True)
            if name == "beta_pca90":
                near = pytest.approx(expected, rel=0.15, nan_ok=True)
            assert layer.value(name) == near, (layer.label, name)


def test_every_number_against_plain_numpy(shared):
    model = shared("llama")
    prompts = ["the cat sat on the mat", "a dog"]
    analysis = analyze(model, prompts)
    runs = [model.forward(prompt, Capture.all_layers(embedding=True, final=True)) for prompt in prompts]
    below = None
    for layer in analysis.layers:
        parts = [
            np.float64(
                getattr(run, layer.label) if layer.label in ("embedding", "final") else run.layer(int(layer.label))
            )
            for run in runs
        ]
        rows = np.concatenate(parts)
        norms = np.linalg.norm(rows, axis=1)
        units = rows / norms[:, None]
        spectrum = np.sort(np.linalg.svd(units - units.mean(0), compute_uv=False) ** 2)[::-1]
        energies = np.linalg.svd(rows, compute_uv=False) ** 2 / (rows**2).sum()
        counts = [np.argmax(np.cumsum(np.sort(u**2)[::-1]) >= 0.9) + 1 for u in units]
        cosines = units @ units.T
        d_pca, d_entropy = (
            np.argmax(np.cumsum(spectrum) >= 0.9 * spectrum.sum()) + 1,
            math.exp(-(energies * np.log(energies)).sum()),
        )
        along = [cosines[i, i + 1] for i in range(len(rows) - 1) if i != len(parts[0]) - 1]
        expected = {
            "d_eff_pca90": d_pca,
            "d_eff_entropy": d_entropy,
            "d_eff_energy90": np.mean(counts),
            "beta_pca90": below["d_pca"] / d_pca if below else math.nan,
            "beta_entropy": below["d_entropy"] / d_entropy if below else math.nan,
            "beta_energy": np.mean([rows.shape[1] / count for count in counts]),
            "norm_mean": norms.mean(),
            "norm_std": norms.std(),
            "norm_min": norms.min(),
            "norm_percentile_25": np.quantile(norms, 0.25),
            "norm_percentile_50": np.median(norms),
            "norm_percentile_75": np.quantile(norms, 0.75),
            "norm_max": norms.max(),
            "mean": rows.mean(),
            "std": rows.std(),
            "min": rows.min(),
            "percentile_25": np.quantile(rows, 0.25),
            "percentile_50": np.median(rows),
            "percentile_75": np.quantile(rows, 0.75),
            "max": rows.max(),
            "sparsity": (abs(rows) < 1e-6).mean(),
            "anisotropy": cosines[np.triu_indices(len(rows), 1)].mean(),
            "cosine_below": (units * below["units"]).sum(1).mean() if below else math.nan,
            "cosine_next_token": np.mean(along),
            "n_outliers": sum((abs(units[:, d]) * rows.shape[1] ** 0.5 >= 6).sum() >= 1 for d in range(rows.shape[1])),
            "n_nonfinite": 0,
        }
        assert expected.keys() == MEASURES.keys()
        for name, value in expected.items():
            # Texts are read anew, in float32.
            assert layer.value(name) == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), (layer.label, name)
        below = {"d_pca": d_pca, "d_entropy": d_entropy, "units": units}
    assert analysis.layers[0].n_rows == len(rows) < 17  # so that 6% of the rows is one
    first, last = analysis.layers[0], analysis.layers[-1]
    assert analysis.beta_pca90 == first.d_eff_pca90 / last.d_eff_pca90
    assert analysis.beta_entropy == first.d_eff_entropy / last.d_eff_entropy


def test_each_text_is_measured_alone_too(demo):
    alone = analyze(States.concatenate([made(4)]))
    assert alone.texts[0].layers == alone.layers
    assert [text.text for text in demo.texts] == PROMPTS
    assert sum(len(text.tokens) for text in demo.texts) == demo.n_rows
    with Model("demo", n_threads=1, precision="exact") as model:
        second = analyze(model, PROMPTS[1])
    for layer, other in zip(demo.texts[1].layers, second.layers, strict=True):
        assert layer.norm_mean == pytest.approx(other.norm_mean, rel=1e-5)
        assert layer.d_eff_entropy == pytest.approx(other.d_eff_entropy, rel=1e-4)
    assert np.shape(second.texts[0].norms) == (10, second.n_rows)
    assert np.shape(second.texts[0].turns) == (9, second.n_rows)
    assert np.mean(second.texts[0].norms[3]) == pytest.approx(second.layers[3].norm_mean)


def test_depth_and_what_lies_below():
    layers = analyze(made(n_layer=3)).layers
    assert [layer.depth for layer in layers] == [0, 0.25, 0.5, 0.75, 1]
    assert [layer.below for layer in layers] == [None, "embedding", "0", "1", "2"]
    some = analyze(made(n_layer=3, embedding=False, final=False)).layers
    assert [(layer.label, layer.depth, layer.below) for layer in some] == [
        ("0", 0.25, None), ("1", 0.5, "0"), ("2", 0.75, "1")
    ]  # fmt: skip


def test_skip_first_leaves_out_positions_of_every_text():
    def long_first(arrays):
        for array in arrays.values():
            array[0] *= 1000

    texts = [TextStates(made(5, change=long_first)), TextStates(made(4, seed=1, change=long_first))]
    kept = analyze_states(texts, name="x", skip_first=1)
    assert kept.n_rows == 7
    assert kept.layers[0].norm_max < 100 < analyze_states(texts, name="x").layers[0].norm_max
    assert kept.texts[0].positions == (1, 2, 3, 4)
    with pytest.raises(StatesError, match="text 2 has 4 rows, none at a position from 4 on"):
        analyze_states(texts, name="x", skip_first=4)
    with pytest.raises(StatesError, match="negative"):
        analyze_states(texts, name="x", skip_first=-1)


def test_outliers_that_recur():
    def plant(arrays):
        for label in ("0", "1", "final"):
            arrays[label][:, 11] = 50
        arrays["2"][:, 5] = -50

    analysis = analyze(made(n_layer=8, change=plant))
    found = {layer.label: layer.outliers for layer in analysis.layers}
    assert found["0"] == found["final"] == (11,)
    assert found["2"] == (5,)
    assert analysis.outliers == (11,)  # 2 of 8 blocks


def test_progress_goes_from_nothing_to_all(demo):
    seen = []
    with Model("demo", n_threads=1) as model:
        analyze(model, ["a", "b"], name="it", progress=lambda *step: seen.append(step))
    assert seen[0] == ("reading", 0, 2)
    assert ("reading", 2, 2) in seen
    assert seen[-1] == ("measuring it", 30, 30)
    assert all(done <= total for _, done, total in seen)


# -- bad input --------------------------------------------------------------------------------------------------


def test_one_token():
    analysis = analyze(made(1))
    for layer in analysis.layers:
        assert layer.d_eff_pca90 == 0
        assert layer.d_eff_entropy == pytest.approx(1)
        assert math.isnan(layer.beta_pca90)
        assert math.isnan(layer.anisotropy)
        assert math.isnan(layer.cosine_next_token)
    assert math.isnan(analysis.beta_pca90)


def test_constant_rows_and_zeros():
    def flatten(arrays):
        arrays["0"][:] = arrays["0"][0]
        arrays["1"][:] = 0

    layers = {layer.label: layer for layer in analyze(made(change=flatten)).layers}
    assert (layers["0"].d_eff_pca90, layers["0"].norm_std) == (0, pytest.approx(0))
    assert layers["0"].anisotropy == pytest.approx(1)
    assert (layers["1"].d_eff_entropy, layers["1"].sparsity, layers["1"].cosine_below) == (0, 1, 0)
    assert math.isnan(layers["1"].beta_energy)


def test_nan_is_counted_and_stays_in_its_layer(tmp_path):
    def spoil(arrays):
        arrays["1"][2, 3] = np.nan
        arrays["1"][4, :] = np.inf

    analysis = analyze(made(change=spoil))
    layers = {layer.label: layer for layer in analysis.layers}
    assert layers["1"].n_nonfinite == 41
    assert math.isnan(layers["1"].d_eff_entropy)
    assert math.isnan(layers["2"].cosine_below)
    assert layers["2"].n_nonfinite == 0
    assert layers["2"].d_eff_entropy > 1
    write_report([analysis], tmp_path, ["json", "html"])
    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert found["analyses"][0]["layers"][2]["d_eff_entropy"] is None


def test_states_without_hidden_states(tmp_path, capsys):
    bare = States({"x": NodeValues(np.ones((2, 3), np.float32), 0)}, Roles(2, {}, None, None), [1, 2], [0, 1])
    with pytest.raises(NotCapturedError, match="embedding, layers or final"):
        analyze(bare)
    bare.save(tmp_path / "bare.npz")
    assert "no hidden states (embedding, layers or final)" in failed(capsys, ["analyze", str(tmp_path / "bare.npz")])


def test_states_that_do_not_belong_together():
    with pytest.raises(StatesError, match="text 2 has other hidden states than text 1"):
        analyze([made(), made(n_layer=4)])
    with pytest.raises(StatesError, match="rows of 41 values, that of text 1 of 40: they are of different models"):
        analyze([made(), made(width=41)])
    with pytest.raises(StatesError, match="no text given"):
        analyze([])


def test_models_need_prompts_and_states_have_theirs(file):
    with pytest.raises(PromptError, match="needs something to read"):
        analyze("demo")
    with pytest.raises(PromptError, match="leave the prompts out"):
        analyze(file, "a prompt")
    with Model("demo", n_threads=1, n_ctx=32) as model, pytest.raises(PromptError, match="prompt 2 of 2: "):
        analyze(model, ["a", "the fox " * 100])


# -- side by side -----------------------------------------------------------------------------------------------


def test_what_to_mind_when_models_differ(demo):
    one, other = analyze(made(), name="one"), analyze(made(6, n_layer=9, width=50), name="other")
    notes = differences([one, other])
    assert [note[:22] for note in notes] == [
        "The states have differ",
        "The sources read diffe",
        "The numbers of rows di",
    ]
    assert "40 (one), 50 (other)" in notes[0]
    assert differences([one, analyze(made(seed=3), name="two")]) == []
    assert differences([one]) == []
    lacking = analyze(made(embedding=False), name="lacking")
    assert differences([lacking, one]) == [
        "Not all hidden states were captured, so β and cosines may span several blocks: lacking lacks embedding; one "
        "lacks none."
    ]


# -- what is written --------------------------------------------------------------------------------------------


def test_json_and_csv_have_every_number(demo, tmp_path):
    write_report([demo], tmp_path, ["json", "csv"])
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.csv"}
    document = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert (document["format"], document["version"]) == ("loom_gguf.analysis", 1)
    assert document["measures"].keys() == MEASURES.keys()
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(demo.layers)  # all texts together, and two of them
    for row, layer, found in zip(rows, demo.layers, document["analyses"][0]["layers"], strict=False):
        assert (row["source"], row["text"], row["layer"]) == ("demo.gguf", "all", layer.label)
        for name in MEASURES:
            value = layer.value(name)
            assert row[name] == "" if math.isnan(value) else float(row[name]) == value
            if name != "n_outliers":
                assert found[name] == (None if math.isnan(value) else value)
    assert [row["text"] for row in rows[::10]] == ["all", "1", "2"]


def test_the_same_bytes_again(tmp_path, file):
    analysis = analyze(file)
    written = write_report([analysis], tmp_path / "a" / "b", ["html", "json", "csv"])
    write_report([analysis], tmp_path / "c", ["html", "json", "csv"])
    for path in written:
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes(), path.name


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StatesFileError, match="cannot be made"):
        write_report([analyze(made())], tmp_path / "file")
    with pytest.raises(StatesFileError, match="html, png, svg, json, csv, not pdf"):
        write_report([analyze(made())], tmp_path, ["pdf"])
    with pytest.raises(StatesFileError, match="at least one analysis"):
        write_report([], tmp_path)


@pytest.mark.filterwarnings("error")
def test_any_text_and_name_in_a_report(tmp_path):
    texts = ["<script>alert(1)</script>", "$x^$", "\udcff", "中文", "\x00", "_a", "&amp;", "\n" * 3]
    states = made(len(texts))
    analysis = analyze_states([TextStates(states, "".join(texts), texts)], name="_$<b>\udc80 " * 9)
    write_report([analysis, analysis], tmp_path, ["html", "png"])
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x00" not in page


@pytest.mark.parametrize("n_tokens", [1, 300])
def test_pictures_of_any_length(tmp_path, n_tokens):
    names = {path.name for path in write_report([analyze(made(n_tokens, n_layer=60))], tmp_path, ["png"])}
    assert names == {"measures.png", "tokens-turn.png", "tokens-norm.png"}


def test_one_state_alone_has_no_turns(tmp_path):
    only = analyze(made(n_layer=1, embedding=False, final=False))
    assert {path.name for path in write_report([only], tmp_path, ["svg"])} == {"measures.svg", "tokens-norm.svg"}
    assert "Token by token" in html_report([only])


# -- the command ------------------------------------------------------------------------------------------------


def test_a_pipe_gets_every_number(capsys):
    assert main([*COMMAND, PROMPTS[0]]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    with Model("demo", n_threads=1) as model:
        assert out == csv_text([analyze(model, PROMPTS[0], name="demo")], "\t")


def test_a_terminal_gets_a_table(capsys, monkeypatch, file):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns, n_tables in (("80", 2), ("120", 1)):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["analyze", file]) == 0
        out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
        assert len(re.findall(r"^ ?embedding +\d", out, re.MULTILINE)) == n_tables
        for part in (
            "pca90",
            "entropy",
            "energy90",
            "β",
            "L2 norm",
            "sity",
            "tropy",
            "below",
            "next",
            "liers",
            "embedding to final",
        ):
            assert part in out
        assert "…" not in out.replace(file, "")


def test_output_and_format(capsys, tmp_path, file):
    folder = tmp_path / "report"
    assert main(["analyze", file, "--output", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == FILES
    assert capsys.readouterr().err.startswith(f"wrote 9 files to {folder}: report.html, ")
    assert main(["analyze", file, "--output", str(tmp_path / "x"), "--format", "json", "--format", "csv"]) == 0
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"report.json", "report.csv"}


def test_models_and_files_side_by_side(capsys, tmp_path, file):
    arguments = ["analyze", "demo", LLAMA, file, "--prompt", "the fox", "--threads", "1"]
    assert main([*arguments, "--output", str(tmp_path / "x"), "--format", "html,json"]) == 0
    found = json.loads((tmp_path / "x" / "report.json").read_text())
    assert [each["name"] for each in found["analyses"]] == ["demo", LLAMA, file]
    for each in found["analyses"]:
        assert (each["layers"][0]["depth"], each["layers"][-1]["depth"]) == (0, 1)
    page = (tmp_path / "x" / "report.html").read_text()
    assert "a &lt;b&gt; &amp; c" in page
    assert "different widths" in page


def test_prompts_from_a_file(capsys, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"One fox\r\n\nA bear\n   \nThe end")
    assert main(["analyze", "demo", "--prompts-file", "prompts.txt", "--skip-first", "1"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {row[1] for row in rows[1:]} == {"all", "1", "2", "3"}
    result = subprocess.run(
        [sys.executable, "-m", "loom_gguf", "analyze", "demo", "--threads", "1", "--prompts-file", "-"],
        input=b"One fox", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"source\ttext\tlayer")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo"], "demo is a model and needs something to read: give --prompt TEXT or --prompts-file"),
        (["nowhere.gguf", "--prompt", "a"], "no model 'nowhere.gguf'"),
        (["nowhere.safetensors"], "there is no file nowhere.safetensors"),
        (["demo", "--prompts-file", "empty.txt"], "empty.txt has no prompts: write one to a line"),
        (["demo", "--prompts-file", "latin.txt"], "latin.txt is not text in UTF-8"),
        (["demo", "--prompts-file", "nowhere.txt"], "No such file or directory: nowhere.txt"),
        (["demo", "--prompt", "a", "--skip-first", "99"], "none at a position from 99 on"),
        (["demo", "--prompt", "a", "--output", "empty.txt"], "the folder empty.txt cannot be made"),
    ],
)
def test_errors(capsys, tmp_path, arguments, text):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    err = failed(capsys, ["analyze", *arguments])
    assert err.startswith("loom-gguf: error: ")
    assert err.count("\n") == 1
    assert text in err


def test_prompts_for_files_are_refused(capsys, file):
    assert "leave the prompts out" in failed(capsys, ["analyze", file, "--prompt", "a"])


@pytest.mark.parametrize("options", [["--format", "pdf"], ["--format", "html"], ["--skip-first", "-1"]])
def test_wrong_usage(capsys, file, options):
    assert options[0] in failed(capsys, ["analyze", file, *options], 2)
