"""Files of states: they come back bit for bit, whole or not at all, and say what is wrong with them."""

import contextlib
import json
import os
import random
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from loom_gguf import Capture, Model, States, StatesFileError, __version__
from loom_gguf.states import NodeValues, Roles
from loom_gguf.states_file import load_states, model_facts, read_metadata, save_states, token_texts

SUFFIXES = (".safetensors", ".npz")
ODD_NAMES = (
    "Qcur-0 (view)#1",
    "a/b",
    "../up",
    "file",
    "x.npy",
    "tokens",
    "positions",
    "__metadata__",
    "ключ",
    "tokens_",
)


def odd_states(**settings):
    """Every kind of node, name and number."""
    bits = np.array([[0x7FC00001, 0x7F800001], [0x80000000, 0xFF800000], [1, 0x7F7FFFFF]], np.uint32)
    values = {name: NodeValues(bits.view(np.float32), 0, i) for i, name in enumerate(ODD_NAMES)}
    values["bits"] = NodeValues(bits.view(np.float32), 0)
    values["turned"] = NodeValues(np.arange(24, dtype=np.float32).reshape(2, 4, 3).transpose(2, 0, 1), 1)
    values["ids"] = NodeValues(np.arange(6, dtype=np.int32).reshape(3, 2), 0)
    values["attention"] = NodeValues(np.ones((3, 2, 10), np.float32), 1, 0, 2)
    values["half"] = NodeValues(np.ones((3, 1), np.float16), 0)
    values["whole"] = NodeValues(np.arange(5, dtype=np.float32), None, 2)
    values["nothing"] = NodeValues(np.zeros((0, 4), np.float32), None)
    roles = Roles(n_layer=7, layers={5: "turned", 0: "bits"}, embedding="a/b", final=None)
    return States(values, roles, [5, 0, 2**31 - 1], [0, 1, 9], **settings)


def assert_same(a, b):
    assert list(a.values_by_key) == list(b.values_by_key)
    for key, value in a.values_by_key.items():
        other = b.values_by_key[key]
        assert value[1:] == other[1:]
        assert (value.array.dtype, value.array.shape) == (other.array.dtype, other.array.shape)
        assert value.array.tobytes() == other.array.tobytes(), key
    assert a.roles == b.roles
    assert (a.tokens, a.positions, a.sequence) == (b.tokens, b.positions, b.sequence)
    assert list(a) == list(b)


@pytest.fixture(scope="module")
def demo_states():
    with Model("demo", n_threads=1) as model:
        states = model.forward("There once was", Capture.everything())
        return states, {**model_facts(model), "token_texts": token_texts(model, states.tokens)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_everything_of_a_model_comes_back(tmp_path, suffix, demo_states):
    states, facts = demo_states
    path = tmp_path / f"states{suffix}"
    states.save(path, metadata=facts)
    loaded = States.load(path)
    assert_same(states, loaded)
    assert loaded.tensors == states.tensors
    np.testing.assert_array_equal(loaded.layer(-1), states.layer(-1))
    assert len(loaded.hidden_states) == states.n_layer + 1
    facts = read_metadata(path)
    assert (facts["model"], facts["architecture"], facts["quantization"]) == ("demo.gguf", "llama", "F16")
    assert facts["token_texts"][0] == "<|begin|>"
    assert "".join(facts["token_texts"][1:]) == "There once was"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_odd_names_shapes_and_numbers_come_back(tmp_path, suffix):
    states = odd_states(sequence=3)
    save_states(states, tmp_path / f"x{suffix}")
    assert_same(states, load_states(tmp_path / f"x{suffix}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_step_stays_one_row_without_its_axis(tmp_path, suffix):
    values = {"l_out-0": NodeValues(np.ones((1, 4), np.float32), 0)}
    states = States(values, Roles(1, {0: "l_out-0"}, None, None), [1], [2], single=True)
    save_states(states, tmp_path / f"x{suffix}")
    assert load_states(tmp_path / f"x{suffix}").layer(0).shape == (4,)


def test_other_programs_can_read_them(tmp_path):
    states = odd_states()
    save_states(states, str(tmp_path / "x.safetensors"), metadata={"prompt": "ä"})
    save_states(states, str(tmp_path / "x.npz"), metadata={"prompt": "ä"})
    arrays = load_file(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        header = json.loads(file.metadata()["loom_gguf.states"])
    with np.load(tmp_path / "x.npz") as npz:
        assert json.loads(str(npz["__metadata__"])) == header
        np.testing.assert_array_equal(npz["ids"], arrays["ids"])
        np.testing.assert_array_equal(npz["a/b"], arrays["a/b"])
    assert (header["format"], header["version"], header["loom_gguf"]) == ("loom_gguf.states", 1, __version__)
    assert header["nodes"]["whole"] == {"array": "whole", "row_axis": None, "occurrence": 2, "cell_axis": None}
    assert header["roles"] == {"n_layer": 7, "layers": {"5": "turned", "0": "bits"}, "embedding": "a/b", "final": None}
    assert header["metadata"] == {"prompt": "ä"}
    for name, values in (("tokens", states.tokens), ("positions", states.positions)):
        assert arrays[name].dtype == np.int32
        assert arrays[name].tolist() == values


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_states_give_the_same_file(tmp_path, suffix):
    save_states(odd_states(), tmp_path / f"a{suffix}")
    save_states(odd_states(), tmp_path / f"b{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_gets_the_usual_permissions_and_a_link_stays_a_link(tmp_path, suffix):
    (tmp_path / "plain").touch()
    (tmp_path / f"link{suffix}").symlink_to(tmp_path / f"real{suffix}")
    save_states(odd_states(), tmp_path / f"link{suffix}")
    assert (tmp_path / f"link{suffix}").is_symlink()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", f"real{suffix}")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"x{suffix}"
    save_states(odd_states(), path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StatesFileError, match=r"No space left on device.*choose another"):
        save_states(odd_states(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a file size limit")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_is_said(tmp_path, suffix):
    code = """if True:
        import resource, signal, sys, numpy as np
        from loom_gguf import States, StatesFileError
        from loom_gguf.states import NodeValues, Roles
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        states = States({"n": NodeValues(np.ones((1, 100_000), np.float32), 0)}, Roles(1, {}, None, None), [1], [0])
        try:
            states.save(sys.argv[1])
        except StatesFileError as error:
            print(error)
    """
    path = tmp_path / f"x{suffix}"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.txt", r"\.safetensors or \.npz"),
        ("x", r"\.safetensors or \.npz"),
        ("no/folder/x.npz", "no folder .*make it first"),
        ("folder.npz", "is a folder: name a file"),
    ],
)
def test_where_states_cannot_be_written_is_said(tmp_path, name, said):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(StatesFileError, match=said):
        save_states(odd_states(), tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StatesFileError, match="cannot be written to"):
        save_states(odd_states(), tmp_path / "x.npz")


def test_metadata_that_is_no_json_is_said(tmp_path):
    for metadata in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(StatesFileError, match="JSON"):
            save_states(odd_states(), tmp_path / "x.npz", metadata=metadata)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_that_hold_no_states_are_said(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(StatesFileError, match="no file"):
        load_states(path)
    path.mkdir()
    with pytest.raises(StatesFileError, match="cannot be read"):
        load_states(path)
    path.rmdir()
    if suffix == ".npz":
        np.savez(path, a=np.ones(2))
    else:
        save_file({"a": np.ones(2)}, path)
    with pytest.raises(StatesFileError, match="holds no states"):
        load_states(path)
    for content in (b"", b"PK\x03\x04", b"hello, this is a text"):
        path.write_bytes(content)
        with pytest.raises(StatesFileError, match="is damaged, cut off or no"):
            load_states(path)
    with pytest.raises(StatesFileError, match="no file of states"):
        load_states(tmp_path / "x.gguf")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_and_changed_files_are_errors_or_whole(tmp_path, suffix):
    save_states(odd_states(), tmp_path / f"x{suffix}")
    good = (tmp_path / f"x{suffix}").read_bytes()
    path = tmp_path / f"y{suffix}"
    rng = random.Random(0)
    for _ in range(60):
        path.write_bytes(good[: rng.randrange(len(good))])
        with pytest.raises(StatesFileError):
            load_states(path)
    for _ in range(300):
        changed = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(good))] = rng.randrange(256)
        path.write_bytes(changed)
        with contextlib.suppress(StatesFileError):  # and nothing else: no KeyError, no MemoryError
            load_states(path)


def test_a_newer_format_asks_for_a_newer_loom_gguf(tmp_path):
    header = {"format": "loom_gguf.states", "version": 2}
    save_file({"a": np.ones(1)}, tmp_path / "x.safetensors", {"loom_gguf.states": json.dumps(header)})
    with pytest.raises(StatesFileError, match=r"version 2 .*newer loom_gguf"):
        load_states(tmp_path / "x.safetensors")


def test_npz_arrays_are_never_pickles(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(StatesFileError, match="damaged"):
        load_states(tmp_path / "x.npz")
