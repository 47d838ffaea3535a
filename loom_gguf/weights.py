"""A model's weights in memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from ._native import complaints, forget_complaints, lib
from .errors import CaptureUnsupportedError, ModelLoadError
from .gguf_file import read_model
from .ollama_engine import check_engine
from .placement import Placement
from .vocab import Vocab


class Weights:
    """A loaded llama_model with its vocabulary. Contexts made of it must be closed before it is."""

    def __init__(self, path: Path, placement: Placement | None = None) -> None:
        """Load the GGUF file at `path`; `placement`: on which devices, by default all GPUs."""
        self.file = read_model(path)
        check_engine(self.file)
        params = lib.llama_model_default_params()
        kept = (placement or Placement()).apply(params)
        forget_complaints()
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        del kept
        if not model:
            reason = complaints() or "it gave no reason"
            raise ModelLoadError(
                f"llama.cpp cannot load {path}: {reason}. If the file is whole, its architecture "
                f"({self.file.arch}) may need a newer llama.cpp"
            )
        self.llama_model: Any = model
        # Also where the object is dropped without close(). A context holds its weights, so it is gone before.
        self._finalizer = weakref.finalize(self, lib.llama_model_free, model)
        try:
            self._refuse_what_is_not_understood()
        except CaptureUnsupportedError:
            self.close()
            raise
        self.vocab = Vocab(model)
        self.n_layer = int(lib.llama_model_n_layer(model))
        self.n_embd = int(lib.llama_model_n_embd(model))
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(model))
        # Whether a token sees only those before it. (llama-embed says nothing in its file, but has it in its builder.)
        self.causal = self.file.hparam("attention.causal", True) is not False and self.file.arch != "llama-embed"
        # Their state cannot be taken back by a token, and costs memory for each possible sequence.
        self.recurrent = bool(lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))

    def _refuse_what_is_not_understood(self) -> None:
        if lib.llama_model_has_encoder(self.llama_model):
            raise CaptureUnsupportedError(
                f"{self.file.path} is an encoder-decoder ({self.file.arch}): it runs two graphs that use the same "
                f"node names, which loom_gguf cannot tell apart yet"
            )

    def close(self) -> None:
        """Give the memory back."""
        self._finalizer()
        self.llama_model = None
