"""What a server asks of a model's process, and what it is told about the model: plain data that can be pickled.

A request still has text in it; the process that has the model makes tokens of it, and a Job of those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .capture import Capture
from .compression import Kind
from .context import Precision
from .placement import Placement
from .sampling import Sampling


@dataclass(frozen=True)
class LoadParams:
    """How a model is loaded; a change of any of these needs another process."""

    path: Path
    n_ctx: int = 4096  # tokens of one sequence; at most the model's own length
    n_parallel: int = 4  # sequences at once
    n_ubatch: int = 512
    n_gpu_layers: int = -1
    device: str = "auto"  # these as in Placement
    split_mode: str = "layer"
    main_gpu: int = 0
    tensor_split: tuple[float, ...] = ()
    n_threads: int | None = None
    precision: Precision = "fast"
    max_waiting: int = 64  # requests that may wait for a sequence

    @property
    def placement(self) -> Placement:
        """On which devices."""
        return Placement(self.device, self.n_gpu_layers, self.split_mode, self.main_gpu, self.tensor_split)


@dataclass(frozen=True)
class ModelInfo:
    """What the process says of its model when it is ready."""

    arch: str
    n_layer: int
    n_embd: int
    n_vocab: int
    n_ctx: int  # tokens of one sequence
    encoder: bool
    has_text: bool
    quantization: str
    metadata: Mapping[str, Any]  # of the GGUF file, without the vocabulary's arrays
    load_seconds: float


@dataclass(frozen=True)
class TextPrompt:
    """Text, tokenized with the special tokens that the model adds."""

    text: str


@dataclass(frozen=True)
class TokensPrompt:
    """Token ids as they are."""

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, put into the model's own template."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    template: str | None = None  # a Jinja template in place of the file's own
    variables: Mapping[str, Any] = field(default_factory=dict)  # e.g. enable_thinking


Prompt = TextPrompt | TokensPrompt | ChatPrompt


@dataclass(frozen=True)
class GenerateRequest:
    """Go on from a prompt."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None  # None: until the context is full
    stop: tuple[str, ...] = ()
    capture: Capture | None = None
    prompt_rows: bool = False
    compression: Kind | None = None
    scale_block: int = 0


@dataclass(frozen=True)
class EmbedRequest:
    """One vector for a text."""

    prompt: Prompt
    pooling: Literal["mean", "last_token", "first_token", "max"] = "mean"
    normalize: bool = True
    layer: int | Literal["final", "embedding"] = "final"
    truncate: bool = False  # cut a text that is too long instead of refusing it


@dataclass(frozen=True)
class Started:
    """The first event of a request: its prompt in tokens."""

    tokens: tuple[int, ...]
    text: str | None  # the prompt as a chat template made it


@dataclass(frozen=True)
class Embedded:
    """The answer to an EmbedRequest."""

    vector: Any  # float32 (n_embd,)
    n_prompt: int
