"""The command line, as a user sees it."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loom_gguf import Capture, Model, States, __version__
from loom_gguf.cli import main
from loom_gguf.states_file import read_metadata

ROOT = Path(__file__).parent.parent
FIDELITY = ROOT / "tests" / "fidelity"
LLAMA = str(FIDELITY / "llama.gguf")
PROMPT = "There once was"
RUN = ["run", "demo", PROMPT, "--threads", "1", "--max-tokens", "6"]


@pytest.fixture(scope="module")
def model():
    with Model("demo", n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def steps(model):
    """What `RUN` should give, from Python."""
    everything = Capture.all_layers(embedding=True, final=True)
    return list(model.generate(PROMPT, capture=everything, max_tokens=6, prompt_states=True))


def command(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "loom_gguf", *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        **settings,
    )


def failed(capsys, arguments, status=1):
    """The error line of a command line that fails."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    if status == 1:
        assert err.startswith("loom-gguf: error: ")
        assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


# -- run --------------------------------------------------------------------------------------------------------


def test_stdout_has_the_text_and_nothing_else(capsys, steps):
    assert main(RUN) == 0
    out, err = capsys.readouterr()
    assert out == "".join(step.text for step in steps)
    assert err == ""


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_out_has_every_position_once_and_the_models_own_rows(capsys, tmp_path, model, steps, suffix):
    path = tmp_path / f"x{suffix}"
    assert main([*RUN, "--out", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(step.text for step in steps)
    assert re.fullmatch(r"wrote \d+ rows \(positions 0 to \d+\) of 10 nodes to .*, [\d.]+ kB\n", err)
    states = States.load(path)
    prompt = model.tokenize(PROMPT)
    assert states.positions == list(range(len(prompt) + len(steps) - 1))
    assert states.tokens == prompt + [step.token_id for step in steps[:-1]]
    assert states.layers == list(range(model.n_layer))
    for name in steps[0].states:
        rows = [*steps[0].prompt_states[name], *(step.states[name] for step in steps)]
        np.testing.assert_allclose(states[name], rows, rtol=1e-5, atol=1e-5)
    facts = read_metadata(path)
    assert facts["prompt"] == PROMPT
    assert facts["text"] == out
    assert facts["n_prompt"] == len(prompt)
    assert len(facts["token_texts"]) == len(states.tokens)
    assert (facts["model"], facts["architecture"], facts["precision"]) == ("demo.gguf", "llama", "fast")


def test_no_prompt_rows_keeps_the_rows_of_the_steps(tmp_path, steps):
    assert main([*RUN, "--layers", "0", "--no-prompt-rows", "--out", str(tmp_path / "x.npz")]) == 0
    states = States.load(tmp_path / "x.npz")
    assert states.positions == [step.position for step in steps]


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--layers", "0,5,-1"], ["l_out-0", "l_out-5", "l_out-7"]),
        (["--layers", "-1,0"], ["l_out-0", "l_out-7"]),
        (["--layers", "all"], [f"l_out-{il}" for il in range(8)]),
        (["--embedding", "--final"], ["embd", "result_norm"]),
        (["--nodes", "attn_out-[01]", "Qcur-0#1", "--nodes", "l_out-3"],
         ["Qcur-0#1", "attn_out-0", "attn_out-1", "l_out-3"]),
    ],
)  # fmt: skip
def test_what_to_capture(tmp_path, options, keys):
    assert main([*RUN, *options, "--out", str(tmp_path / "x.npz")]) == 0
    assert list(States.load(tmp_path / "x.npz")) == keys


def test_without_out_there_is_a_summary_on_stderr(capsys, steps):
    assert main([*RUN, "--layers", "0,-1", "--final"]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(step.text for step in steps)
    for part in ("l_out-0", "layer 7", "result_norm", "final", "mean L2 norm"):
        assert part in err


def test_a_prompt_from_stdin_loses_one_line_end(capsys, monkeypatch, steps):
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT + "\n"))
    assert main(["run", "demo", "-", *RUN[3:]]) == 0
    assert capsys.readouterr().out == "".join(step.text for step in steps)


def test_sampling_options_reach_the_model(capsys, model):
    options = ["--temperature", "1.5", "--top-k", "0", "--top-p", "1", "--min-p", "0.01", "--seed", "7"]
    assert main([*RUN, *options]) == 0
    steps = model.generate(PROMPT, max_tokens=6, temperature=1.5, top_k=0, top_p=1.0, min_p=0.01, seed=7)
    text = "".join(step.text for step in steps)
    assert capsys.readouterr().out == text
    assert main([*RUN, *options, "--stop", text[4], "--stop", "\x00"]) == 0
    assert capsys.readouterr().out == text[: text.index(text[4])]


@pytest.mark.parametrize("ended", [KeyboardInterrupt(), BrokenPipeError(), OSError(28, "No space left on device")])
def test_when_it_is_ended_early_what_was_captured_is_written(tmp_path, monkeypatch, capsys, steps, ended):
    def generate(*_, **__):
        yield from steps[:3]
        raise ended

    monkeypatch.setattr(Model, "generate", generate)
    path = tmp_path / "x.safetensors"
    assert main([*RUN, "--out", str(path)]) == {KeyboardInterrupt: 130, BrokenPipeError: 141, OSError: 1}[type(ended)]
    states = States.load(path)
    assert states.positions == list(range(steps[2].position + 1))
    assert read_metadata(path)["text"] == capsys.readouterr().out == "".join(step.text for step in steps[:3])


def test_rows_that_fit_into_no_array_end_it_at_once_and_the_others_are_kept(
    tmp_path, monkeypatch, capsys, model, steps
):
    odd = model.forward([1], Capture.layers([0]))
    monkeypatch.setattr(
        Model, "generate", lambda *_, **__: iter([*steps[:2], replace(steps[2], states=odd), *steps[3:]])
    )
    assert main([*RUN, "--out", str(tmp_path / "x.npz")]) == 1
    out, err = capsys.readouterr()
    assert out == "".join(step.text for step in steps[:2])
    assert "wrote " in err
    assert "loom-gguf: error: parts of different lengths have different nodes" in err
    assert States.load(tmp_path / "x.npz").positions == list(range(steps[1].position + 1))
    assert read_metadata(tmp_path / "x.npz")["text"] == out


def test_an_encoder_gives_the_rows_of_its_text(tmp_path, capsys):
    bert = str(FIDELITY / "bert.gguf")
    path = tmp_path / "x.npz"
    assert main(["run", bert, "a text", "--out", str(path), "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "generates nothing" in err
    with Model(bert, n_threads=1) as model:
        expected = model.forward("a text", Capture.all_layers(embedding=True, final=True))
    states = States.load(path)
    assert states.positions == expected.positions
    np.testing.assert_allclose(states.final, expected.final, rtol=1e-5, atol=1e-5)
    assert "only the prompt to capture" in failed(capsys, ["run", bert, "a text", "--threads", "1"])


# -- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nothing.gguf", "x"], "no model 'nothing.gguf'"),
        (["show", str(FIDELITY / "README.md")], "is not a GGUF file"),
        (["nodes", str(FIDELITY)], "is a folder"),
        (["run", "demo", "x", "--layers", "99"], "there is no layer 99: this model's layers are 0 to 7"),
        (["run", "demo", "x", "--nodes", "l_outt-1"], "did you mean l_out-1"),
        (["run", "demo", "x", "--out", "x.txt"], ".safetensors or .npz"),
        (["run", "demo", "x", "--out", "no/such/folder/x.npz"], "no folder"),
        (["run", "demo", "x", "--temperature", "-1"], "temperature must be"),
        (["run", "demo", "x " * 600], "the context holds 512"),
        (["run", str(FIDELITY / "llama-no-vocab.gguf"), "x"], "no tokenizer"),
        (["run", str(FIDELITY / "t5.gguf"), "x"], "encoder-decoder"),
        (["nodes", "demo", "--match", "nothing*"], "no node's key matches 'nothing*'"),
        (["nodes", "demo", "--match", "cache_k*"], "--all shows those"),
    ],
)
def test_an_error_is_one_line_and_status_1(capsys, arguments, said):
    threads = [] if arguments[0] == "show" else ["--threads", "1"]
    assert said in failed(capsys, [*arguments, *threads])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["walk"], "invalid choice"),
        (["run", "demo"], "loom-gguf run: error: the following arguments are required: PROMPT"),
        (["run", "demo", "x", "--layers", "1;2"], "neither `all` nor a list"),
        (["run", "demo", "x", "--seed", "-3"], "nor `random`"),
        (["run", "demo", "x", "--max-tokens", "many"], "invalid int value"),
        (["run", "demo", "x", "--precision", "half"], "fast"),
    ],
)
def test_wrong_usage_is_status_2(capsys, arguments, said):
    err = failed(capsys, arguments, 2)
    assert "usage: loom-gguf" in err
    assert said in err


# -- show and nodes ---------------------------------------------------------------------------------------------


def test_show_says_what_the_file_is(capsys):
    assert main(["show", "demo", "--tensors"]) == 0
    out = capsys.readouterr().out
    for line in (
        r"architecture +llama",
        r"parameters +1\.71 million",
        r"quantization +F16 .*",
        r"layers +8",
        r"context +512 tokens",
        r"tokenizer +gpt2 \(gpt-2\), 1,024 tokens",
        r"hidden states +yes: every layer.*",
        r"for example +loom-gguf run demo .*",
        r"  tokenizer\.ggml\.merges = \[.* in all\]",
        r"  blk\.0\.attn_q\.weight +F16 +128 x 128 .*",
    ):
        assert re.search(f"^{line}$", out, re.M), line
    assert max(map(len, out.splitlines())) < 170


def test_show_json_is_json_with_arrays_abbreviated(capsys):
    assert main(["show", "demo", "--json", "--tensors"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["hidden_states"]["level"] == "all"
    assert facts["metadata"]["llama.block_count"] == facts["n_layer"] == 8
    assert facts["metadata"]["tokenizer.ggml.tokens"]["length"] == 1024
    assert len(facts["metadata"]["tokenizer.chat_template"]) > 200
    assert sum(np.prod(tensor["shape"]) for tensor in facts["tensors"]) == facts["n_params"]


@pytest.mark.parametrize("path", sorted(FIDELITY.glob("*.gguf")), ids=lambda path: path.stem)
def test_show_reads_every_file(capsys, path):
    assert main(["show", str(path)]) == 0
    assert "hidden states" in capsys.readouterr().out


def test_nodes_into_a_pipe_are_columns_with_tabs(capsys, model):
    assert main(["nodes", "demo", "--threads", "1", "--all"]) == 0
    head, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert head == ["key", "op", "shape", "type", "token axis", "note"]
    assert [row[0] for row in rows] == [node.key for node in model.nodes()]
    assert ["l_out-0", "ADD", "[n_tokens, 128]", "f32", "0", ""] in rows
    assert ["l_out-7", "ADD", "[n_outputs, 128]", "f32", "0", "rows of outputs only"] in rows


def test_nodes_are_those_that_can_be_captured_unless_all_are_asked_for(capsys, model):
    assert main(["nodes", "demo", "--threads", "1", "--json"]) == 0
    keys = {node["key"] for node in json.loads(capsys.readouterr().out)}
    assert keys == {node.key for node in model.nodes() if node.computed and not node.memory}
    assert main(["nodes", "demo", "--threads", "1", "--json", "--match", "Qcur-0*"]) == 0
    nodes = json.loads(capsys.readouterr().out)
    assert nodes[1] == {
        "key": "Qcur-0#1",
        "name": "Qcur-0",
        "occurrence": 1,
        "op": "RESHAPE",
        "shape": ["n_tokens", 4, 32],
        "type": "f32",
        "token_axis": 0,
        "per_output": False,
        "computed": True,
        "memory": False,
    }


def test_nodes_in_a_terminal_are_a_table(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["nodes", "demo", "--threads", "1", "--match", "l_out-*"]) == 0
    out = capsys.readouterr().out
    assert "[n_outputs, 128]" in out
    assert "8 nodes" in out


# -- demo -------------------------------------------------------------------------------------------------------


def test_demo_writes_what_it_says_and_its_two_lines_of_python_work(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert sorted(os.listdir()) == ["hidden_states.png", "hidden_states.safetensors"]
    assert Path("hidden_states.png").read_bytes().startswith(b"\x89PNG")
    lines = re.findall(r"^    ((?:from|states) .*)$", out, re.M)
    assert len(lines) == 2
    found = {}
    exec("\n".join(lines), found)
    states = found["states"]
    assert f"states.layer(0) then has the shape {states.layer(0).shape}" in out
    assert len(states.hidden_states) == 9
    assert states.positions == list(range(len(states.positions)))
    facts = read_metadata("hidden_states.safetensors")
    assert facts["prompt"] + facts["text"] in out
    assert "angle to the state below (degrees)" in out


def test_demo_makes_its_folder(capsys, tmp_path):
    assert main(["demo", "--out-dir", str(tmp_path / "a" / "b")]) == 0
    assert (tmp_path / "a" / "b" / "hidden_states.png").exists()
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert "cannot be made" in failed(capsys, ["demo", "--out-dir", str(tmp_path / "file" / "b")])


# -- the program ------------------------------------------------------------------------------------------------


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"loom-gguf {__version__}\n"
    assert main(["run", "--help"]) == 0
    assert "usage: loom-gguf run MODEL PROMPT" in capsys.readouterr().out


def test_as_a_program_it_streams_text_and_ends_quietly_when_the_reader_goes():
    process = subprocess.Popen(
        [sys.executable, "-m", "loom_gguf", *RUN[:-1], "400"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.read(1) == b" "
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 141)  # 0 if the model found its end first
    assert err == b""


def test_as_a_program_in_a_locale_without_utf8(tmp_path):
    done = command("run", LLAMA, "日本", "--threads", "1", "--max-tokens", "30",
                   env={**os.environ, "PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert b"Traceback" not in done.stderr


def test_the_parsers_are_quick_to_load():
    """Without the package's own __init__, which decides for itself what it loads."""
    code = """if True:
        import importlib.util, sys, types
        package = types.ModuleType("loom_gguf")
        package.__path__ = importlib.util.find_spec("loom_gguf").submodule_search_locations
        sys.modules["loom_gguf"] = package
        from loom_gguf.cli import main
        main(["--help"])
        heavy = {"llama_cpp", "matplotlib", "numpy", "rich", "safetensors"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_importing_loads_nothing_that_draws_or_fits():
    code = """if True:
        import sys
        import loom_gguf, loom_gguf.analysis, loom_gguf.compare, loom_gguf.lens
        from loom_gguf.cli import main
        main(["--help"])
        heavy = {"matplotlib", "pandas", "scipy", "sklearn"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_show_does_without_matplotlib_and_demo_without_pyplot(tmp_path):
    code = """if True:
        import sys
        from loom_gguf.cli import main
        assert main(["show", "demo"]) == 0
        assert "matplotlib" not in sys.modules
        assert main(["demo", "--out-dir", sys.argv[1]]) == 0
        assert "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, stdout=subprocess.DEVNULL)


def test_the_document_is_up_to_date():
    subprocess.run([sys.executable, ROOT / "scripts" / "generate_cli_docs.py", "--check"], check=True)
