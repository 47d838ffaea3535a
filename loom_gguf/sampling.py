"""Choosing the next token, through llama.cpp's sampler chain."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any

from ._native import lib
from .errors import SamplingError

_MAX_SEED = 2**32 - 1  # llama.cpp takes this value itself to mean "any seed"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The order is llama.cpp's: top_k, top_p, min_p, temperature, then the draw."""

    temperature: float = 0.0  # 0 takes the most probable token, and nothing below matters
    top_k: int = 40  # the k most probable tokens; 0 keeps all
    top_p: float = 0.95  # the most probable tokens that together have this probability; 1 keeps all
    min_p: float = 0.0  # tokens at least this probable relative to the first; 0 keeps all
    seed: int | None = 0  # None draws a fresh one

    def __post_init__(self) -> None:
        """Refuse what llama.cpp would take without a word."""
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise SamplingError(f"top_k must be an integer >= 0 (0 keeps all tokens), not {self.top_k!r}")
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < _MAX_SEED):
            raise SamplingError(f"seed must be an integer from 0 to {_MAX_SEED - 1}, or None, not {self.seed!r}")


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise SamplingError(f"{name} must be a number of at least {low:g}{upper}, not {value!r}")
    if math.isinf(value):
        raise SamplingError(f"{name} must be finite")


class Sampler:
    """A sampler chain of llama.cpp, with the state of its random numbers. Freed by close()."""

    def __init__(self, sampling: Sampling) -> None:
        """Build the chain."""
        self._chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for link in _links(sampling):
            lib.llama_sampler_chain_add(self._chain, link)  # the chain owns its links

    def sample(self, ctx: Any, index: int) -> int:
        """A token from the logits of the batch's token number `index`; the chain takes note of it."""
        return int(lib.llama_sampler_sample(self._chain, ctx, index))

    def close(self) -> None:
        """Free the chain and its links."""
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None


def _links(sampling: Sampling) -> list[Any]:
    if sampling.temperature == 0:
        return [lib.llama_sampler_init_greedy()]
    links = []
    if sampling.top_k > 0:
        links.append(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        links.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        links.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    links.append(lib.llama_sampler_init_temp(sampling.temperature))
    seed = secrets.randbelow(_MAX_SEED) if sampling.seed is None else sampling.seed
    links.append(lib.llama_sampler_init_dist(seed))
    return links
