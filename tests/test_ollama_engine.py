"""Blobs that were written for Ollama's own engine, by the marks of its llama/compat, made of the fidelity models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf_edit
import pytest
from gguf_edit import Gguf
from stores import FIDELITY, LLAMA

from loom_gguf import ForeignEngineError, Model
from loom_gguf.gguf_file import read_gguf
from loom_gguf.support import support

MARKS: dict[str, tuple[Callable[[Gguf], Gguf], str]] = {
    "gptoss": (
        lambda file: file.as_architecture("gptoss").with_keys(gptoss__block_count=24),
        "hf.co/ggml-org/gpt-oss-20b-GGUF",
    ),
    "qwen25vl": (
        lambda file: file.as_architecture("qwen25vl").with_keys(qwen25vl__block_count=28),
        "Qwen2.5-VL-7B-Instruct-GGUF",
    ),
    "mllama": (lambda file: file.as_architecture("mllama"), "no Llama 3.2 Vision"),
    "olmo3": (lambda file: file.as_architecture("olmo3"), "llama.cpp calls olmo2"),
    "gemma3 with a vision encoder": (
        lambda file: (
            file.as_architecture("gemma3").with_keys(gemma3__block_count=34).with_tensor("v.blk.0.norm.weight")
        ),
        "hf.co/ggml-org/gemma-3-4b-it-GGUF",
    ),
    "gemma3 with its own keys": (
        lambda file: file.as_architecture("gemma3").with_keys(
            gemma3__rope__global__freq_base=1e6, gemma3__block_count=26
        ),
        "gemma-3-1b-it-GGUF",
    ),
    "gemma3 without epsilon": (
        lambda file: file.as_architecture("gemma3").with_keys(gemma3__attention__layer_norm_rms_epsilon=None),
        "lacks gemma3.attention.layer_norm_rms_epsilon",
    ),
    "embeddinggemma": (
        lambda file: file.as_architecture("gemma3").with_tensor("dense.0.weight"),
        "embeddinggemma-300M-GGUF",
    ),
    "mistral3": (
        lambda file: file.as_architecture("mistral3").with_tensor("mm.norm.weight"),
        "written for Ollama's own engine",
    ),
    "llama4": (
        lambda file: file.as_architecture("llama4").with_tensor("v.norm.weight"),
        "Llama-4-Scout-17B-16E-Instruct-GGUF",
    ),
    "qwen3vl": (lambda file: file.as_architecture("qwen3vl"), "lacks qwen3vl.rope.dimension_sections"),
    "qwen35": (
        lambda file: file.as_architecture("qwen35").with_keys(qwen35__vision__block_count=2),
        "qwen35.vision.block_count",
    ),
    "lfm2": (lambda file: file.as_architecture("lfm2"), "output_norm.weight"),
    "a family of tomorrow": (lambda file: file.with_tensor("v.patch_embd.weight"), "search hf.co for"),
}


@pytest.mark.parametrize("name", MARKS)
def test_blobs_of_ollamas_engine_are_named(name: str, tmp_path: Path) -> None:
    change, said = MARKS[name]
    path = change(gguf_edit.read(LLAMA)).write(tmp_path / "blob.gguf")
    level, sentence = support(read_gguf(path))
    assert level == "refused"
    assert said in sentence
    with pytest.raises(ForeignEngineError, match="Ollama's own engine") as caught:
        Model(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("path", sorted(FIDELITY.glob("*.gguf")), ids=lambda path: path.stem)
def test_llama_cpps_own_files_are_not(path: Path) -> None:
    assert "Ollama" not in support(read_gguf(path))[1]


def test_the_editor_changes_nothing_by_itself(tmp_path: Path) -> None:
    path = gguf_edit.read(LLAMA).write(tmp_path / "same.gguf")
    assert path.read_bytes() == LLAMA.read_bytes()
