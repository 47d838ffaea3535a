"""Whether the hidden states of a GGUF file can be had, and how, told from its header alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .ollama_engine import written_for_ollama

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

Level = Literal["all", "prompt", "names", "not yet", "refused", "unknown"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The names below are facts about llama.cpp 0c1e570, as llama-cpp-python 0.3.36 carries it. They were derived by
# following every architecture name (src/llama-arch.cpp) to its model class (src/llama-model.cpp), and that to the
# graph that it builds (src/models/): _EVERY_LAYER are those whose graph calls a block's output `l_out`. The other
# sets were sorted out by reading. Another version of llama.cpp needs the same again.

_EVERY_LAYER = _names("""
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bitnet bloom chameleon chatglm
    codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 dots1
    dots3note ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma2 gemma3 gemma3n gemma4
    glm-dsa glm4 glm4moe glm5-next gpt-oss gpt2 gptneox granite granite_swa granitehybrid granitemoe graniteswitch
    grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 jamba kimi-k3
    kimi-linear laguna lfm2 lfm2moe llama llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3
    minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe
    olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo3 plm pockettts qwen qwen2
    qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3tts qwen3vl qwen3vlmoe refact rwkv6 rwkv6qwen2
    rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 talkie xverse
""")

# Decoders whose graph leaves the blocks' outputs without a name of their own.
_NO_LAYER_NAMES = _names("deepseek4 gemma4-assistant plamo2 qwen4exp")

# llama.cpp gives these no cache (create_memory() in src/llama-model.cpp): all tokens of a text see each other, so it is
# one pass, and nothing is generated. The BERT family names no layers, which are found by structure; the others do.
_NO_CACHE = _names("""
    bert eurobert jina-bert-v2 jina-bert-v3 modern-bert neo-bert nomic-bert nomic-bert-moe
    dream gemma-embedding llada llada-moe rnd1
""")

_NOT_CAUSAL = _names("llama-embed")  # llama's graph without the causal mask, though with a cache

# llama_model_has_encoder(): two graphs, the names of one are used again in the other.
_TWO_GRAPHS = _names("dflash eagle3 t5 t5encoder")

_NO_LANGUAGE_MODEL = {
    "clip": "an image or audio encoder, which llama.cpp runs only beside a language model",
    "wavtokenizer-dec": "a decoder from tokens to sound, not a language model",
    "gptj": "an architecture whose name llama.cpp knows, but which it cannot run",
}

_NO_FINAL = _names("plamo3")  # its final norm's output has no name


def support(file: GGUFFile) -> tuple[Level, str]:
    """How much of this model can be captured, and a sentence that says how.

    "all": every layer, the embedding and the final state; "prompt": those too, but the model generates nothing;
    "names": nodes by name only; "not yet": not in this version; "refused": never with this file; "unknown": an
    architecture newer than this list.
    """
    arch = file.arch
    if foreign := written_for_ollama(file):
        return "refused", f"no: {foreign}."
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        return "refused", f"no: this file is of the type {kind!r}, not a model."
    if not file.tensors:
        return "refused", "no: this file holds no weights (a vocabulary only)."
    if arch in _NO_LANGUAGE_MODEL:
        return "refused", f"no: {arch} is {_NO_LANGUAGE_MODEL[arch]}."
    if arch in _TWO_GRAPHS:
        return "refused", (
            f"no: {arch} runs two graphs, an encoder's and a decoder's, that use the same node names, which "
            f"cannot be told apart yet."
        )
    if arch in _NO_CACHE:
        return "prompt", (
            "yes: every layer, the embedding and the final state, of every token of a text. This model reads a text as "
            "a whole, and nothing can be generated with it here."
        )
    if arch in _NOT_CAUSAL or file.hparam("attention.causal", True) is False:
        return "not yet", (
            f"not yet in this version: this {arch} model attends to the whole text at once, but has a cache for "
            f"generating token by token."
        )
    if arch in _NO_LAYER_NAMES:
        return "names", (
            f"nodes by name: the graph of {arch} gives its layers' outputs no names. `loom-gguf nodes` lists what has "
            f"one, --nodes and Capture.names([...]) capture it."
        )
    if arch in _EVERY_LAYER:
        what = (
            "every layer and the embedding" if arch in _NO_FINAL else "every layer, the embedding and the final state"
        )
        return "all", f"yes: {what}, of every token of the prompt and of the generated text; other nodes by name."
    return "unknown", (
        f"perhaps: this version does not know the architecture {arch!r}. Try it: nodes by name always work once "
        f"llama.cpp runs the model, and layers do if its graph names them l_out-0, l_out-1, ..."
    )
