"""GGUF files that were written for Ollama's own engine.

Ollama converted newer families itself: image encoders lie in the model's file, names of architectures, keys and
tensors differ. llama.cpp refuses most of these; some it would load, and compute other numbers than the model's (without
the base of its rotary positions, say). The marks below are facts about Ollama's published models (its repository's
llama/compat, which translates them for llama.cpp, August 2026); what to fetch instead is what llama.cpp's own
organisation offers, where it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import ForeignEngineError

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

_ENCODERS = ("v.", "mm.", "a.", "s.", "model.vision_tower.")  # prefixes of tensors of image and audio encoders
_DRAFT = "mtp."  # tensors that predict several tokens ahead

# Architectures that only Ollama calls so, with llama.cpp's name for them.
_OWN_NAMES = {
    "deepseekocr": "deepseek2-ocr",
    "glm4moelite": "deepseek2",
    "glmocr": "glm4",
    "gptoss": "gpt-oss",
    "mllama": "",
    "nemotron_h_omni": "nemotron_h_moe",
    "olmo3": "olmo2",
    "qwen25vl": "qwen2vl",
}

# Repositories of Hugging Face by architecture and number of blocks; None: whatever the number.
_INSTEAD: dict[str, dict[int | None, str]] = {
    "gemma3": {
        18: "ggml-org/gemma-3-270m-it-GGUF",
        26: "ggml-org/gemma-3-1b-it-GGUF",
        34: "ggml-org/gemma-3-4b-it-GGUF",
        48: "ggml-org/gemma-3-12b-it-GGUF",
        62: "ggml-org/gemma-3-27b-it-GGUF",
    },
    "gemma3n": {30: "ggml-org/gemma-3n-E2B-it-GGUF", 35: "ggml-org/gemma-3n-E4B-it-GGUF"},
    "gemma4": {
        35: "ggml-org/gemma-4-E2B-it-GGUF",
        42: "ggml-org/gemma-4-E4B-it-GGUF",
        30: "ggml-org/gemma-4-26B-A4B-it-GGUF",
        60: "ggml-org/gemma-4-31B-it-GGUF",
    },
    "glm4moelite": {None: "ggml-org/GLM-4.7-Flash-GGUF"},
    "gptoss": {24: "ggml-org/gpt-oss-20b-GGUF", 36: "ggml-org/gpt-oss-120b-GGUF"},
    "llama4": {None: "ggml-org/Llama-4-Scout-17B-16E-Instruct-GGUF"},
    "mistral3": {40: "ggml-org/Mistral-Small-3.1-24B-Instruct-2503-GGUF"},
    "qwen25vl": {
        36: "ggml-org/Qwen2.5-VL-3B-Instruct-GGUF",
        28: "ggml-org/Qwen2.5-VL-7B-Instruct-GGUF",
        64: "ggml-org/Qwen2.5-VL-32B-Instruct-GGUF",
        80: "ggml-org/Qwen2.5-VL-72B-Instruct-GGUF",
    },
}


def check_engine(file: GGUFFile) -> None:
    """ForeignEngineError where only Ollama's own engine runs this file."""
    if why := written_for_ollama(file):
        raise ForeignEngineError(f"{file.path} cannot be run here: {why}")


def written_for_ollama(file: GGUFFile) -> str:
    """Why only Ollama's own engine runs this file, and what to fetch instead; empty where that is not so."""
    mark = _mark(file)
    if not mark:
        return ""
    return f"this {file.arch} file was written for Ollama's own engine ({mark}). {_instead(file)}"


def _instead(file: GGUFFile) -> str:
    if file.arch == "mllama":
        return "llama.cpp runs no Llama 3.2 Vision at all: take a model of text alone, e.g. llama3.1:8b"
    by_blocks = _INSTEAD.get(file.arch, {})
    blocks = file.hparam("block_count")
    repository = by_blocks.get(blocks if isinstance(blocks, int) else None) or by_blocks.get(None)
    if "dense.0.weight" in {tensor.name for tensor in file.tensors}:
        repository = "ggml-org/embeddinggemma-300M-GGUF"
    if repository:
        return f"Fetch a GGUF that was made for llama.cpp: hf.co/{repository}"
    name = file.metadata.get("general.name") or file.metadata.get("general.basename")
    wanted = f"{name!s:.80} GGUF" if isinstance(name, str) and name else f"{file.arch} GGUF"
    return f"Fetch a GGUF that was made for llama.cpp: search hf.co for '{wanted}'"


def _mark(file: GGUFFile) -> str:
    """By what it is recognised."""
    arch = file.arch
    if arch == "clip":
        return ""
    if arch in _OWN_NAMES:
        called = f", which llama.cpp calls {_OWN_NAMES[arch]}" if _OWN_NAMES[arch] else ""
        return f"it is the only one to know the architecture {arch}{called}"
    for tensor in file.tensors:
        if tensor.name.startswith(_ENCODERS):
            return f"an image or audio encoder lies in the same file, e.g. {tensor.name}"
        if tensor.name.startswith(_DRAFT):
            return f"it has tensors that llama.cpp knows under other names, e.g. {tensor.name}"
    found = _OF_ARCH.get(arch)
    return found(file) if found is not None else ""


def _gemma3(file: GGUFFile) -> str:
    if "dense.0.weight" in {tensor.name for tensor in file.tensors}:
        return "it is an embedding model, which llama.cpp calls gemma-embedding"
    for key in ("gemma3.rope.global.freq_base", "gemma3.rope.local.freq_base", "gemma3.mm.tokens_per_image"):
        if key in file.metadata:
            return f"it has the key {key}, which llama.cpp does not read"
    if "gemma3.attention.layer_norm_rms_epsilon" not in file.metadata:
        return "it lacks gemma3.attention.layer_norm_rms_epsilon"
    return ""


def _gemma3n(file: GGUFFile) -> str:
    rows = {tensor.name: tensor.shape[0] for tensor in file.tensors}
    whole, each = rows.get("token_embd.weight"), rows.get("per_layer_token_embd.weight")
    if whole is not None and each is not None and whole != each:
        return "its two tables of token embeddings differ in length"
    return ""


def _gemma4(file: GGUFFile) -> str:
    return "its tokenizer is marked as llama's" if file.metadata.get("tokenizer.ggml.model") == "llama" else ""


def _lfm2(file: GGUFFile) -> str:
    names = {tensor.name for tensor in file.tensors}
    old = "output_norm.weight" in names and "token_embd_norm.weight" not in names
    return "its final norm is called output_norm.weight" if old else ""


def _qwen3vl(file: GGUFFile) -> str:
    key = f"{file.arch}.rope.dimension_sections"
    return "" if key in file.metadata else f"it lacks {key}"


def _with_keys(*keys: str) -> Callable[[GGUFFile], str]:
    def found(file: GGUFFile) -> str:
        key = next((key for key in keys if f"{file.arch}.{key}" in file.metadata), None)
        return f"it has the key {file.arch}.{key}, which llama.cpp does not read" if key else ""

    return found


def _with_tensors(*pieces: str) -> Callable[[GGUFFile], str]:
    def found(file: GGUFFile) -> str:
        for tensor in file.tensors:
            if any(piece in tensor.name for piece in pieces) or tensor.name.endswith(".ssm_dt"):
                return f"it has tensors that llama.cpp knows under other names, e.g. {tensor.name}"
        return ""

    return found


_QWEN35 = _with_keys("vision.block_count", "image_token_id", "ssm.v_head_reordered", "rope.mrope_interleaved")

_OF_ARCH: dict[str, Callable[[GGUFFile], str]] = {
    "gemma3": _gemma3,
    "gemma3n": _gemma3n,
    "gemma4": _gemma4,
    "laguna": _with_keys("rope.swa.dimension_count", "rope.swa.freq_base"),
    "lfm2": _lfm2,
    "mistral3": _with_keys("rope.scaling.beta_fast", "rope.scaling.mscale_all_dim", "rope.scaling_beta"),
    "nemotron_h_moe": _with_tensors(".ffn_latent_in"),
    "qwen35": _QWEN35,
    "qwen35moe": _QWEN35,
    "qwen3next": _with_tensors(),
    "qwen3vl": _qwen3vl,
    "qwen3vlmoe": _qwen3vl,
}
