"""What is said about a file is what then happens."""

from dataclasses import replace
from pathlib import Path

import pytest

from loom_gguf import Capture, CaptureUnsupportedError, Model
from loom_gguf.gguf_file import GGUFFile, TensorInfo, read_gguf
from loom_gguf.support import support

FIDELITY = Path(__file__).parent / "fidelity"
EVERYTHING = Capture.all_layers(embedding=True, final=True)


def header(arch, **metadata):
    weight = TensorInfo("token_embd.weight", (4, 4), "f32", 0, 64)
    return GGUFFile(Path("x.gguf"), 1, 3, {"general.architecture": arch, **metadata}, (weight,))


@pytest.mark.parametrize(
    "name", ["llama", "mixtral", "qwen2moe", "qwen3", "olmo2", "gemma2", "gpt2", "mamba", "lfm2", "llama-q4_0"]
)
def test_decoders_that_say_all_give_all(name):
    level, sentence = support(read_gguf(FIDELITY / f"{name}.gguf"))
    assert level == "all"
    assert sentence.startswith("yes: every layer")
    with Model(FIDELITY / f"{name}.gguf", n_threads=1) as model:
        assert len(model.forward([1, 2, 3], EVERYTHING).hidden_states) == model.n_layer + 1


@pytest.mark.parametrize("name", ["bert", "nomic-bert", "modern-bert"])
def test_encoders_give_all_of_a_text_that_they_read(name):
    level, sentence = support(read_gguf(FIDELITY / f"{name}.gguf"))
    assert level == "prompt"
    assert "of every token of a text" in sentence
    with Model(FIDELITY / f"{name}.gguf", n_threads=1) as model:
        assert len(model.forward("a text", EVERYTHING).hidden_states) == model.n_layer + 1


def test_an_encoder_decoder_is_refused_with_the_reason():
    level, sentence = support(read_gguf(FIDELITY / "t5.gguf"))
    assert level == "refused"
    assert "two graphs" in sentence
    with pytest.raises(CaptureUnsupportedError):
        Model(FIDELITY / "t5.gguf")


@pytest.mark.parametrize(
    ("file", "level", "said"),
    [
        (header("next-years-model"), "unknown", "Try it: nodes by name always work"),
        (header("plamo2"), "names", "Capture.names"),
        (header("plamo3"), "all", "every layer and the embedding, of"),
        (header("llada"), "prompt", "reads a text as a whole"),
        (header("llama-embed"), "not yet", "whole text at once"),
        (header("llama", **{"llama.attention.causal": False}), "not yet", "whole text at once"),
        (header("llama", **{"llama.attention.causal": True}), "all", "yes"),
        (header("clip"), "refused", "beside a language model"),
        (header("llama", **{"general.type": "adapter"}), "refused", "'adapter', not a model"),
        (replace(header("llama"), tensors=()), "refused", "no weights"),
    ],
)
def test_other_files(file, level, said):
    found, sentence = support(file)
    assert found == level
    assert said in sentence
    assert sentence.endswith(".")
