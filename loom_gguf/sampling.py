"""Choosing the next token, through llama.cpp's samplers."""

from __future__ import annotations

import ctypes
import math
import secrets
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._native import lib
from .errors import DecodeError, GrammarError, NoVocabularyError, SamplingError
from .grammar import make_grammar, schema_to_gbnf
from .vocab import Vocab

Array: TypeAlias = npt.NDArray[Any]

MAX_SEED = 2**32 - 1  # llama.cpp takes this value itself to mean "any seed"
_MAX_LOGPROBS = 20
_LARGEST = 1e6  # of a penalty: what is far beyond sense would overflow llama.cpp's float32
_NEGLIGIBLE = 1e-37  # still a normal float32, so its logarithm is finite
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)], align=True)  # llama_token_data


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    The order is llama.cpp's own: what the grammar allows, penalties, top_k, typical_p, top_p, min_p, temperature, then
    the draw. At temperature 0 the grammar and the penalties act, and the most probable token is taken.
    """

    temperature: float = 0.0  # 0 takes the most probable token
    top_k: int = 40  # the k most probable tokens; 0 keeps all
    top_p: float = 0.95  # the most probable tokens that together have this probability; 1 keeps all
    min_p: float = 0.0  # tokens at least this probable relative to the first; 0 keeps all
    typical_p: float = 1.0  # the tokens nearest to the expected surprise that together have this probability; 1: all
    repeat_penalty: float = 1.0  # divides positive logits of tokens seen and multiplies negative ones; 1 changes none
    repeat_last_n: int = 64  # tokens back, the prompt's included, that penalties look; 0: none, -1: the whole context
    presence_penalty: float = 0.0  # is taken off the logits of tokens seen
    frequency_penalty: float = 0.0  # is taken off as often as the token was seen
    seed: int | None = 0  # None draws a fresh one
    grammar: str | None = None  # GBNF, beginning at the rule named root
    json_schema: Mapping[str, Any] | str | None = None  # a dict or JSON text; {} or "json": any JSON object
    logprobs: int | None = None  # tell the chosen token's log-probability, and so many of the most probable tokens

    def __post_init__(self) -> None:
        """Refuse what llama.cpp would take without a word."""
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("typical_p", self.typical_p, 0.0, 1.0)
        _check("repeat_penalty", self.repeat_penalty, 1 / _LARGEST, _LARGEST)
        _check("presence_penalty", self.presence_penalty, -_LARGEST, _LARGEST)
        _check("frequency_penalty", self.frequency_penalty, -_LARGEST, _LARGEST)
        if not _is_int(self.top_k) or self.top_k < 0:
            raise SamplingError(f"top_k must be an integer >= 0 (0 keeps all tokens), not {self.top_k!r}")
        if not _is_int(self.repeat_last_n) or self.repeat_last_n < -1:
            raise SamplingError(
                f"repeat_last_n must be an integer >= -1 (0 looks at no tokens, -1 at all of the context), "
                f"not {self.repeat_last_n!r}"
            )
        if self.seed is not None and not (_is_int(self.seed) and 0 <= self.seed < MAX_SEED):
            raise SamplingError(f"seed must be an integer from 0 to {MAX_SEED - 1}, or None, not {self.seed!r}")
        if self.logprobs is not None and not (_is_int(self.logprobs) and 0 <= self.logprobs <= _MAX_LOGPROBS):
            raise SamplingError(
                f"logprobs must be an integer from 0 to {_MAX_LOGPROBS}, or None, not {self.logprobs!r}"
            )
        if self.grammar is not None and self.json_schema is not None:
            raise SamplingError("give either grammar or json_schema, not both")

    @property
    def gbnf(self) -> str | None:
        """The grammar, whichever way it was given."""
        return self.grammar if self.json_schema is None else schema_to_gbnf(self.json_schema)

    @property
    def penalizes(self) -> bool:
        """Whether any penalty is on."""
        changes = self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return changes and self.repeat_last_n != 0


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise SamplingError(f"{name} must be a number of at least {low:g}{upper}, not {value!r}")
    if math.isinf(value):
        raise SamplingError(f"{name} must be finite")


@dataclass(frozen=True)
class Choice:
    """The token that was chosen, and what is to be told about it."""

    token_id: int
    logprob: float | None = None  # natural logarithm, of the model's own distribution before any filter
    top_logprobs: tuple[tuple[int, float], ...] = ()  # (token id, logprob) of the most probable tokens, best first


class Sampler:
    """A sampler chain of llama.cpp, with the state of its random numbers, its grammar and the tokens it has seen.

    Freed by close(), or with its last reference.
    """

    def __init__(self, sampling: Sampling, vocab: Vocab, n_ctx: int, prompt: Sequence[int] | Array = ()) -> None:
        """Build the chain for a context of n_ctx tokens. `prompt`: tokens that penalties see, and the grammar not."""
        self._sampling = sampling
        # Greedy with nothing to remember or to report: no candidates need be listed for that.
        bare = sampling.temperature == 0 and not sampling.penalizes and sampling.logprobs is None
        self._plain = bare and sampling.gbnf is None
        self._ids = np.arange(vocab.n_tokens, dtype=np.int32)
        gbnf = sampling.gbnf
        if gbnf is not None and not vocab.has_text:
            raise NoVocabularyError("this model file carries no tokenizer, and without texts a grammar means nothing")
        self._grammar: Any = None if gbnf is None else make_grammar(gbnf, vocab.handle)
        self._chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._finalizer = weakref.finalize(self, _free, self._chain, self._grammar)
        # More than the context holds is never seen, and llama.cpp reserves memory for all of it.
        last_n = n_ctx if sampling.repeat_last_n < 0 else min(sampling.repeat_last_n, n_ctx)
        for link in _links(sampling, vocab.n_tokens, last_n):
            lib.llama_sampler_chain_add(self._chain, link)  # the chain owns its links
        if sampling.penalizes:
            for token in prompt[-last_n:]:
                lib.llama_sampler_accept(self._chain, int(token))

    def sample(self, ctx: Any, index: int) -> Choice:
        """A token from the logits of the batch's token number `index`; the chain and the grammar take note of it."""
        logits = self._logits(ctx, index)
        if self._plain:
            return Choice(int(logits.argmax()))  # llama.cpp's greedy sampler too takes the first of equal ones
        candidates = np.zeros(len(logits), _TOKEN_DATA)
        candidates["id"] = self._ids
        candidates["logit"] = logits
        if self._grammar is not None:
            _apply(self._grammar, candidates)
            # Gone, not only at minus infinity: else later links would still count them, or multiply 0 by infinity.
            candidates = candidates[candidates["logit"] > -np.inf]
            if not len(candidates):  # accepting any token now would abort the process
                raise GrammarError(
                    "the grammar allows no token of this model's vocabulary here: the vocabulary has no token for "
                    "what must follow, or none that ends the text"
                )
        after = _apply(self._chain, candidates)
        token_id = int(after.data[after.selected].id)
        lib.llama_sampler_accept(self._chain, token_id)
        if self._grammar is not None:
            lib.llama_sampler_accept(self._grammar, token_id)
        if self._sampling.logprobs is None:
            return Choice(token_id)
        top = _most_probable(logits, self._sampling.logprobs)
        logprob, *top_logprobs = logprobs_of(logits, [token_id, *top])
        return Choice(token_id, logprob, tuple(zip(top, top_logprobs, strict=True)))

    def _logits(self, ctx: Any, index: int) -> Array:
        """The model's own logits, float32 (n_vocab,); llama.cpp's memory, valid until the next decode."""
        pointer = lib.llama_get_logits_ith(ctx, index)
        if not pointer:
            raise DecodeError(f"llama.cpp has no logits for token number {index} of the batch")
        logits = np.ctypeslib.as_array(pointer, (len(self._ids),))
        if math.isnan(logits.max()):
            raise DecodeError("the model's logits are not numbers (NaN), so no token can be chosen")
        return logits

    def close(self) -> None:
        """Free the chain and its links. A second call does nothing."""
        self._finalizer()


def _free(*samplers: Any) -> None:
    for sampler in samplers:
        if sampler is not None:
            lib.llama_sampler_free(sampler)


def _apply(sampler: Any, candidates: Array) -> Any:
    """Let a sampler change the candidates in place; the llama_token_data_array afterwards."""
    data = candidates.ctypes.data_as(lib.llama_token_data_p)
    array = lib.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
    lib.llama_sampler_apply(sampler, ctypes.byref(array))
    return array


def _links(sampling: Sampling, n_vocab: int, last_n: int) -> list[Any]:
    links = []
    if sampling.penalizes:
        links.append(
            lib.llama_sampler_init_penalties(
                n_vocab,
                last_n,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.temperature == 0:
        return [*links, lib.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        links.append(lib.llama_sampler_init_top_k(min(sampling.top_k, n_vocab)))
    if sampling.typical_p < 1:
        # Probabilities that round to 0 would make llama.cpp's entropy NaN, and it would keep the wrong tokens.
        links.append(lib.llama_sampler_init_min_p(_NEGLIGIBLE, 1))
        links.append(lib.llama_sampler_init_typical(sampling.typical_p, 1))
    if sampling.top_p < 1:
        links.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        links.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    links.append(lib.llama_sampler_init_temp(sampling.temperature))
    seed = secrets.randbelow(MAX_SEED) if sampling.seed is None else sampling.seed
    links.append(lib.llama_sampler_init_dist(seed))
    return links


def logprobs_of(logits: Array, ids: Sequence[int]) -> list[float]:
    """Natural logarithms of these tokens' probabilities, in float64."""
    largest = float(logits.max())
    shifted = logits.astype(np.float64)
    shifted -= largest
    wanted: list[float] = shifted[list(ids)].tolist()
    log_sum = math.log(np.exp(shifted, out=shifted).sum())
    return [value - log_sum for value in wanted]


def _most_probable(logits: Array, n: int) -> list[int]:
    """Ids of the n largest logits, largest first; of equal ones the smaller id first."""
    n = min(n, len(logits))
    if n == 0:
        return []
    candidates = np.flatnonzero(logits >= np.partition(logits, -n)[-n])
    order = np.argsort(-logits[candidates], kind="stable")[:n]
    return [int(i) for i in candidates[order]]
