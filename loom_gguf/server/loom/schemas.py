"""What clients may send and what they are told: types only.

Requests are strict: a wrong type is an error. Fields that nobody knows are ignored, as The Loom does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from ..ollama.schemas import Int

MAX_ITEMS = 100  # prompts or texts of one request

Layers = Annotated[list[Int], Field(max_length=4096)] | Literal["all"]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_ITEMS)]
Format = Literal["list", "base64"]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: Annotated[str, Field(min_length=1)]  # a name that /api/tags lists


class GenerationRequest(_Request):
    """What the ways to generate have in common."""

    max_tokens: Annotated[Int, Field(ge=1, le=8192)] = 256
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7  # 0 takes the most probable token
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.9  # 1 keeps all tokens
    return_hidden_states: bool = False  # the last step's rows
    hidden_state_layers: Layers | None = None  # as Hugging Face counts; null: the server's default, [-1] at first
    return_attention: bool = False  # the last step's attention weights of every block
    return_full_sequence: bool = False  # the rows of every step
    hidden_state_format: Format = "list"  # base64: little-endian float32
    loader: str | None = None  # no effect: GGUF files have one loader


class LoomGenerateBody(GenerationRequest):
    """POST /generate and /v1/generate."""

    prompt: str  # plain text: no chat template
    return_hidden_states: bool = True


class StreamBody(GenerationRequest):
    """POST /generate/stream."""

    prompt: str


class BatchBody(GenerationRequest):
    """POST /generate/batch."""

    prompts: Texts


class EmbeddingRequest(_Request):
    """What the ways to embed have in common."""

    pooling: Literal["last_token", "mean", "first_token"] = "last_token"
    normalize: bool = False  # to length 1 (L2)
    loader: str | None = None  # no effect


class LoomEmbedBody(EmbeddingRequest):
    """POST /embed and /analyze."""

    text: str


class EmbedBatchBody(EmbeddingRequest):
    """POST /embed/batch."""

    texts: Texts


class LoadBody(_Request):
    """POST /models/load."""

    device: str | None = None  # "cpu", "cuda", "cuda:1", "metal", "auto"; null: as the server is set
    dtype: str = "auto"  # or the file's own
    loader: str | None = None  # no effect
    quantization: str | None = None  # "4bit", "8bit", "none", or a quantization's name, e.g. "Q4_K_M"


# -- answers ----------------------------------------------------------------------------------------------------


class Values(TypedDict):
    """Numbers of one layer."""

    data: Any  # a flat list (of a sequence a list for each row), or base64
    shape: list[int]  # rows [1, hidden], sequences [steps, hidden], attention [1, heads, 1, positions]
    dtype: Literal["float32"]
    encoding: Literal["base64"] | None


class GenerationMetadata(TypedDict):
    """How it went."""

    inference_time_ms: float  # without loading
    tokens_generated: int
    tokens_per_second: float
    input_tokens: int
    temperature: float
    model_id: str  # as it was asked for
    full_sequence: bool  # whether every step's rows were asked for
    finish_reason: str  # "stop" or "length"; The Loom has it in streams only


class Generated(TypedDict):
    """The answer to one prompt."""

    text: str
    token_count: int
    hidden_states: dict[str, Values] | None  # by the indices that the request named
    attention_weights: dict[str, Values] | None  # by block, from 0
    sequence_hidden_states: dict[str, Values] | None
    metadata: GenerationMetadata


class GeneratedBatch(TypedDict):
    """The answer to several."""

    results: list[Generated]  # in the prompts' order
    total_tokens: int
    total_time_ms: float
    prompts_processed: int


class StreamedToken(TypedDict):
    """The event `token`."""

    token: str  # its text; empty where that is held back, half a character for example
    token_id: int
    is_finished: bool  # it is the last one
    finish_reason: str | None  # of the last one: "stop" or "length"


class EmbeddingMetadata(TypedDict):
    """How it went."""

    pooling: str
    inference_time_ms: float  # without loading
    input_tokens: int
    model_id: str


class LoadedModelFacts(TypedDict):
    """What is said of a loaded model."""

    model_id: str
    device: str  # "cpu", "cuda:0", "metal", ...
    dtype: str  # of most weights: "float32", "float16", "bfloat16", or a quantization in lower case
    hidden_size: int
    num_layers: int
    loader_type: str  # the place that it came from; see /loaders
    quantization: str  # "none" where the weights are not quantized
