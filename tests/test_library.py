"""Names to models, in stores laid out as the programs that own them lay them out."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import gguf_edit
import numpy as np
import pytest
from reading import read_again_and_again
from stores import FIDELITY, LLAMA, HuggingFaceCache, LMStudioFolder, OllamaStore

from loom_gguf import Capture, Model, ModelNotFoundError
from loom_gguf.cli import main
from loom_gguf.errors import ManifestError, MissingPartError, ModelLoadError, UnsupportedModelError
from loom_gguf.library import Library, LibrarySettings, demo_path, resolve


@dataclass
class Machine:
    own: OllamaStore
    ollama: OllamaStore
    hub: HuggingFaceCache
    studio: LMStudioFolder
    folder: Path

    def library(self, **more: object) -> Library:
        return Library(LibrarySettings.read(os.environ), **more)  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with all places, which are empty."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, value in {
        "LOOM_HOME": "loom", "LOOM_MODELS_DIR": "folder", "OLLAMA_MODELS": "ollama", "HF_HUB_CACHE": "hub",
        "LM_STUDIO_MODELS": "studio",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(tmp_path / value))
    return Machine(
        OllamaStore(tmp_path / "loom" / "models"),
        OllamaStore(tmp_path / "ollama"),
        HuggingFaceCache(tmp_path / "hub"),
        LMStudioFolder(tmp_path / "studio"),
        folder,
    )


# -- Ollama -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["llama3.2", "llama3.2:latest", "LLAMA3.2:Latest", "library/llama3.2", "registry.ollama.ai/library/llama3.2",
     "https://registry.ollama.ai/library/llama3.2:latest"],
)  # fmt: skip
def test_a_model_of_ollama(machine: Machine, name: str) -> None:
    manifest = machine.ollama.add("llama3.2", system="Be brief.", params={"stop": ["x"]}, license=["A", "B"])
    machine.ollama.add("llama3.2:1b", model=FIDELITY / "llama-q4_0.gguf", config={"file_type": "Q4_0"})
    entry = machine.library().find(name)
    digest = hashlib.sha256(LLAMA.read_bytes()).hexdigest()
    assert entry.path == machine.ollama.blob_path(digest)
    assert (entry.name, entry.tag, entry.place, entry.quantization) == ("llama3.2", "llama3.2:latest", "ollama", "F32")
    assert entry.digest == hashlib.sha256(manifest.read_bytes()).hexdigest()
    layers = json.loads(manifest.read_text())
    assert entry.size == sum(layer["size"] for layer in [layers["config"], *layers["layers"]])
    assert machine.library().find("llama3.2:1B").quantization == "Q4_0"
    with pytest.raises(ModelNotFoundError):
        machine.library().find("llama3.2:3b")


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        ("registry.ollama.ai/me/mine/latest", "me/mine"),
        ("hf.co/org/Repo-GGUF/Q4_K_M", "hf.co/org/Repo-GGUF:Q4_K_M"),
        ("hf.co/org/Repo-GGUF/Q4_K_M", "huggingface.co/ORG/repo-gguf:q4_k_m"),
        ("localhost:5000/a/b/c", "localhost:5000/a/b:c"),
    ],
)
def test_hosts_and_namespaces(machine: Machine, manifest: str, name: str) -> None:
    machine.ollama.add(manifest)
    assert machine.library().find(name).path is not None
    with pytest.raises(ModelNotFoundError):
        machine.library().find(name.rsplit("/", maxsplit=1)[-1])


def test_what_a_manifest_adds(machine: Machine) -> None:
    machine.ollama.add(
        "full", system="Be brief.", template="{{ .Prompt }}", license=["MIT", "and more"],
        params={"temperature": 0.5, "stop": ["<|end|>"]}, messages=[{"role": "user", "content": "hi"}],
        projector=FIDELITY / "bert.gguf",
    )  # fmt: skip
    library = machine.library()
    entry = library.find("full")
    extras = library.extras(entry)
    assert (extras.system, extras.template, extras.licenses) == ("Be brief.", "{{ .Prompt }}", ("MIT", "and more"))
    assert extras.params == {"temperature": 0.5, "stop": ["<|end|>"]}
    assert extras.messages == [{"role": "user", "content": "hi"}]
    assert (entry.projectors, entry.details["model_type"]) == (1, "97.54K")
    assert library.extras(library.find("demo")).system == ""


@pytest.mark.parametrize(
    ("layers", "config", "said"),
    [
        ({"adapter": LLAMA}, {}, "LoRA adapter"),
        ({}, {"model_format": "safetensors"}, "safetensors"),
        ({"tensor": "x"}, {}, "GGUF"),
        ({}, {"remote_host": "https://ollama.com:443", "remote_model": "big"}, "other machines"),
    ],
)
def test_what_cannot_be_run_is_said(machine: Machine, layers: dict, config: dict, said: str) -> None:
    machine.ollama.add("odd", config=config, **layers)
    with pytest.raises(UnsupportedModelError, match=said):
        machine.library().find("odd")
    with pytest.raises(UnsupportedModelError, match=said):
        Model("odd")


def test_without_a_model_layer(machine: Machine) -> None:
    machine.ollama.put("none", machine.ollama.manifest())
    machine.ollama.put("cloud", machine.ollama.manifest() | {"config": {"digest": ""}, "layers": None})
    for name in ("none", "cloud"):
        with pytest.raises(UnsupportedModelError, match="no GGUF file"):
            machine.library().find(name)


# -- Hugging Face, LM Studio, loose files --------------------------------------------------------------------------


def test_models_of_the_hugging_face_cache(machine: Machine) -> None:
    repository = "ggml-org/Tiny-GGUF"
    old = machine.hub.add(repository, "tiny-Q8_0.gguf", FIDELITY / "llama-q8_0.gguf", "b" * 40)
    gone = machine.hub.add(repository, "tiny-Q4_K_M.gguf", b"GGUFold", "b" * 40)
    new = machine.hub.add(repository, "tiny-Q4_K_M.gguf", FIDELITY / "llama-q4_0.gguf")
    deep = machine.hub.add(repository, "F16/tiny-f16.gguf", FIDELITY / "llama-f16.gguf")
    machine.hub.add(repository, "mmproj-tiny-f16.gguf", b"GGUF")
    machine.hub.add(repository, "README.md", b"# Tiny")
    machine.hub.add("other/bert", "model.safetensors", b"{}")
    names = {entry.name: entry.path for entry in machine.library().entries() if entry.place == "huggingface"}
    assert names == {
        f"hf.co/{repository}:{tag}": path for tag, path in {"Q8_0": old, "Q4_K_M": new, "F16": deep}.items()
    }
    assert gone not in names.values()
    find = machine.library().find
    for name in (f"hf.co/{repository}", f"hf.co/{repository}:q4_k_m", "tiny-Q4_K_M", "tiny-Q4_K_M.gguf",
                 f"huggingface.co/{repository.lower()}", f"https://huggingface.co/{repository}:Q4_K_M"):  # fmt: skip
        assert find(name).path == new, name
    for name in (f"hf.co/{repository}:f16", f"hf.co/{repository}/F16/tiny-f16.gguf"):
        assert find(name).path == deep, name


def test_the_layout_is_that_of_huggingface_hub(machine: Machine) -> None:
    hub = pytest.importorskip("huggingface_hub")
    path = machine.hub.add("org/repo", "a-Q8_0.gguf", LLAMA)
    assert hub.try_to_load_from_cache("org/repo", "a-Q8_0.gguf", cache_dir=machine.hub.root) == str(path)
    (found,) = hub.scan_cache_dir(machine.hub.root).repos
    (revision,) = found.revisions
    assert (found.repo_id, revision.refs, len(revision.files)) == ("org/repo", {"main"}, 1)


def test_models_of_lm_studio(machine: Machine) -> None:
    one = machine.studio.add("lmstudio-community", "Tiny-GGUF", "Tiny-Q4_K_M.gguf")
    two = machine.studio.add("lmstudio-community", "Tiny-GGUF", "Tiny-Q8_0.gguf")
    machine.studio.add("lmstudio-community", "Tiny-GGUF", "mmproj-Tiny-F16.gguf")
    find = machine.library().find
    for name in ("lmstudio-community/Tiny-GGUF", "lmstudio-community/tiny-gguf:Q4_K_M", "tiny-q4_k_m"):
        assert find(name).path == one
    assert find("lmstudio-community/Tiny-GGUF:Q8_0").path == two
    assert len([entry for entry in machine.library().entries() if entry.place == "lmstudio"]) == 2


def test_a_link_from_one_place_to_another_is_followed(machine: Machine) -> None:
    machine.ollama.add("tiny")
    blob = machine.library().find("tiny").path
    link = machine.studio.root / "ollama" / "tiny" / "tiny.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    assert machine.library().find("ollama/tiny:tiny").path == link


# -- order ------------------------------------------------------------------------------------------------------


def test_the_order_of_places(machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    expected = []
    for place, add in (
        ("own", lambda: machine.own.add("same")),
        ("folder", lambda: (machine.folder / "same.gguf").write_bytes(LLAMA.read_bytes())),
        ("ollama", lambda: machine.ollama.add("same")),
        ("huggingface", lambda: machine.hub.add("org/repo", "same.gguf", LLAMA)),
        ("lmstudio", lambda: machine.studio.add("org", "repo", "same.gguf")),
    ):
        add()
        expected.append(place)
    assert [entry.place for entry in machine.library().where("SAME:latest")] == expected
    assert machine.library().find("same").place == "own"
    path = tmp_path / "elsewhere" / "same.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    assert machine.library(files=[path]).find("same").path == path
    assert main(["where", "same"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == expected
    assert main(["where", "nosuch"]) == 1
    assert main(["where", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["path"] == str(path)


def test_nobody_takes_the_name_of_the_demo(machine: Machine) -> None:
    machine.own.add("demo")
    assert machine.library().find("demo").path == resolve("demo") == demo_path()


# -- parts ------------------------------------------------------------------------------------------------------


def test_split_models(machine: Machine) -> None:
    whole = gguf_edit.read(LLAMA)
    paths = whole.split(machine.folder, "big", 3)
    entry = machine.library().find("big")
    assert (entry.path, entry.parts) == (paths[0], tuple(paths))
    assert entry.size == sum(path.stat().st_size for path in paths)
    tokens = [1, 2, 3]
    with Model("big", n_threads=1) as model, Model(LLAMA, n_threads=1) as same:
        states, expected = (each.forward(tokens, Capture.all_layers()) for each in (model, same))
        np.testing.assert_array_equal(states.layer(-1), expected.layer(-1))
    assert resolve(str(paths[2])) == paths[0]
    paths[1].unlink()
    with pytest.raises(MissingPartError, match=r"missing: 2\."):
        machine.library().find("big")
    for path in (paths[0], str(paths[0]), str(paths[2])):
        with pytest.raises(MissingPartError, match=r"missing: 2\."):
            Model(path)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("shorter", r"announces \d+ tensors, but its parts have \d+"),
        ("swapped", "00002-of-00002.gguf is not part 2 of 2"),
        ("truncated", "00002-of-00002.gguf is truncated"),
        ("renamed", "call it NAME-00001-of-00002.gguf"),
        ("second", "is not the first of 2 parts: name big-00001-of-00002.gguf"),
    ],
)
def test_parts_that_are_not_the_models(machine: Machine, fault: str, said: str) -> None:
    whole = gguf_edit.read(LLAMA)
    first, second = whole.split(machine.folder, "big", 2)
    if fault == "shorter":
        fewer = gguf_edit.Gguf(whole.keys, whole.tensors[:-3]).split(machine.folder.parent, "fewer", 2)
        second.write_bytes(fewer[1].read_bytes())
    elif fault == "swapped":
        second.write_bytes(first.read_bytes())
    elif fault == "truncated":
        second.write_bytes(second.read_bytes()[:-1000])
    elif fault == "renamed":
        first = first.rename(machine.folder / "mine.gguf")
    else:
        first = second
    with pytest.raises(ModelLoadError, match=said):
        Model(first)


# -- through the command line -------------------------------------------------------------------------------------


def test_list(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.own.add("mine")
    machine.ollama.add("mine")
    machine.ollama.add("bad", adapter=LLAMA)
    machine.ollama.put("worse", b"{")
    machine.hub.add("org/repo", "bert-F32.gguf", FIDELITY / "bert.gguf")
    (machine.folder / "broken.gguf").write_bytes(b"GGUF and no more")
    (machine.folder / "t5.gguf").write_bytes((FIDELITY / "t5.gguf").read_bytes())
    assert main(["list", "--json"]) == 0
    rows = {(row["name"], row["place"]): row for row in json.loads(capsys.readouterr().out)}
    levels = {key: row["hidden_states"]["level"] for key, row in rows.items()}
    assert levels == {
        ("demo:latest", "demo"): "all",
        ("mine:latest", "own"): "all",
        ("broken:latest", "folder"): "refused",
        ("t5:latest", "folder"): "refused",
        ("mine:latest", "ollama"): "all",
        ("bad:latest", "ollama"): "refused",
        ("worse:latest", "ollama"): "refused",
        ("hf.co/org/repo:F32", "huggingface"): "prompt",
    }
    assert rows["mine:latest", "ollama"]["hidden_by"] == "own"
    assert rows["mine:latest", "own"]["hidden_by"] is None
    assert "LoRA" in rows["bad:latest", "ollama"]["hidden_states"]["how"]
    assert main(["list", "--place", "ollama"]) == 0
    out = capsys.readouterr().out
    assert [line.split("\t")[0] for line in out.splitlines()] == ["name", "bad:latest", "mine:latest", "worse:latest"]


def test_commands_take_names(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.ollama.add("org/tiny".join(["registry.ollama.ai/", "/q4"]), model=FIDELITY / "llama-q4_0.gguf")
    assert main(["show", "org/tiny:Q4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantization"] == "Q4_0"
    assert main(["run", "org/tiny:q4", "x", "--max-tokens", "2", "--threads", "1"]) == 0
    assert main(["nodes", "org/tiny:q4", "--match", "l_out-*", "--threads", "1"]) == 0
    capsys.readouterr()
    assert main(["show", "org/tiny"]) == 1
    assert "loom-gguf list" in capsys.readouterr().err


def test_a_file_in_the_current_folder(machine: Machine, tmp_path: Path) -> None:
    machine.ollama.add("tiny")
    for name in ("tiny", "tiny.gguf", "odd name"):
        (tmp_path / name).write_bytes(LLAMA.read_bytes())
    assert resolve("tiny") == machine.library().find("tiny").path
    assert resolve("tiny.gguf") == Path("tiny.gguf")
    assert resolve("./tiny") == Path("tiny")
    assert resolve("odd name") == Path("odd name")
    assert resolve(Path("tiny")) == Path("tiny")
    for name in ("nosuch", "", "a\0b", "~nobody-here/x.gguf", "x" * 5000):
        with pytest.raises(ModelNotFoundError, match="no model"):
            resolve(name)


# -- settings ---------------------------------------------------------------------------------------------------


def test_where_places_are() -> None:
    default = LibrarySettings.read({"HOME": "/h"})
    assert default == LibrarySettings(
        own=Path("/h/.local/share/loom_gguf/models"),
        ollama=(Path("/h/.ollama/models"), Path("/usr/share/ollama/.ollama/models")),
        hugging_face=Path("/h/.cache/huggingface/hub"),
        lm_studio=(Path("/h/.lmstudio/models"), Path("/h/.cache/lm-studio/models")),
    )
    named = LibrarySettings.read({
        "HOME": "/h", "LOOM_HOME": "~/l", "OLLAMA_MODELS": "/o", "HF_HOME": "/f", "LOOM_MODELS_DIR": "/m",
        "LM_STUDIO_MODELS": "/s", "XDG_DATA_HOME": "/d", "HF_HUB_CACHE": "",
    })  # fmt: skip
    assert named == LibrarySettings(Path("/h/l/models"), Path("/m"), (Path("/o"),), Path("/f/hub"), (Path("/s"),))
    assert LibrarySettings.read({"HOME": "/h", "XDG_DATA_HOME": "/d"}).own == Path("/d/loom_gguf/models")
    assert LibrarySettings.read({"HOME": "/h", "HF_HUB_CACHE": "/c", "HF_HOME": "/f"}).hugging_face == Path("/c")


# -- two programs at once -----------------------------------------------------------------------------------------


def test_two_programs_read_while_a_third_one_writes(machine: Machine) -> None:
    manifest = machine.ollama.add("stays", system="x")
    pipes = []
    spawn = multiprocessing.get_context("spawn")
    for _ in range(2):
        here, there = spawn.Pipe()
        process = spawn.Process(target=read_again_and_again, args=(20, there))
        process.start()
        pipes.append((process, here))
    n = 0
    while any(process.is_alive() and not here.poll() for process, here in pipes):
        path = machine.ollama.add(f"comes-and-goes:{n % 5}", params={"seed": n % 7})
        path.unlink()
        n += 1
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    for process, here in pipes:
        assert here.recv() == {(digest, "None")}
        process.join(30)
        assert process.exitcode == 0


def test_a_model_that_goes_while_it_is_looked_at(machine: Machine) -> None:
    machine.ollama.add("tiny")
    library = machine.library()
    entry = library.find("tiny")
    assert entry.path is not None
    entry.path.unlink()
    with pytest.raises(ManifestError, match="missing"):
        library.find("tiny")
