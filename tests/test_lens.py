"""The logit lens against PyTorch, which read the same states through its own norm and output matrix."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import DECODERS, FIDELITY, GELU, random_tokens, relative_error, torch_says
from safetensors.numpy import load_file

from loom_gguf import (
    Capture,
    LayerRangeError,
    LensUnsupportedError,
    Model,
    NotCapturedError,
    States,
    StatesError,
    StatesFileError,
    TokenError,
)
from loom_gguf.cli import main
from loom_gguf.lens import LensResult, lens, reading, stream
from loom_gguf.lens.head import Head, Operation, find_head
from loom_gguf.states import NodeValues, Roles
from loom_gguf.tensors import find_tensor


@cache
def lens_says(name: str) -> dict[str, np.ndarray]:
    return load_file(FIDELITY / f"{name}.lens.safetensors")


def torch_states(name: str) -> States:
    """PyTorch's own hidden states, so that what the lens makes of them is all that can differ."""
    wanted = torch_says(name)
    blocks, tokens = wanted["block_outputs"], wanted["tokens"].tolist()
    arrays = {"embd": wanted["hidden_states"][0], **{f"l_out-{il}": block for il, block in enumerate(blocks)}}
    arrays["result_norm"] = wanted["hidden_states"][-1]
    roles = Roles(len(blocks), {il: f"l_out-{il}" for il in range(len(blocks))}, "embd", "result_norm")
    values = {key: NodeValues(array, 0) for key, array in arrays.items()}
    return States(values, roles, tokens, range(len(tokens)))


def assert_agrees(result: LensResult, wanted: dict[str, np.ndarray], limit: float) -> None:
    """Probabilities within `limit`; the first token, and others where no neighbour is that near."""
    assert result.top_probs.shape == wanted["top_probs"].shape
    np.testing.assert_allclose(result.top_probs, wanted["top_probs"], rtol=0, atol=limit)
    np.testing.assert_allclose(result.prob_of_final, wanted["prob_of_final"], rtol=0, atol=limit)
    np.testing.assert_allclose(result.kl, wanted["kl"], rtol=100 * limit, atol=10 * limit)
    np.testing.assert_array_equal(result.final_ids, wanted["final_ids"])
    np.testing.assert_array_equal(result.top_ids[..., 0], wanted["top_ids"][..., 0])
    gap = wanted["top_probs"][..., :-1] - wanted["top_probs"][..., 1:]
    clear = (np.minimum(gap[..., :-1], gap[..., 1:]) > 4 * limit) & (gap[..., 1:] > 4 * limit)
    assert clear.any()
    np.testing.assert_array_equal(result.top_ids[..., 1:-1][clear], wanted["top_ids"][..., 1:-1][clear])


# -- the numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_every_layer_says_what_it_says_in_pytorch(name, shared):
    result = lens(shared(name), torch_says(name)["tokens"].tolist())
    assert_agrees(result, lens_says(name), 1e-3 if name in GELU else 1e-4)
    assert result.engine_logits
    assert result.labels == ["embedding", *map(str, range(shared(name).n_layer)), "final"]


@pytest.mark.parametrize("name", DECODERS)
def test_pytorchs_states_give_pytorchs_numbers(name, shared):
    result, wanted = lens(shared(name), torch_states(name)), lens_says(name)
    assert_agrees(result, wanted, 3e-6)
    assert not result.engine_logits
    assert (np.abs(result.rank_of_final - wanted["rank_of_final"]) <= 1).all()  # two of nearly one logit
    assert (result.rank_of_final == wanted["rank_of_final"]).mean() > 0.97


@pytest.mark.parametrize("name", ["llama-q8_0", "llama-q4_0"])
def test_quantized_output_matrices(name, shared):
    """llama's states through the matrix of the quantized file, which gguf dequantized for PyTorch."""
    result, wanted = lens(shared(name), torch_states("llama")), lens_says(name)
    assert_agrees(result, wanted, 3e-6)
    unquantized = lens_says("llama")
    assert np.abs(result.top_probs - unquantized["top_probs"]).max() > 1e-4  # it is not the F32 matrix that was read


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "llama-q4_0", "llama-f16"])
def test_the_final_row_is_the_models_own_logits(name, shared):
    model, tokens = shared(name), random_tokens(17)
    result = lens(model, tokens)
    logits = model.forward(tokens, Capture.names(["result_output"]))["result_output"].astype(np.float64)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    np.testing.assert_array_equal(result.final_ids, logits.argmax(-1))
    np.testing.assert_array_equal(result.top_ids[-1], np.argsort(-logits, axis=-1, kind="stable")[:, :5])
    np.testing.assert_allclose(result.prob_of_final[-1], probs.max(-1), rtol=1e-5)
    assert (result.rank_of_final[-1] == 1).all()
    assert np.abs(result.kl[-1]).max() < 1e-6
    # The last layer's row is the same, but for how llama.cpp rounds what it multiplies.
    assert result.kl[-2].max() < (1e-3 if name == "llama-q4_0" else 1e-5)


def test_the_demo_model_agrees_with_its_generation():
    with Model("demo", n_threads=1) as model:
        result = lens(model, "One morning a fox")
        (step,) = model.generate("One morning a fox", max_tokens=1, logprobs=1)
    assert result.final_ids[-1] == step.token_id
    assert math.log(result.prob_of_final[-1, -1]) == pytest.approx(step.logprob, abs=1e-4)
    assert result.texts[-1] == " fox"


@pytest.mark.parametrize("block", [32, 96, 100, 319, 320, 4096])
def test_the_size_of_the_blocks_makes_no_difference(block, shared, monkeypatch):
    monkeypatch.setattr(stream, "blocks", lambda head, _: ((a, min(a + block, 320)) for a in range(0, 320, block)))
    assert_agrees(lens(shared("gemma2"), torch_states("gemma2")), lens_says("gemma2"), 3e-6)


def test_blocks_cover_the_vocabulary_and_stay_small(shared):
    head = find_head(shared("llama").topology, shared("llama").file)
    huge = replace(head, matrix=replace(head.matrix, info=replace(head.matrix.info, shape=(150_001, 8192))))
    found = list(stream.blocks(huge, 34 * 512))
    assert [first for first, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == 150_001
    assert max(end - first for first, end in found) * 34 * 512 <= 2**23


def test_only_some_layers(llama):
    tokens = random_tokens(9)
    whole, some = lens(llama, tokens), lens(llama, tokens, top_k=2, layers=[-1, 0])
    assert some.labels == ["0", "2", "final"]
    assert some.top_ids.shape == (3, 9, 2)
    np.testing.assert_array_equal(some.rank_of_final, whole.rank_of_final[[1, 3, 4]])
    assert lens(llama, tokens, layers=[]).labels == ["final"]
    assert lens(llama, tokens, top_k=10_000).top_k == 320
    np.testing.assert_allclose(lens(llama, tokens, top_k=320).top_probs.sum(-1), 1, rtol=1e-5)


def test_one_token(llama):
    result = lens(llama, [5])
    assert result.top_ids.shape == (5, 1, 5)
    assert repr(result) == "<LensResult of llama.gguf: 5 states, 1 positions, top 5>"


def test_a_longer_prompt_than_a_decode(shared):
    tokens = random_tokens(40)
    whole, pieces = lens(shared("llama"), tokens), lens(shared("llama", n_ubatch=16), tokens)
    np.testing.assert_allclose(pieces.prob_of_final, whole.prob_of_final, atol=1e-6)


# -- captured states --------------------------------------------------------------------------------------------


def test_captured_states_and_files_of_them(llama, tmp_path):
    tokens = random_tokens(12)
    capture = Capture.all_layers(embedding=True, final=True)
    states = llama.forward(tokens, capture)
    states.save(tmp_path / "states.safetensors")
    direct = lens(llama, tokens)
    for given in (states, States.load(tmp_path / "states.safetensors")):
        result = lens(llama, given)
        np.testing.assert_allclose(result.prob_of_final, direct.prob_of_final, atol=1e-6)
        np.testing.assert_array_equal(result.top_ids[..., 0], direct.top_ids[..., 0])
    alone = lens(llama, llama.forward(tokens, Capture.all_layers()))  # the last layer tells what is final
    np.testing.assert_allclose(alone.kl, direct.kl[1:], atol=1e-5)
    assert not alone.engine_logits
    with_logits = lens(llama, llama.forward(tokens, capture | Capture.names(["result_output"])))
    assert with_logits.engine_logits
    np.testing.assert_array_equal(with_logits.kl, direct.kl)


def test_the_states_of_a_generation(llama):
    steps = list(llama.generate([1, 2, 3], capture=Capture.all_layers(final=True), max_tokens=4))
    result = lens(llama, States.concatenate([step.states for step in steps]))
    assert result.final_ids.tolist() == [step.token_id for step in steps]
    assert result.positions == [2, 3, 4, 5]
    one = lens(llama, steps[1].states)
    assert one.top_ids.shape == (4, 1, 5)
    np.testing.assert_array_equal(one.final_ids, result.final_ids[1:2])


def test_states_that_lack_something_are_refused(llama):
    tokens = random_tokens(6)
    with pytest.raises(NotCapturedError, match="final=True"):
        lens(llama, llama.forward(tokens, Capture.layers([0])))
    with pytest.raises(NotCapturedError, match="no hidden states"):
        lens(llama, llama.forward(tokens, Capture.names(["Qcur-0"])))
    with pytest.raises(NotCapturedError, match="layer 1 was not captured"):
        lens(llama, llama.forward(tokens, Capture.layers([0], final=True)), layers=[1])
    with pytest.raises(LayerRangeError, match="no layer 7"):
        lens(llama, tokens, layers=[7])
    with pytest.raises(TokenError):
        lens(llama, [5000])
    with pytest.raises(ValueError, match="top_k"):
        lens(llama, tokens, top_k=0)


def test_states_of_another_model_are_refused(shared):
    llama = shared("llama")
    for name in ("gpt2", "gemma2", "qwen3"):  # another width, another depth, and another model of the same sizes
        states = shared(name).forward(random_tokens(6), Capture.all_layers(final=True))
        with pytest.raises(StatesError, match=r"not of llama\.gguf"):
            lens(llama, states)
    logits = Capture.all_layers() | Capture.names(["result_output"])
    with pytest.raises(StatesError, match="other logits"):
        lens(llama, shared("qwen3").forward(random_tokens(6), logits))


def test_a_state_that_is_no_number_is_said_to_be_none(llama):
    states = torch_states("llama")
    arrays = {key: value.array.copy() for key, value in states.values_by_key.items()}
    arrays["l_out-1"][3, 0] = np.nan
    arrays["l_out-0"][4, :2] = np.inf
    arrays["result_norm"][5] = -np.inf
    result, whole = lens(llama, states.with_numbers(arrays)), lens(llama, states)
    for s, t in ((2, 3), (1, 4), (4, 5)):
        assert (result.top_ids[s, t] == -1).all()
        assert np.isnan(result.top_probs[s, t]).all()
    for s, t in ((2, 3), (1, 4), *((s, 5) for s in range(5))):
        assert result.rank_of_final[s, t] == 0
        assert np.isnan(result.prob_of_final[s, t])
        assert np.isnan(result.kl[s, t])
    assert result.final_ids[5] == -1
    sound = np.ones((5, len(states.tokens)), bool)
    sound[2, 3] = sound[1, 4] = sound[:, 5] = False
    np.testing.assert_array_equal(result.rank_of_final[sound], whole.rank_of_final[sound])
    np.testing.assert_allclose(result.kl[sound], whole.kl[sound], atol=1e-6)
    np.testing.assert_array_equal(result.top_ids[0, 5], whole.top_ids[0, 5])  # its own numbers need no final state


def test_a_constant_row_is_a_state_like_any_other(llama):
    states = torch_states("llama")
    arrays = {key: value.array.copy() for key, value in states.values_by_key.items()}
    arrays["l_out-0"][2] = 0
    result = lens(llama, states.with_numbers(arrays))
    np.testing.assert_allclose(result.top_probs[1, 2], 1 / 320, rtol=1e-5)  # all logits are 0


def test_logits_beyond_float32_are_no_numbers(llama):
    found = find_head(llama.topology, llama.file)
    head = replace(found, after=(Operation("SCALE", 1, (3e38, 0.0)),))
    rows = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32) * 10
    final = stream.final_facts(head, rows, None)
    numbers = stream.read_blocks(head, rows, None, final, 5, rows[0], np.zeros((3, 320), np.float32))
    assert (final.ids == -1).all()
    assert (numbers.top_ids == -1).all()
    assert np.isnan(numbers.prob).all()
    assert (numbers.rank == 0).all()


# -- what is not understood -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "modern-bert"])
def test_a_model_without_an_output_matrix_is_refused(name, shared):
    with pytest.raises(LensUnsupportedError, match=rf"{name}.*no logits"):
        lens(shared(name), [1, 2, 3])


@pytest.mark.parametrize(
    ("op", "leaf", "match"),
    [
        ("UNARY", None, "SIGMOID"),
        ("SOFT_MAX", None, "SOFT_MAX"),
        ("ADD", None, "2 states"),
        ("MUL", "an input", "no weight of the file"),
        ("MUL_MAT", "output.weight", "two matrices"),
    ],
)
def test_an_operation_that_is_not_understood_is_named(llama, op, leaf, match):
    """The graph of the real model, with its final norm's scale turned into something else."""
    topology = llama.topology
    nodes = list(topology.graph.nodes)
    at = topology.hidden.final
    read = next(source for source in nodes[at].sources if source >= 0)
    sources, leaves = [read], [""]
    if op == "ADD":
        sources, leaves = [read, read - 1], ["", ""]
    elif leaf is not None:
        sources, leaves = [-1, read], [leaf, ""]
    ne = [320, 3, 1, 1] if op == "MUL_MAT" else nodes[at].ne
    nodes[at] = SimpleNamespace(
        op=op,
        name="result_norm",
        function="SIGMOID" if op == "UNARY" else "",
        sources=sources,
        leaf_names=leaves,
        ne=ne,
    )
    changed = SimpleNamespace(hidden=topology.hidden, nodes=topology.nodes, graph=SimpleNamespace(nodes=nodes))
    with pytest.raises(LensUnsupportedError, match=match):
        find_head(changed, llama.file)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("before", lambda op: replace(op, weight=op.weight * 1.05) if op.op == "MUL" else op),
        ("before", lambda op: replace(op, op="NORM") if op.op == "RMS_NORM" else op),
        ("after", lambda op: replace(op, numbers=(op.numbers[0] * 1.2, 0.0)) if op.op == "SCALE" else op),
    ],
)
def test_a_head_that_gives_other_numbers_than_llama_cpp_is_refused(part, wrong, shared, monkeypatch):
    model = shared("gemma2")

    def mistaken(topology, file):
        head = find_head(topology, file)
        return replace(head, **{part: tuple(map(wrong, getattr(head, part)))})

    monkeypatch.setattr(reading, "find_head", mistaken)
    with pytest.raises(LensUnsupportedError, match="gemma2"):
        lens(model, random_tokens(8))
    with pytest.raises((LensUnsupportedError, StatesError), match="gemma2"):
        lens(model, model.forward(random_tokens(8), Capture.all_layers()))


def test_operations_behind_the_matrix_are_those_of_numpy(llama):
    """What the fidelity models lack: a bias on the logits, a scale for all of them, a factor with an offset."""
    found = find_head(llama.topology, llama.file)
    bias = np.linspace(-1, 1, 320, dtype=np.float32)
    after = (Operation("ADD", 1, (), bias), Operation("MUL", 2, (), np.float32([0.5])), Operation("SCALE", 3, (3, 1)))
    head = Head(found.before, found.matrix, after, found.final_at)
    rows = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    wanted = ((rows @ found.matrix.all().T) + bias) * 0.5 * 3 + 1
    ours = [head.logits(rows.reshape(6, 64), a, a + 80).reshape(2, 3, 80) for a in range(0, 320, 80)]
    np.testing.assert_allclose(np.concatenate(ours, -1), wanted, rtol=1e-4, atol=1e-5)
    picked = np.array([3, 200, 319])
    np.testing.assert_allclose(head.logits_at(rows, picked), wanted[:, range(3), picked], rtol=1e-4, atol=1e-5)


def test_weights_are_read_as_they_were_written(shared):
    f32 = find_tensor(shared("llama").file, "output.weight").all()
    assert f32.shape == (320, 64)
    assert find_tensor(shared("llama").file, "no.weight") is None
    for name, limit in (("llama-f16", 1e-3), ("llama-q8_0", 1e-2), ("llama-q4_0", 0.2)):
        tensor = find_tensor(shared(name).file, "output.weight")
        assert 0 < relative_error(tensor.all(), f32) < limit
        np.testing.assert_array_equal(tensor.rows(100, 103), tensor.all()[100:103])
        np.testing.assert_array_equal(tensor.rows_at(np.array([5, 319, 5])), tensor.all()[[5, 319, 5]])


# -- what people see --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> LensResult:
    with Model("demo", n_threads=1) as model:
        return lens(model, "Once a fox\n<|end|>")


def test_json_and_csv_hold_every_number(demo, tmp_path):
    demo.save(tmp_path / "lens.json")
    data = json.loads((tmp_path / "lens.json").read_text())
    assert data["tokens"] == demo.tokens
    np.testing.assert_array_equal(np.array(data["top_ids"]), demo.top_ids)
    np.testing.assert_allclose(np.array(data["kl_nats"]), demo.kl)
    demo.save(tmp_path / "lens.csv")
    with (tmp_path / "lens.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == demo.kl.size
    last = lines[-1]
    assert (last["state"], int(last["position"])) == ("final", len(demo.tokens) - 1)
    assert int(last["top1_id"]) == demo.top_ids[-1, -1, 0] == int(last["final_id"])
    assert float(last["prob_of_final"]) == pytest.approx(float(demo.prob_of_final[-1, -1]))


@pytest.mark.usefixtures("small_pictures")
def test_what_is_no_number_is_null(demo, tmp_path):
    broken = replace(demo, kl=np.full_like(demo.kl, np.nan), rank_of_final=np.zeros_like(demo.rank_of_final))
    assert {x for row in broken.to_dict()["kl_nats"] for x in row} == {None}
    for name in ("x.json", "x.html", "x.png", "x.csv"):
        broken.save(tmp_path / name, measure="kl")


def test_the_page_is_one_file_and_safe(demo, tmp_path):
    evil = replace(demo, vocabulary=dict.fromkeys(demo.vocabulary, "</script><b>"), model="<i>&x.gguf")
    text = evil.to_html()
    assert text.count("</script>") == 2
    assert "<b>" not in text
    assert "<i>" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "@DATA@" not in text
    body = text.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(body)["labels"] == demo.labels


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("measure", ["prob", "rank", "kl"])
def test_pictures(demo, tmp_path, measure):
    if measure == "prob":  # the same numbers give the same file
        for name in ("a.png", "b.png", "a.svg", "b.svg"):
            demo.save(tmp_path / name, measure=measure)
        for suffix in ("png", "svg"):
            assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    figure = demo.plot(measure, title="A $title$")
    axes, bar = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == demo.labels
    assert axes.get_title(loc="left").startswith("A $title$")
    assert ("nats" in bar.get_ylabel()) == (measure == "kl")
    if measure == "kl":  # the colours end at the largest of the layers, not of the embedding
        assert axes.images[0].norm.vmax == pytest.approx(demo.kl[1:].max())
    assert any(text.get_text() == "↵" for text in (*axes.texts, *axes.get_xticklabels()))
    with pytest.raises(ValueError, match="measure"):
        demo.plot("size")


def test_a_long_text_is_drawn_without_words(shared):
    result = lens(shared("llama"), random_tokens(300))
    axes, _ = result.plot().axes
    assert len(axes.texts) == 0
    assert axes.images[0].get_array().shape == (5, 300)


def printed(result, *, width=100, colour=None, encoding="utf-8"):
    from rich.console import Console

    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    Console(file=out, width=width, color_system=colour, force_terminal=colour is not None).print(result)
    out.flush()
    return out.buffer.getvalue().decode(encoding)


def test_the_table(demo):
    lines = printed(demo, width=200).splitlines()
    final = next(line for line in lines if line.lstrip().startswith("final"))
    for t in range(demo.n_tokens):
        assert f"{demo.text(int(demo.final_ids[t])).replace(' ', '␣')}*" in final
    assert "↵" in lines[-1]  # the tokens read
    assert "48;2;" in printed(demo, colour="truecolor")
    printed(demo, encoding="ascii")


@pytest.mark.parametrize("width", [20, 40, 80])
def test_the_table_fits(demo, width):
    assert max(map(len, printed(demo, width=width).splitlines())) <= width


# -- the command ------------------------------------------------------------------------------------------------


COMMAND = ["lens", "demo", "One morning a fox", "--threads", "1"]


def test_a_terminal_gets_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main([*COMMAND, "--out", "x.html", "--out", "x.json"]) == 0
    out, err = capsys.readouterr()
    assert "embedding" in out
    assert "After '␣fox' at position 4" in out
    assert "wrote x.html" in err
    assert json.loads((tmp_path / "x.json").read_text())["labels"][0] == "embedding"


def test_a_pipe_gets_every_number(tmp_path, capsys):
    assert main([*COMMAND, "--out", "folder", "--format", "csv,json"]) == 0
    out, _ = capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["report.csv", "report.json"]
    rows = [list(csv.reader(io.StringIO(text), delimiter=by)) for text, by in (
        (out, "\t"), ((tmp_path / "folder" / "report.csv").read_text(), ","))]  # fmt: skip
    assert rows[0] == rows[1]
    assert len(rows[0]) == 1 + 10 * 5
    assert main([*COMMAND, "--json"]) == 0
    assert capsys.readouterr().out == (tmp_path / "folder" / "report.json").read_text()


def test_token_ids_are_read_as_they_are(capsys, llama):
    assert main(["lens", str(FIDELITY / "llama.gguf"), "--tokens", "3,1,4", "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == [3, 1, 4]


def test_progress_ends_where_all_is_done(llama):
    seen = []
    lens(llama, [1, 2], progress=lambda *step: seen.append(step))
    assert seen[0] == ("reading", 0, 1)
    assert seen[-1][1:] == (llama.n_vocab, llama.n_vocab)


def test_the_command_on_a_file_of_states(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["run", "demo", "One morning", "--max-tokens", "3", "--out", "s.safetensors", "--threads", "1"]) == 0
    assert main(["lens", "demo", "--states", "s.safetensors", "--layers", "0,-1", "--position", "0", "--top-k", "2",
                 "--threads", "1"]) == 0  # fmt: skip
    out, _ = capsys.readouterr()
    assert "at position 0" in out
    assert "embedding" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo"], "PROMPT"),
        (["demo", "x", "--states", "y.npz"], "not both"),
        (["demo", "x", "--tokens", "1"], "not both"),
        (["demo", "x", "--out", "lens.pdf"], ".html"),
        (["demo", "x", "--out", "no/lens.png"], "no folder"),
        (["demo", "x", "--position", "99"], "no row 99"),
        (["demo", "--states", "missing.npz"], "missing.npz"),
        ([str(FIDELITY / "bert.gguf"), "text"], "no logit lens"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, said, capsys):
    assert main(["lens", *arguments, "--threads", "1"]) == 1
    assert said in capsys.readouterr().err


def test_a_result_is_not_written_where_it_cannot_be(demo, tmp_path):
    with pytest.raises(StatesFileError, match="folder"):
        demo.save(tmp_path / "no" / "x.png")
    (tmp_path / "d.png").mkdir()
    with pytest.raises(StatesFileError, match="folder"):
        demo.save(tmp_path / "d.png")
