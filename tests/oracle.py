"""What captured rows are compared with: PyTorch's numbers, and llama.cpp run plainly through llama_cpp's own API."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from loom_gguf import Model
from loom_gguf._native import lib
from loom_gguf.weights import Weights

Array = npt.NDArray[Any]

FIDELITY = Path(__file__).parent / "fidelity"
DECODERS = ("llama", "mixtral", "qwen2moe", "qwen3", "olmo2", "gemma2", "gpt2", "cohere", "phi2", "mamba", "lfm2")
RECURRENT = ("mamba", "lfm2")
# ggml's CPU looks GELU up in a float16 table, PyTorch computes it.
GELU = ("gemma2", "gpt2", "phi2")
EOS = 318  # of the fidelity decoders; ids 0 to 255 are bytes, so is their text


def fidelity_file(name: str) -> Path:
    """The GGUF file of a fidelity model."""
    return FIDELITY / f"{name}.gguf"


@cache
def torch_says(name: str) -> dict[str, Array]:
    """What PyTorch computed from the same weights."""
    return load_file(FIDELITY / f"{name}.safetensors")


def random_tokens(n: int, seed: int = 0) -> list[int]:
    """Token ids of the fidelity decoders, no control tokens among them."""
    return np.random.default_rng(seed).integers(0, 317, n).tolist()


def relative_error(a: Array, b: Array) -> float:
    """Largest difference over largest value; infinite where either has a NaN."""
    assert a.shape == b.shape
    error = float(np.abs(a - b).max() / np.abs(b).max())
    return error if np.isfinite(error) else float("inf")


def logits_of(handle: Any, index: int, n_vocab: int) -> Array:
    """The logits of a batch's token, as llama.cpp holds them after a decode."""
    return np.ctypeslib.as_array(lib.llama_get_logits_ith(handle, index), (n_vocab,)).copy()


@dataclass
class Plain:
    """A model run without loom_gguf: no callback, one sequence, token after token or many at once."""

    path: Path
    exact: bool = True
    embeddings: bool = False  # llama.cpp's own way to the final state
    n_ubatch: int = 512

    def __enter__(self) -> Plain:
        self.model = lib.llama_model_load_from_file(str(self.path).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 512, self.n_ubatch, self.n_ubatch
        params.n_threads = params.n_threads_batch = 1
        params.embeddings = self.embeddings
        params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        if self.exact:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.type_k = params.type_v = lib.GGML_TYPE_F32
        self.ctx = lib.llama_init_from_model(self.model, params)
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.n_embd = lib.llama_model_n_embd(self.model)
        self.n_past = 0
        return self

    def __exit__(self, *_: object) -> None:
        lib.llama_free(self.ctx)
        lib.llama_model_free(self.model)

    def decode(self, tokens: Sequence[int]) -> None:
        """Compute tokens after those before; each is an output."""
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self.n_past + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        assert lib.llama_decode(self.ctx, batch) == 0
        lib.llama_batch_free(batch)
        self.n_past += len(tokens)

    def logits(self, index: int) -> Array:
        """Logits after the batch's token number `index`."""
        return logits_of(self.ctx, index, self.n_vocab)

    def final(self, index: int) -> Array:
        """The state after the final norm, from llama.cpp's embedding output."""
        pointer: ctypes.Array[ctypes.c_float] = lib.llama_get_embeddings_ith(self.ctx, index)
        return np.ctypeslib.as_array(pointer, (self.n_embd,)).copy()

    def greedy(self, prompt: Sequence[int]) -> Iterator[int]:
        """Most probable tokens, one after the other, without end."""
        read = list(prompt)
        while True:
            self.decode(read)
            token = int(self.logits(len(read) - 1).argmax())
            yield token
            read = [token]


def plain(name: str, **settings: Any) -> Plain:
    """A fidelity model, to be run plainly inside a with block."""
    return Plain(fidelity_file(name), **settings)


def open_model(name: str, **settings: Any) -> Model:
    """A fidelity model, exact and on one thread unless said otherwise: threads that wait for others spin."""
    return Model(fidelity_file(name), **({"precision": "exact", "n_threads": 1} | settings))


def open_weights(name: str) -> Weights:
    """A fidelity model's weights, for contexts of the test's own. To be closed."""
    return Weights(fidelity_file(name))
