"""What a notebook user meets: tables, labelled arrays, pictures, short representations, and the worked notebook."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_plots import made

from loom_gguf import Capture, MissingPackageError, Model, NotCapturedError, States, StatesError
from loom_gguf.states import NodeValues, Roles

TESTS = Path(__file__).parent
NOTEBOOK = TESTS.parent / "docs" / "first_look.ipynb"
TEXT = "A fox named Finn"
LABELS = ["embedding", *map(str, range(8)), "final"]


@pytest.fixture(scope="module")
def model():
    with Model("demo", n_threads=1, n_ctx=512) as model:
        yield model


@pytest.fixture(scope="module")
def states(model):
    everything = Capture.all_layers(embedding=True, final=True) | Capture.names(["ffn_gate-0", "Qcur-1#1"])
    return model.forward(TEXT, everything)


# -- tables -----------------------------------------------------------------------------------------------------


def test_a_dataframe_has_a_line_per_state_and_token(model, states):
    frame = states.to_dataframe(model)
    n = len(states.tokens)
    assert frame.shape == (10 * n, 128)
    assert list(frame.index.names) == ["state", "node", "position", "token_id", "token"]
    assert list(dict.fromkeys(frame.index.get_level_values("state"))) == LABELS
    assert (frame.dtypes == np.float32).all()
    np.testing.assert_array_equal(frame.xs("5", level="state"), states.layer(5))
    np.testing.assert_array_equal(frame.xs("embedding", level="state"), states.embedding)
    np.testing.assert_array_equal(frame.xs("result_norm", level="node"), states.final)
    third = frame.xs(2, level="position").reset_index()
    assert set(third.token_id) == {states.tokens[2]}
    assert set(third.token) == {model.token_text(states.tokens[2])}
    assert len(frame.stack()) == 10 * n * 128


def test_an_xarray_has_named_axes(model, states):
    array = states.to_xarray(model)
    assert array.dims == ("state", "position", "feature")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.sel(state="5"), states.layer(5))
    np.testing.assert_array_equal(array.sel(state="final", position=3), states.final[3])
    assert array.node.values.tolist()[1] == "l_out-0"
    assert array.token_id.values.tolist() == states.tokens
    assert array.token.values.tolist() == [model.token_text(token) for token in states.tokens]
    assert array.attrs["n_layer"] == 8
    array[:] = 0  # a copy
    assert states.final.any()


def test_without_texts_there_is_no_token(states):
    assert "token" not in states.to_dataframe().index.names
    assert "token" not in states.to_xarray().coords
    words = [f"w{i}" for i in range(len(states.tokens))]
    assert list(states.to_dataframe(words).xs("0", level="state").index.get_level_values("token")) == words
    with pytest.raises(StatesError, match="2 texts for"):
        states.to_dataframe(["a", "b"])


def test_other_nodes_and_single_steps(model, states):
    frame = states.to_dataframe(nodes=["ffn_gate-0"])
    np.testing.assert_array_equal(frame, states["ffn_gate-0"])
    assert states.to_xarray(nodes=["ffn_gate-0"]).sizes["feature"] == 384
    with pytest.raises(StatesError, match=r"ffn_gate-0 384, l_out-0 128"):
        states.to_dataframe(nodes=["ffn_gate-0", "l_out-0"])
    with pytest.raises(StatesError, match=r"a row of Qcur-1#1 has the shape \(4, 32\)"):
        states.to_xarray(nodes=["Qcur-1#1"])
    with pytest.raises(NotCapturedError, match="no nodes"):
        states.to_dataframe(nodes=[])
    with pytest.raises(NotCapturedError, match="l_out-99"):
        states.to_dataframe(nodes=["l_out-99"])
    with pytest.raises(TypeError, match="list of names"):
        states.to_dataframe(nodes="l_out-0")
    step = next(model.generate(TEXT, capture=Capture.layers([2, 4]), max_tokens=1))
    np.testing.assert_array_equal(step.states.to_dataframe(model), np.stack([step.states.layer(il) for il in (2, 4)]))
    np.testing.assert_array_equal(step.states.to_dataframe(nodes=["l_out-4"])[:], step.states.layer(4)[None])


def test_no_hidden_states_is_said(model):
    only = model.forward(TEXT, Capture.names(["ffn_gate-0"]))
    for method in (only.to_dataframe, only.to_xarray, only.plot):
        with pytest.raises(NotCapturedError, match="hold no hidden states"):
            method()


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_dataframe"), ("xarray", "to_xarray")])
def test_what_is_not_installed_is_named(monkeypatch, states, package, method):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{method} needs {package}: pip install {package}"):
        getattr(states, method)()


# -- pictures ---------------------------------------------------------------------------------------------------


def test_a_picture_shows_itself_and_is_saved(tmp_path, model, states):
    picture = states.plot(model, measure="norm", title="norms")
    assert picture._repr_png_().startswith(b"\x89PNG")
    axes = picture.figure.axes[0]
    assert axes.get_title(loc="left") == "norms"
    assert "Finn" in "".join(label.get_text() for label in axes.get_xticklabels())
    assert repr(picture) == f"<Picture: Length of each hidden state, 10 layers x {len(states.tokens)} tokens>"
    picture.save(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


# -- representations --------------------------------------------------------------------------------------------


def test_representations_are_short_and_hold_no_numbers(model, states):
    step = next(model.generate(TEXT, capture=Capture.all_layers(), max_tokens=2, logprobs=2, prompt_states=True))
    small = states.compress("int8")
    for thing in (states, small, step, step.states, model, model.nodes()[0], model.nodes()[-1]):
        text, html = repr(thing), thing._repr_html_()
        assert len(text) < 160, text
        assert "\n" not in text
        assert "array(" not in text + html
        assert len(html) < 3000
        assert html.count("<tr>") == html.count("</tr>") >= 2
    assert repr(model.nodes()[-1]) == "<Node result_output: MUL_MAT, f32 [n_outputs, 1024]>"
    assert repr(step) == f"<Step 0: {step.text!r} (id {step.token_id}), position {step.position}, 8 nodes>"
    assert "<td>l_out-0</td><td>0</td><td>(" in states._repr_html_()
    assert "<td>int8</td>" in small._repr_html_()
    assert "log-probability" in step._repr_html_()
    assert "<td>llama</td>" in model._repr_html_()


def test_html_is_escaped(tmp_path, model):
    evil = "<script>alert(1)</script>&"
    values = {evil: NodeValues(np.zeros((1, 4), np.float32), 0)}
    states = States(values, Roles(1, {0: evil}, None, None), [0], [0])
    for thing in (states, states.compress("float16")):
        assert "<script" not in thing._repr_html_()
        assert "&lt;script&gt;" in thing._repr_html_()


def test_many_nodes_are_counted():
    html = made(3, 60)._repr_html_()
    assert html.count("<tr>") < 16
    assert "of 62 nodes shown" in html
    assert "result_norm" in html
    none = States({"l": NodeValues(np.zeros((0, 4), np.float32), 0)}, Roles(1, {0: "l"}, None, None), [], [])
    assert "no rows, 0.0 kB" in none._repr_html_()


def test_a_closed_model_says_so():
    model = Model("demo", n_threads=1, n_ctx=256)
    model.close()
    assert "(closed)" in model._repr_html_()
    assert repr(model).startswith("<Model demo.gguf")


# -- the worked notebook ----------------------------------------------------------------------------------------


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_notebook_runs(tmp_path):
    # Away from this user's own kernels, settings and history.
    folders = {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR",
                                                       "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")}  # fmt: skip
    run = subprocess.run(
        [sys.executable, TESTS / "run_notebook.py", NOTEBOOK],
        env={**os.environ, **folders},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    shown = json.loads(run.stdout)
    plain = [output.get("text/plain", "") for output in shown]
    assert sum("image/png" in output for output in shown) == 2  # the pictures show themselves
    assert sum("<strong>" in output.get("text/html", "") for output in shown) == 4  # model, step, states, probe
    assert any("dataframe" in output.get("text/html", "") for output in shown)
    probe = next(re.search(r"best at (\w+): ([\d.]+) ", text) for text in plain if "<ProbeResult" in text)
    assert float(probe[2]) > 0.75
    assert plain[-1] == "True"
