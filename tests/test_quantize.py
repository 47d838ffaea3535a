"""Quantizing by llama.cpp: what comes out is what was announced, and nothing half is left behind."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_edit
import numpy as np
import pytest
from gguf_edit import Tensor

import loom_gguf.quantize as package
from loom_gguf import Capture, Model
from loom_gguf.cli import main
from loom_gguf.errors import (
    AlreadyQuantizedError,
    CorruptGGUFError,
    ImportanceMatrixError,
    LoomError,
    NoSpaceError,
    QuantizeError,
    TruncatedGGUFError,
)
from loom_gguf.gguf_file import read_gguf
from loom_gguf.library import demo_path
from loom_gguf.quantize import TYPES, forecast, quantize, type_named

FIDELITY = Path(__file__).parent / "fidelity"
F16 = FIDELITY / "llama-f16.gguf"
F32 = FIDELITY / "llama.gguf"


@pytest.mark.parametrize(
    ("source", "name", "type"),
    [
        (F16, "Q8_0", "q8_0"),
        (F32, "BF16", "bf16"),
        (F16, "Q4_K_M", "q5_0"),  # rows of 64 values are too short for Q4_K's blocks
        (demo_path(), "Q8_0", "q8_0"),
    ],
)
def test_quantized(source: Path, name: str, type: str, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    planned = forecast(source, name)
    seen: list[tuple[int, int]] = []
    made = quantize(source, target, name, n_threads=1, on_progress=lambda *at: seen.append(at))
    assert made.path == target
    assert abs(planned.size / target.stat().st_size - 1) < 0.02
    old, new = read_gguf(source), read_gguf(target)
    assert {(t.name, t.shape) for t in new.tensors} == {(t.name, t.shape) for t in old.tensors}
    assert {t.type for t in new.tensors if len(t.shape) > 1} <= {type, "q8_0", "q6_k"}
    assert next(t.type for t in new.tensors if t.name == "blk.0.ffn_up.weight") == type
    assert {t.type for t in new.tensors if len(t.shape) == 1} == {"f32"}
    counted: dict[str, int] = {}
    for tensor in new.tensors:
        counted[tensor.type.upper()] = counted.get(tensor.type.upper(), 0) + 1
    assert planned.types == counted
    assert new.metadata["general.file_type"] == TYPES[name]
    assert seen == sorted(seen)
    assert seen[-1] == (sum(t.size for t in old.tensors),) * 2
    assert len(seen) == len(old.tensors) + 1
    assert os.listdir(tmp_path) == ["out.gguf"]


def test_the_rows_stay_about_the_same(tmp_path: Path) -> None:
    """Against the unquantized model: Q8_0 keeps the hidden states to a few parts in a hundred."""
    quantize(F32, tmp_path / "q8.gguf", "Q8_0", n_threads=1)
    rows = []
    for path in (F32, tmp_path / "q8.gguf"):
        with Model(path, n_ctx=64, n_threads=1, precision="exact") as model:
            rows.append(model.forward([1, 5, 9, 2], Capture.layers([-1]))[f"l_out-{model.n_layer - 1}"])
    error = np.linalg.norm(rows[1] - rows[0]) / np.linalg.norm(rows[0])
    assert 0 < error < 0.05


def test_a_split_model(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first = gguf_edit.read(F16).split(tmp_path / "in", "x", 3)[0]
    planned = forecast(first, "Q8_0")
    quantize(first, tmp_path / "out.gguf", "Q8_0", n_threads=1)
    quantize(F16, tmp_path / "whole.gguf", "Q8_0", n_threads=1)
    size = (tmp_path / "out.gguf").stat().st_size
    assert abs(planned.size / size - 1) < 0.05
    with Model(tmp_path / "out.gguf", n_ctx=64) as one, Model(tmp_path / "whole.gguf", n_ctx=64) as other:
        a, b = (model.forward([1, 2, 3], Capture.layers([-1])).layer(-1) for model in (one, other))
        assert (a == b).all()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama model with rows of 256 values, as long as the blocks of the types with few bits."""
    model = gguf_edit.read(F16)
    rng = np.random.default_rng(0)

    def widened(tensor: Tensor) -> Tensor:
        shape = tuple(256 if size == 64 else size * 2 if size in (128, 160, 192) else size for size in tensor.shape)
        kind = np.float16 if tensor.type == 1 else np.float32
        data = rng.normal(0, 0.02, int(np.prod(shape))).astype(kind).tobytes()
        return replace(tensor, shape=shape, data=data)

    wider = replace(model, tensors=tuple(map(widened, model.tensors))).with_keys(
        llama__embedding_length=256,
        llama__attention__key_length=None,
        llama__attention__value_length=None,
        llama__rope__dimension_count=64,
    )
    return wider.write(tmp_path_factory.mktemp("wide") / "wide.gguf")


@pytest.mark.parametrize("name", ["IQ2_XXS", "Q2_K_S"])
def test_types_that_need_an_importance_matrix(wide: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ImportanceMatrixError, match="importance matrix"):
        quantize(wide, tmp_path / "out.gguf", name, n_threads=1)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["Q4_K_M"])
def test_mixtures(wide: Path, tmp_path: Path, name: str) -> None:
    planned = forecast(wide, name)
    made = quantize(wide, tmp_path / "out.gguf", name, n_threads=1)
    assert abs(planned.size / made.size - 1) < 0.02
    assert {tensor.type.lower() for tensor in made.tensors} >= {"f32", name.lower()[:4]}


@pytest.mark.parametrize("name", ["nothing", "", "Q9_0", "15", "COPY"])
def test_unknown_types(name: str) -> None:
    with pytest.raises(ValueError, match="there is no type"):
        type_named(name)


def test_names_of_types() -> None:
    assert [type_named(name) for name in ("q4_k", "Q4_K_M", "fp16", "iq4_xs")] == ["Q4_K_M", "Q4_K_M", "F16", "IQ4_XS"]


def test_weights_that_are_quantized_already(tmp_path: Path) -> None:
    source, target = FIDELITY / "llama-q8_0.gguf", tmp_path / "out.gguf"
    with pytest.raises(AlreadyQuantizedError, match="--allow-requantize"):
        quantize(source, target, "Q4_0")
    assert not target.exists()
    made = quantize(source, target, "Q4_0", allow_requantize=True, n_threads=1)
    assert {tensor.type for tensor in made.tensors} >= {"q4_0"}
    quantize(source, tmp_path / "same.gguf", "Q8_0", n_threads=1)  # nothing is quantized a second time


def test_a_target_that_is_there(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(QuantizeError, match="--force"):
        quantize(F16, target, "Q8_0")
    assert target.read_bytes() == b"mine"
    quantize(F16, target, "Q8_0", force=True, n_threads=1)
    assert read_gguf(target).quantization == "Q8_0"
    with pytest.raises(QuantizeError, match="no folder"):
        quantize(F16, tmp_path / "nosuch" / "out.gguf", "Q8_0")


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom_gguf.pull.space.shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**25 + 100}))
    with pytest.raises(NoSpaceError, match="make room"):
        quantize(F16, tmp_path / "out.gguf", "Q8_0")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("content", "error"), [(F16.read_bytes()[:5000], CorruptGGUFError), (F16.read_bytes()[:-5000], TruncatedGGUFError)]
)
def test_a_damaged_source(tmp_path: Path, content: bytes, error: type[LoomError]) -> None:
    (tmp_path / "in.gguf").write_bytes(content)
    with pytest.raises(error):
        quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")
    assert os.listdir(tmp_path) == ["in.gguf"]


def test_a_source_that_llama_cpp_refuses(tmp_path: Path) -> None:
    unknown = gguf_edit.read(F16).as_architecture("nosuch").write(tmp_path / "in.gguf")
    with pytest.raises(QuantizeError, match="unknown model architecture"):
        forecast(unknown, "Q8_0")


def test_a_quantizer_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = forecast(F16, "Q8_0")
    real = package.subprocess.Popen

    def dying(command: list[str], **more: Any) -> Any:
        code = "import os, sys; print('GGML_ASSERT failed', file=sys.stderr, flush=True); os.abort()"
        return real([sys.executable, "-c", code], **more)

    monkeypatch.setattr(package.subprocess, "Popen", dying)
    with pytest.raises(QuantizeError, match=r"SIGABRT.*GGML_ASSERT failed"):
        quantize(F16, tmp_path / "out.gguf", "Q8_0", planned=planned)
    assert not os.listdir(tmp_path)


def test_somebody_interrupts(tmp_path: Path) -> None:
    def stop(done: int, whole: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(F16, tmp_path / "out.gguf", "Q8_0", on_progress=stop)
    assert not os.listdir(tmp_path)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.gguf"
    assert main(["quantize", str(F16), str(target), "q8_0", "--dry-run"]) == 0
    assert "202.4 kB become about 112.2 kB (about 8.61 bits a weight" in capsys.readouterr().err
    assert not target.exists()
    assert main(["quantize", str(F16), str(target), "q8_0", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", f"wrote {target} (112.3 kB)")
    assert main(["quantize", str(F16), str(target), "Q8_0"]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["quantize", str(F16), str(target), "Q9"]) == 2
    assert "there is no type 'Q9'" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "no.gguf"), str(target), "Q8_0"]) == 1
    assert main(["quantize", str(F16), str(target), "Q8_0", "--threads", "0"]) == 2
