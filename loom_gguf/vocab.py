"""A model's tokenizer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from ._native import lib
from .errors import NoVocabularyError, TokenError

_NO_VOCABULARY = 0  # LLAMA_VOCAB_TYPE_NONE


class Vocab:
    """Text to token ids and back. Borrows the model's vocabulary: the model must outlive it."""

    def __init__(self, llama_model: Any) -> None:
        """Take the vocabulary of a loaded model."""
        self._vocab = lib.llama_model_get_vocab(llama_model)
        self.n_tokens = int(lib.llama_vocab_n_tokens(self._vocab))
        self.has_text = lib.llama_vocab_type(self._vocab) != _NO_VOCABULARY

    @property
    def handle(self) -> Any:
        """The llama_vocab, for a grammar."""
        return self._vocab

    @property
    def bos_text(self) -> str:
        """How a text writes the beginning-of-sequence token; empty where there is none."""
        return self._text_of(lib.llama_vocab_bos(self._vocab))

    @property
    def eos_text(self) -> str:
        """How a text writes the end-of-sequence token; empty where there is none."""
        return self._text_of(lib.llama_vocab_eos(self._vocab))

    def _text_of(self, token_id: int) -> str:
        if not self.has_text or not 0 <= token_id < self.n_tokens:
            return ""
        text: bytes = lib.llama_vocab_get_text(self._vocab, token_id) or b""
        return text.decode("utf-8", "replace")

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens that the model adds, and those written in the text.

        add_special=False adds none.
        """
        self._need_text()
        data = text.encode("utf-8", "surrogatepass")
        capacity = len(data) + 8
        while True:
            tokens = (lib.llama_token * capacity)()
            n = lib.llama_tokenize(self._vocab, data, len(data), tokens, capacity, add_special, True)
            if n >= 0:
                return list(tokens[:n])
            capacity = -n

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`. A leading token that `tokenize` adds is left out; other special tokens are written."""
        self._need_text()
        self.check(ids)
        tokens = (lib.llama_token * len(ids))(*ids)
        capacity = 16 * len(ids) + 16
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            n = lib.llama_detokenize(self._vocab, tokens, len(ids), buffer, capacity, True, True)
            if n >= 0:
                return buffer.raw[:n].decode("utf-8", "replace")
            capacity = -n

    def piece(self, token_id: int) -> bytes:
        """The bytes that this token adds to the text: none for a special token, or without a vocabulary."""
        if not self.has_text:
            return b""
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            n = lib.llama_token_to_piece(self._vocab, token_id, buffer, capacity, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            capacity = -n

    def label(self, token_id: int) -> str:
        """The token for a person to read: a special one by its name, bytes of half a character as \\xe4."""
        self.check([token_id])
        return self.piece(token_id).decode("utf-8", "backslashreplace") or self._text_of(token_id)

    def ends_generation(self, token_id: int) -> bool:
        """Whether the model means "the end" by this token."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token_id))

    def check(self, ids: Sequence[int]) -> None:
        """Raise TokenError unless every id is one of the vocabulary's."""
        for at, token_id in enumerate(ids):
            if not 0 <= token_id < self.n_tokens:
                raise TokenError(
                    f"token id {token_id} (number {at} of the prompt) is outside of the vocabulary: ids go from 0 "
                    f"to {self.n_tokens - 1}"
                )

    def _need_text(self) -> None:
        if not self.has_text:
            raise NoVocabularyError(
                "this model file carries no tokenizer: give token ids instead of text (model.forward([1, 2, 3], ...))"
            )
