"""What clients may send and what they are told: types only.

Requests are strict: a wrong type is an error. Fields that nobody knows are ignored, as Ollama does; only
`expose_hidden` refuses them, because rows that are missing without a word are worse than an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import NotRequired, TypedDict

from ..tokens import Logprob


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 8.0 is a good integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
KeepAlive = float | str | None


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True, protected_namespaces=())


class ExposeHidden(_Request):
    """Which hidden states to send along, and how."""

    model_config = ConfigDict(strict=True, extra="forbid")

    enabled: bool = True  # false: as if the object were not there
    layers: Annotated[list[Int], Field(max_length=4096)] | None = None  # 0-based block indices; null: all, []: none
    last_layer_only: bool = False  # only the last block's output, before the final norm, whatever `layers` says
    embedding: bool = False  # the input of block 0
    final: bool = False  # the last block's output after the final norm
    nodes: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=256)] = []
    # ^ more nodes of the graph: names, name#k, globs. Attention weights (kq_soft_max-i) need a server that was started
    # with --parallel 1 --precision exact
    compression: Literal["none", "float16", "int8"] = "none"
    encoding: Literal["json", "base64"] = "json"  # base64: little-endian float32, float16 or int8
    scale_block: Annotated[Int, Field(ge=1, le=2**31 - 1)] | None = None  # int8: values per scale; null: a whole row
    prompt: bool = False  # also the prompt's rows, before the first token


_EXPOSE_HIDDEN = {"anyOf": [ExposeHidden.model_json_schema(), {"type": "null"}]}


class Options(_Request):
    """Ollama's options, with its defaults. Those of the second block decide how the model is loaded."""

    seed: Int = -1  # negative: another one each time
    num_predict: Int = -1  # tokens; 0 only reads the prompt, negative goes on until the context is full
    top_k: Int = 40  # tokens; 0 keeps all
    top_p: float = 0.9  # 0 to 1; 1 keeps all
    min_p: float = 0.0  # 0 to 1, relative to the most probable token
    typical_p: float = 1.0  # 0 to 1; 1 keeps all
    repeat_last_n: Int = 64  # tokens; 0 none, -1 the whole context
    temperature: float = 0.8  # 0 takes the most probable token
    repeat_penalty: float = 1.0  # 1 changes nothing
    presence_penalty: float = 0.0  # 0 changes nothing
    frequency_penalty: float = 0.0  # 0 changes nothing
    stop: list[str] | str | None = None  # texts that end the answer and are not part of it

    # Where a request does not say: as the model is loaded; else the server's, 512, all, and by the machine.
    num_ctx: Annotated[Int, Field(ge=1, le=2**31 - 1)] | None = None  # tokens; at most the model's own length
    num_batch: Annotated[Int, Field(ge=1, le=2**20)] | None = None  # tokens computed at once
    num_gpu: Annotated[Int, Field(ge=-1, le=2**20)] | None = None  # blocks on the GPU; -1: all
    num_thread: Annotated[Int, Field(ge=0, le=512)] | None = None  # CPU threads; 0: as if it were not there


class ModelRequest(_Request):
    """What most requests have."""

    model: str = Field(default="", validation_alias=AliasChoices("model", "name"))  # required; also `name`
    keep_alive: KeepAlive = None  # seconds or "5m"; negative: for ever; 0: go when done; null: the server's default
    options: dict[str, Any] | None = None  # see Options


class GenerationRequest(ModelRequest):
    """What the two ways to generate have in common."""

    stream: bool | None = None  # null: true
    format: str | dict[str, Any] | None = None  # "json" or a JSON schema
    think: bool | str | None = None  # whether to think first, where the model can; null: as its template has it
    logprobs: bool | None = None  # tell every token's log-probability
    top_logprobs: Int = 0  # 0 to 20: and so many of the most probable tokens'
    # An ExposeHidden; read by Hidden.parse, which refuses it in words of its own.
    expose_hidden: Annotated[Any, WithJsonSchema(_EXPOSE_HIDDEN)] = Field(
        default=None, validation_alias=AliasChoices("expose_hidden", "hidden_states")
    )


class GenerateBody(GenerationRequest):
    """POST /api/generate."""

    prompt: str = ""  # empty: only load the model, or unload it with keep_alive 0
    suffix: str = ""  # refused
    system: str = ""  # instructions before the prompt
    template: str = ""  # Jinja, in place of the model's own
    context: list[int] | None = None  # refused: token ids of an earlier answer
    raw: bool | None = None  # the prompt as it is, without template; null: false
    images: list[str] | None = None  # refused


class ChatBody(GenerationRequest):
    """POST /api/chat."""

    messages: list[dict[str, Any]] | None = None  # {role, content, ...}; empty: only load or unload the model
    tools: list[dict[str, Any]] | None = None  # functions that the model may ask for


class EmbedBody(ModelRequest):
    """POST /api/embed."""

    input: Any = None  # a text, or a list of texts
    truncate: bool | None = None  # cut texts that are too long; null: true
    dimensions: Int = 0  # keep so many values and normalise again; 0: all


class EmbeddingsBody(ModelRequest):
    """POST /api/embeddings, the old form."""

    prompt: str = ""  # the text


class ShowBody(_Request):
    """POST /api/show."""

    model: str = Field(default="", validation_alias=AliasChoices("model", "name"))  # required
    verbose: bool | None = None  # also long arrays of the metadata, and the tensors; null: false


class PullBody(_Request):
    """POST /api/pull."""

    model: str = Field(default="", validation_alias=AliasChoices("model", "name"))  # required
    insecure: bool | None = None  # allow plain http, and unknown certificates
    stream: bool | None = None  # lines as they come; null: true
    username: str | None = None  # refused
    password: str | None = None  # refused


class CreateBody(_Request):
    """POST /api/create, where it only names a base."""

    model: str = Field(default="", validation_alias=AliasChoices("model", "name"))  # required: the new name
    from_: str = Field(default="", alias="from")  # required: the model that it is made of
    system: str | None = None  # null: the base's
    template: str | None = None  # Jinja; null: the base's
    parameters: dict[str, Any] | None = None  # options; the base's stay where they are not named
    messages: list[dict[str, Any]] | None = None  # {role, content}: how each conversation begins
    license: str | list[str] | None = None
    stream: bool | None = None  # lines as they come; null: true
    files: dict[str, str] | None = None  # refused
    adapters: dict[str, str] | None = None  # refused
    quantize: str | None = Field(default=None, validation_alias=AliasChoices("quantize", "quantization"))  # refused
    modelfile: str | None = None  # refused


class CopyBody(_Request):
    """POST /api/copy."""

    source: str  # a model of our own store
    destination: str  # its second name


class DeleteBody(_Request):
    """DELETE /api/delete."""

    model: str = Field(default="", validation_alias=AliasChoices("model", "name"))  # required


# -- answers ----------------------------------------------------------------------------------------------------


class Record(TypedDict):
    """Rows of one node: one item of `hidden_states`."""

    layer: int | None  # 0-based; null: no layer
    node: str  # its key, or "embedding" or "final"
    phase: Literal["prompt", "generate"]
    position: int  # of the first row, from 0
    token_ids: list[int]  # the tokens read, one per row
    token_index: int | None  # of the generated token, from 0; null in the prompt
    shape: list[int]  # [1, rows, ...one row's dimensions]
    data: Any  # all values in a flat list, or base64
    compression: Literal["none", "float16", "int8"]
    next_token_id: NotRequired[int]  # generate: the token that was produced
    encoding: NotRequired[Literal["base64"]]
    scale: NotRequired[Any]  # int8: one per row or per block of it; value = data * scale; null: it had NaN or Inf
    scale_block: NotRequired[int]  # int8: values per scale, where not a whole row; a row's last block may be shorter
    saturated: NotRequired[int]  # float16: values beyond +-65504 that became +-65504
    dtype: NotRequired[str]  # where the numbers are of no type that `compression` tells, e.g. "int32"
    whole: NotRequired[bool]  # true: the node has no rows, and `shape` is [1, ...its own dimensions]


class Timings(TypedDict, total=False):
    """Of the last line. Durations in nanoseconds; what is 0 is left out."""

    total_duration: int
    load_duration: int
    prompt_eval_count: int  # tokens
    prompt_eval_duration: int
    eval_count: int  # tokens
    eval_duration: int


class Line(Timings, total=False):
    """A line of the answer; without streaming, the only one."""

    model: str  # as it was asked for
    created_at: str  # RFC 3339, UTC
    response: str  # /api/generate
    thinking: str  # /api/generate
    message: dict[str, Any]  # /api/chat: {role, content, thinking?, tool_calls?}
    done: bool  # false for all lines but the last
    done_reason: str  # stop, length, load, unload
    context: list[int]  # /api/generate, unless raw: all tokens of prompt and answer
    logprobs: list[Logprob]
    hidden_states: list[Record]
