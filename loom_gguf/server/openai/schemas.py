"""What clients of OpenAI's API may send: types only. Fields that nobody knows are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..ollama.schemas import Int

Seed = Annotated[Int, Field(ge=-(2**63), le=2**64 - 1)]
MaxTokens = Annotated[Int, Field(ge=1, le=2**31 - 1)]
Tokens = Annotated[list[Int], Field(min_length=1)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str = Field(min_length=1)


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool | None = None  # tell the counts of tokens in a last chunk


class Sampled(_Request):
    """What the two ways to generate have in common."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None  # null: 1; 0 takes the most probable token
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None  # null: 1, which keeps all tokens
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Seed | None = None  # null: another one each time
    stop: str | list[str] | None = None  # texts that end the answer and are not part of it
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Int | None = None  # refused beyond 1
    logit_bias: dict[str, float] | None = None  # refused
    expose_hidden: Any = None  # refused: Ollama's routes have it


class JsonSchema(BaseModel):
    """A schema with a name."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = ""
    schema_: dict[str, Any] = Field(default={}, alias="schema")


class ResponseFormat(BaseModel):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Message(BaseModel):
    """A message of a conversation; what else it has is for the model's template."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str = Field(min_length=1)
    content: str | list[dict[str, Any]] | None = None  # parts must be of type text
    tool_calls: list[dict[str, Any]] | None = None


class ChatCompletionBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: MaxTokens | None = None  # null: until the context is full
    max_completion_tokens: MaxTokens | None = None  # the newer name of it
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None  # "auto", "none", "required", or {function: {name}}
    reasoning_effort: str | None = None  # "none": no thoughts, where the model can
    chat_template_kwargs: dict[str, Any] | None = None  # more variables for the template, e.g. enable_thinking
    return_hidden_states: bool | None = None  # The Loom's: add its keys; null: as the server is set


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(min_length=1, max_length=100)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=100)]
    )
    max_tokens: MaxTokens | None = None  # null: 16
    logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None  # begin the answer with the prompt
    suffix: str | None = None  # refused
    best_of: Int | None = None  # refused beyond 1


class EmbeddingInputBody(_Request):
    """POST /v1/embeddings."""

    input: (
        str
        | Tokens
        | Annotated[list[str], Field(min_length=1, max_length=2048)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] | None = None  # null: float
    dimensions: Annotated[Int, Field(ge=1)] | None = None  # keep so many values and normalise again
