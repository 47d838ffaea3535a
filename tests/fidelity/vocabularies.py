"""Tiny tokenizers for the fidelity models, small enough to build from a few lines of text."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Protocol

from gguf import GGUFWriter, TokenType

Pair = tuple[str, str]

# Text for the byte-pair merges. The accents and the CJK characters make some merged tokens start or end in
# the middle of a UTF-8 character, as they do in real vocabularies.
BPE_TEXT = """
the cat sat on the mat and the other cat looked at the window over there
this is the thing that the weather in the north is doing to the trees
there are more things in heaven and earth than are dreamt of in other words
the naïve café déjà é è ü ö 東京 日本 日本 東京 Ωμέγα
"""

# Words of the WordPiece vocabulary; what it lacks falls into letters and the few endings.
WORDS = """
a after all and are at by can each every for from hidden how in into is it its layer left long model names no
not of on one or reads rows see short show some states tell text that the them they this to token twice two
was we what where which with word words
"""
ENDINGS = ("s", "ed", "er", "ing", "ly")
PUNCTUATION = "!'(),-.:;?"


class Vocabulary(Protocol):
    """What a model file needs of its tokenizer."""

    size: int

    def write(self, writer: GGUFWriter) -> None:
        """Adds the `tokenizer.ggml.*` keys."""


def byte_symbols() -> list[str]:
    """One printable character for each byte, as byte-level BPE writes it: itself, or one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    symbols, spare = [], 0x100
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(spare))
            spare += 1
    return symbols


def byte_pair_merges(text: str, n_merges: int) -> list[Pair]:
    """The `n_merges` most frequent pairs of `text`, merged one by one; ties go to the smaller pair."""
    symbols = byte_symbols()
    words = [[symbols[byte] for byte in word.encode()] for word in re.findall(r" ?\w+", text)]
    merges: list[Pair] = []
    while len(merges) < n_merges:
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


class ByteVocabulary:
    """Byte-level BPE: token ids 0..255 are the bytes themselves, then the merges, then bos, eos and pad."""

    def __init__(self, size: int) -> None:
        n_specials = 3
        self.size = size
        self.bos, self.eos, self.pad = range(size - n_specials, size)
        self.n_ordinary = size - n_specials
        self.merges = byte_pair_merges(BPE_TEXT, self.n_ordinary - 256)
        merged = ("".join(pair) for pair in self.merges)
        self.tokens = [*byte_symbols(), *merged, "<|bos|>", "<|eos|>", "<|pad|>"]
        if len(set(self.tokens)) != size:
            raise ValueError("two merges spell the same token")

    def write(self, writer: GGUFWriter) -> None:
        types = [TokenType.NORMAL] * self.n_ordinary + [TokenType.CONTROL] * (self.size - self.n_ordinary)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(self.tokens)
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in self.merges])
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(True)


class NoVocabulary:
    """No tokenizer at all: token ids in, token ids out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("no_vocab")


class WordVocabulary:
    """WordPiece over lower-case ASCII, spelled as llama.cpp spells it.

    A token that begins a word has U+2581 in front; one that goes on with it, BERT's "##ing", has nothing.
    """

    def __init__(self) -> None:
        self.specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
        words = [word for word in WORDS.split() if word not in letters]
        initial = ["\u2581" + piece for piece in (*PUNCTUATION, *letters, *words)]
        self.tokens = [*self.specials, *initial, *letters, *(end for end in ENDINGS if end not in letters)]
        self.size = len(self.tokens)
        self.pad, self.unk, self.cls, self.sep, self.mask = range(len(self.specials))

    def encode(self, text: str) -> list[int]:
        """Token ids with [CLS] and [SEP], the longest piece first; `text` must be ASCII letters and marks."""
        ids = [self.cls]
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            rest = "\u2581" + word
            while rest:
                piece = max((token for token in self.tokens if rest.startswith(token)), key=len)
                ids.append(self.tokens.index(piece))
                rest = rest.removeprefix(piece)
        return [*ids, self.sep]

    def write(self, writer: GGUFWriter) -> None:
        types = [TokenType.CONTROL] * len(self.specials)
        types += [TokenType.NORMAL] * (self.size - len(self.specials))
        types[self.unk] = TokenType.UNKNOWN
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(self.tokens)
        writer.add_token_types(types)
        writer.add_bos_token_id(self.cls)
        writer.add_eos_token_id(self.sep)
        writer.add_unk_token_id(self.unk)
        writer.add_sep_token_id(self.sep)
        writer.add_pad_token_id(self.pad)
        writer.add_mask_token_id(self.mask)
        writer.add_add_bos_token(True)
        writer.add_add_sep_token(True)
