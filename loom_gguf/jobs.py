"""What is asked of an engine and what it answers: plain data that may cross a process boundary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .capture import Capture
from .compression import CompressedStates, Kind
from .sampling import Sampling
from .states import States

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Job:
    """One prompt to be continued, or only to be read."""

    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = 128  # None: until the context is full; 0: only read the prompt
    stop: tuple[str, ...] = ()
    capture: Capture | None = None
    prompt_rows: bool = False  # also the rows of the prompt's tokens (of all of them where max_tokens is 0)
    compression: Kind | None = None
    scale_block: int = 0


Captured = States | CompressedStates


@dataclass(frozen=True)
class PromptRows:
    """Rows of consecutive tokens of the prompt."""

    states: Captured


@dataclass(frozen=True)
class Token:
    """One generated token, with the rows of the pass whose logits produced it."""

    token_id: int
    text: str  # empty where text is held back
    index: int  # from 0
    position: int  # of the token that was read: n_prompt - 1 + index
    states: Captured | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    reason: FinishReason | None = None  # of the last one: why no more come


@dataclass(frozen=True)
class Finished:
    """The job is done. Times in seconds."""

    reason: FinishReason
    n_prompt: int  # tokens of the prompt
    n_reused: int  # of those, tokens whose cells were there already
    n_generated: int
    queue_seconds: float
    prompt_seconds: float
    generate_seconds: float


@dataclass(frozen=True)
class Failed:
    """The job ended with an error."""

    error: Exception


Event = PromptRows | Token | Finished | Failed
