"""What may be asked for, what comes back, and what is said about a model's nodes."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
from oracle import DECODERS, open_model, random_tokens

from loom_gguf import (
    AttentionUnsupportedError,
    Capture,
    CaptureUnsupportedError,
    LayerRangeError,
    LoomError,
    Model,
    NotCapturedError,
    States,
    StatesError,
    UnknownNodeError,
)
from loom_gguf.capture import Capture as CaptureOfModule
from loom_gguf.context import Batch
from loom_gguf.states import NodeValues, Roles

PROMPT = random_tokens(6)


def keys(model: Model, capture: Capture) -> list[str]:
    return list(model.forward(PROMPT, capture))


# -- captures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capture", "wanted"),
    [
        (Capture.layers([0]), ["l_out-0"]),
        (Capture.layers([2, 0]), ["l_out-0", "l_out-2"]),
        (Capture.layers([-1, -3]), ["l_out-0", "l_out-2"]),
        (Capture.layers([1, -2, 1]), ["l_out-1"]),
        (Capture.layers(range(2)), ["l_out-0", "l_out-1"]),
        (Capture.layers([0], embedding=True), ["embd", "l_out-0"]),
        (Capture.layers([], final=True), ["result_norm"]),
        (Capture.all_layers(), ["l_out-0", "l_out-1", "l_out-2"]),
        (
            Capture.all_layers(embedding=True, final=True),
            ["embd", "l_out-0", "l_out-1", "l_out-2", "result_norm"],
        ),
        (Capture.names(["result_norm", "l_out-1"]), ["l_out-1", "result_norm"]),
        (Capture.names(["Qcur-0#0"]), ["Qcur-0#0"]),
        (Capture.names(["Qcur-0#2"]), ["Qcur-0"]),
        (Capture.names(["Qcur-0#1", "Qcur-0"]), ["Qcur-0#1", "Qcur-0"]),
        (Capture.names(["l_out-*"]), ["l_out-0", "l_out-1", "l_out-2"]),
        (Capture.names(["l_out-[02]"]), ["l_out-0", "l_out-2"]),
        (Capture.names(["?_out-1"]), ["l_out-1"]),
        (Capture.names(["Qcur-?"]), ["Qcur-0", "Qcur-1", "Qcur-2"]),
        (Capture.names(["Qcur-0#*"]), ["Qcur-0#0", "Qcur-0#1", "Qcur-0"]),
        (Capture.names(["Qcur-*#1"]), ["Qcur-0#1", "Qcur-1#1", "Qcur-2#1"]),
        (Capture.prefix("l_out"), ["l_out-0", "l_out-1", "l_out-2"]),
        (Capture.prefix("Kcur-1 (v"), ["Kcur-1 (view)"]),
        (Capture.prefix("result_"), ["result_norm", "result_output"]),
        (Capture.layers([0]) | Capture.names(["l_out-0", "result_norm"]), ["l_out-0", "result_norm"]),
    ],
)
def test_what_a_capture_wants(capture, wanted, llama):
    assert keys(llama, capture) == wanted


def test_captures_add_up():
    a, b = Capture.layers([0, -1], embedding=True), Capture.names(["x"]) | Capture.layers([2, 0], final=True)
    both = a | b
    assert both == Capture(layer_indices=(0, -1, 2), embedding=True, final=True, patterns=("x",))
    assert a | a == a
    assert Capture() | b == b
    assert (a | Capture.everything()).every_node
    assert (Capture.everything() | a).every_node
    assert (a | Capture.all_layers()).every_layer
    assert (Capture.all_layers() | a).every_layer
    assert a == Capture.layers([0, -1], embedding=True)  # neither was changed
    with pytest.raises(TypeError):
        _ = a | "l_out-0"


def test_captures_are_values():
    capture = Capture.layers([1]) | Capture.names(["a*"])
    assert hash(capture) == hash(copy.deepcopy(capture))
    assert pickle.loads(pickle.dumps(capture)) == capture
    assert CaptureOfModule is Capture


@pytest.mark.parametrize("nothing", [Capture(), Capture.layers([]), Capture.names([]), Capture() | Capture()])
def test_a_capture_of_nothing_is_false(nothing):
    assert not nothing
    assert Capture.layers([0])
    assert Capture.names(["x"])
    assert Capture.everything()


@pytest.mark.parametrize("bad", [["0"], [0.0], [None], [True], "01"])
def test_layers_must_be_integers(bad):
    with pytest.raises(TypeError, match="integers"):
        Capture.layers(bad)


def test_numpys_integers_are_integers(llama):
    assert keys(llama, Capture.layers(np.arange(2))) == ["l_out-0", "l_out-1"]


@pytest.mark.parametrize("bad", [[0], [None], [b"l_out-0"]])
def test_names_must_be_strings(bad):
    with pytest.raises(TypeError):
        Capture.names(bad)


def test_one_name_is_not_a_list_of_its_letters():
    with pytest.raises(TypeError, match=r"names\(\[name\]\)"):
        Capture.names("l_out-0")


@pytest.mark.parametrize("index", [3, -4, 1000, -1000])
def test_layers_out_of_range(index, llama):
    with pytest.raises(LayerRangeError, match="0 to 2") as error:
        llama.forward(PROMPT, Capture.layers([0, index]))
    assert str(index) in str(error.value)
    assert isinstance(error.value, IndexError)


def test_unknown_nodes_are_told_what_is_near(llama):
    with pytest.raises(UnknownNodeError, match=r"'l_out_1'.*l_out-1.*nodes\(\)") as error:
        llama.forward(PROMPT, Capture.names(["l_out_1"]))
    assert isinstance(error.value, KeyError)
    assert not str(error.value).startswith(("'", '"'))
    with pytest.raises(UnknownNodeError, match="no node 'xyzzy'"):
        llama.forward(PROMPT, Capture.names(["xyzzy"]))
    with pytest.raises(UnknownNodeError, match="matches"):
        llama.forward(PROMPT, Capture.names(["xyzzy*"]))
    with pytest.raises(UnknownNodeError, match="3 times"):
        llama.forward(PROMPT, Capture.names(["Qcur-0#3"]))
    for odd in ("", "#", "#0", "Qcur-0#", "Qcur-0#-1", "Qcur-0#x", "Qcur-0#²", "*#0#0", "[", "l_out-0 "):
        with pytest.raises(UnknownNodeError):
            llama.forward(PROMPT, Capture.names([odd]))


def test_attention_weights_need_exact_mode(shared):
    with pytest.raises(AttentionUnsupportedError, match='precision="exact"'):
        shared("llama", precision="fast").forward(PROMPT, Capture.names(["kq_soft_max-0"]))


@pytest.mark.parametrize("name", DECODERS)
def test_everything_is_all_but_the_memory(name, shared):
    model: Model = shared(name)
    states = model.forward(PROMPT, Capture.everything())
    nodes = {node.key: node for node in model.nodes()}
    wanted = [key for key, node in nodes.items() if node.computed and not node.memory]
    assert list(states.values_by_key) == wanted
    assert [*states] == [key for key in wanted if nodes[key].token_axis is not None]
    assert states.tensors == [key for key in wanted if nodes[key].token_axis is None]
    assert not any(key.startswith("cache_") for key in wanted)


def test_a_glob_leaves_the_cache_out_and_a_name_gets_it(llama):
    assert not any(key.startswith("cache_") for key in llama.forward(PROMPT, Capture.names(["*"])).values_by_key)
    with pytest.raises(UnknownNodeError):
        llama.forward(PROMPT, Capture.prefix("cache_k"))
    states = llama.forward(PROMPT, Capture.names(["cache_k_l0 (view)", "Kcur-0"]))
    assert states.tensors == ["cache_k_l0 (view)"]
    cells = states.tensor("cache_k_l0 (view)").reshape(-1, 2, 16)
    assert np.array_equal(cells[: len(PROMPT)], states["Kcur-0"])  # the first sequence lies in the first cells


def test_prefixes_are_taken_as_they_are(llama):
    for odd in ("l_out-*", "l_out-?", "[l]_out", "?_out", "*"):
        with pytest.raises(UnknownNodeError):
            llama.forward(PROMPT, Capture.prefix(odd))


# -- nodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", DECODERS)
def test_the_axis_that_counts_tokens(name, precision, shared):
    """Passes of two lengths: exactly that axis changes with them, and every other named size is what it says."""
    model: Model = shared(name, precision=precision)
    nodes = {node.key: node for node in model.nodes()}
    assert len(nodes) == len(model.nodes())
    tensors = {}
    for n in (6, 11):
        states = model.forward(random_tokens(n), Capture.everything())
        for key, value in states.values_by_key.items():
            tensors[n, key] = states.tensor(key)
            if value.row_axis is not None:
                assert len(value.array) == n, key
    rows = 0
    for key, node in nodes.items():
        if (6, key) not in tensors:
            continue
        for n in (6, 11):
            shape = tensors[n, key].shape
            assert len(shape) == len(node.shape), key
            for axis, (size, said) in enumerate(zip(shape, node.shape, strict=True)):
                if isinstance(said, int):
                    assert size == said, key
                elif said in ("n_tokens", "n_outputs"):
                    assert size == n, key
                if axis == node.token_axis:
                    assert said in ("n_tokens", "n_outputs"), key
        if node.token_axis is not None:
            rows += 1
            assert node.per_output == (node.shape[node.token_axis] == "n_outputs")
    assert rows > 0.7 * len([key for n, key in tensors if n == 6])


def test_what_is_said_of_nodes(llama):
    nodes = {node.key: node for node in llama.nodes()}
    assert nodes["l_out-1"].shape == ("n_tokens", 64)
    assert nodes["l_out-1"].op == "ADD"
    assert nodes["l_out-1"].dtype == "f32"
    assert nodes["l_out-2"].shape == ("n_outputs", 64)
    assert nodes["l_out-2"].per_output
    assert nodes["Qcur-0#1"].shape == ("n_tokens", 4, 16)
    assert nodes["kq_soft_max-0"].shape == (4, "n_tokens", "n_kv")
    assert nodes["kq_soft_max-0"].token_axis == 1
    assert nodes["result_output"].shape == ("n_outputs", 320)
    assert nodes["cache_k_l0 (view)"].memory
    assert [node.occurrence for node in llama.nodes() if node.name == "Qcur-0"] == [0, 1, 2]
    assert [node.key for node in llama.nodes() if node.name == "Qcur-0"] == ["Qcur-0#0", "Qcur-0#1", "Qcur-0"]


def test_nodes_of_mixtures(shared):
    """Expert nodes have an axis of chosen experts beside that of tokens."""
    nodes = {node.key: node for node in shared("mixtral").nodes()}
    assert nodes["ffn_moe_gate-0"].token_axis == 0
    assert nodes["ffn_moe_gate-0"].shape == ("n_tokens", 2, 32)
    assert nodes["ffn_moe_topk-0"].dtype == "i32"
    states = shared("mixtral").forward(PROMPT, Capture.names(["ffn_moe_topk-0", "ffn_moe_probs-0"]))
    chosen = np.sort(states["ffn_moe_topk-0"], axis=1)
    assert chosen.dtype == np.int32
    assert np.array_equal(chosen, np.sort(np.argsort(-states["ffn_moe_probs-0"], axis=1)[:, :2], axis=1))


# -- states -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states(shared) -> States:
    capture = Capture.all_layers(embedding=True, final=True) | Capture.names(["Qcur-0#*", "kq_soft_max-1"])
    return shared("llama").forward(PROMPT, capture | Capture.names(["cache_k_l1 (view)"]))


def test_states_are_a_mapping(states):
    assert len(states) == 9 == len(list(states)) == len(dict(states.items()))
    assert next(iter(states)) == "embd"
    assert "l_out-1" in states
    assert "l_out-9" not in states
    assert 3 not in states
    assert states.get("l_out-9") is None
    assert "cache_k_l1 (view)" in states
    assert "cache_k_l1 (view)" not in list(states)
    assert {key: rows.shape for key, rows in states.items()}["Qcur-0"] == (6, 4, 16)
    assert "10 nodes, 6 rows" in repr(states)


def test_a_key_by_number_is_the_same_node(states):
    assert np.array_equal(states["Qcur-0#2"], states["Qcur-0"])
    assert "Qcur-0#2" in states
    assert "l_out-1#0" in states
    assert not np.array_equal(states["Qcur-0#1"], states["Qcur-0"])
    for odd in ("Qcur-0#3", "Qcur-0#02", "Qcur-0#", "#2", "Qcur-0#-1"):
        assert odd not in states
        with pytest.raises(NotCapturedError):
            _ = states[odd]


def test_layers_by_index(states):
    assert states.layers == [0, 1, 2]
    assert states.n_layer == 3
    assert np.array_equal(states.layer(-1), states["l_out-2"])
    assert np.array_equal(states.layer(0), states["l_out-0"])
    for index in (3, -4):
        with pytest.raises(NotCapturedError, match=r"captured layers: \[0, 1, 2\]"):
            states.layer(index)


def test_what_was_not_captured_is_said(llama):
    states = llama.forward(PROMPT, Capture.layers([1]))
    with pytest.raises(NotCapturedError, match="layer 0 was not captured"):
        states.layer(0)
    with pytest.raises(NotCapturedError, match="embedding=True"):
        _ = states.embedding
    with pytest.raises(NotCapturedError, match="final=True"):
        _ = states.final
    with pytest.raises(NotCapturedError):
        _ = states.hidden_states
    with pytest.raises(NotCapturedError, match="captured: l_out-1") as error:
        _ = states["ffn_out-0"]
    assert isinstance(error.value, KeyError)


def test_hidden_states_however_they_were_named(llama):
    """The roles belong to the nodes, not to the way in which they were asked for."""
    states = llama.forward(PROMPT, Capture.names(["embd", "l_out-*", "result_norm"]))
    assert [h.shape for h in states.hidden_states] == [(6, 64)] * 4
    assert np.array_equal(states.hidden_states[0], states["embd"])
    assert np.array_equal(states.hidden_states[2], states["l_out-1"])
    assert np.array_equal(states.hidden_states[3], states["result_norm"])


def test_tensors_have_the_graphs_own_shape(states):
    assert states.tensor("kq_soft_max-1").shape == (4, 6, 6)
    assert states["kq_soft_max-1"].shape == (6, 4, 6)
    assert np.array_equal(states.tensor("kq_soft_max-1")[:, 2], states["kq_soft_max-1"][2])
    assert np.array_equal(states.tensor("l_out-0"), states["l_out-0"])
    with pytest.raises(NotCapturedError):
        states.tensor("l_out-9")


def test_a_node_without_rows_is_given_whole(states):
    assert states.tensors == ["cache_k_l1 (view)"]
    assert states.tensor("cache_k_l1 (view)").ndim == 3
    with pytest.raises(NotCapturedError, match=r"no rows.*tensor"):
        _ = states["cache_k_l1 (view)"]


def test_the_states_of_a_step_are_one_row(llama):
    step = next(llama.generate(PROMPT, capture=Capture.all_layers() | Capture.names(["Qcur-0", "kq-0"])))
    assert step.states["l_out-0"].shape == (64,)
    assert step.states.layer(-1).shape == (64,)
    assert step.states["Qcur-0"].shape == (4, 16)
    assert step.states.tensor("kq-0").shape == (4, 1, 6)
    assert len(step.states.tokens) == len(step.states.positions) == 1


def test_concatenated_steps_are_rows_again(llama):
    steps = list(llama.generate(PROMPT, capture=Capture.all_layers(), max_tokens=4))
    states = States.concatenate([step.states for step in steps])
    assert states["l_out-1"].shape == (4, 64)
    assert states.positions == [5, 6, 7, 8]
    assert states.tokens == [PROMPT[-1], *[step.token_id for step in steps[:-1]]]
    for i, step in enumerate(steps):
        assert np.array_equal(states["l_out-1"][i], step.states["l_out-1"])
    assert States.concatenate([steps[0].states])["l_out-1"].shape == (1, 64)


def test_what_cannot_be_concatenated(llama, shared):
    with pytest.raises(StatesError, match="nothing"):
        States.concatenate([])
    one, other = llama.forward(PROMPT, Capture.layers([0])), llama.forward(PROMPT, Capture.layers([1]))
    with pytest.raises(CaptureUnsupportedError):
        States.concatenate([one, other])
    whole = llama.forward(PROMPT, Capture.names(["cache_k_l1 (view)"]))
    with pytest.raises(CaptureUnsupportedError, match="no rows"):
        States.concatenate([whole, whole])
    with pytest.raises(CaptureUnsupportedError, match="n_ubatch"):
        shared("llama", n_ubatch=8).forward(random_tokens(20), Capture.everything())


def test_rows_must_be_as_many_as_tokens():
    values = {"x": NodeValues(np.zeros((3, 4)), 0)}
    with pytest.raises(StatesError, match="3 rows for 2 tokens"):
        States(values, Roles(1, {}, None, None), [1, 2], [0, 1])


def test_a_capture_that_fails_leaves_the_model_usable(llama):
    wanted = llama.forward(PROMPT, Capture.all_layers())
    for bad in (Capture.layers([9]), Capture.names(["nothing"]), Capture.names(["l_out-0", "x*"])):
        with pytest.raises(LoomError):
            llama.forward(PROMPT, bad)
        with pytest.raises(LoomError):
            llama.generate(PROMPT, capture=bad)
    again = llama.forward(PROMPT, Capture.all_layers())
    assert all(np.array_equal(again[key], rows) for key, rows in wanted.items())


def test_ever_new_captures_do_not_pile_up():
    """Resolved captures are remembered; a caller that makes up new ones must not fill the memory."""
    with open_model("llama") as model:
        names = [node.key for node in model.nodes() if node.computed]
        ctx = model._context
        batch = Batch.of_one(np.array(PROMPT), 0, 0)
        for pair in itertools.islice(itertools.combinations(names, 2), 600):
            ctx.catalog.several.select(Capture.names(pair))
        assert len(ctx.catalog.several._selections) <= 256
        assert len(ctx.decode_capturing(batch, Capture.names(names[:1]), np.arange(6)).states().tokens) == 6
