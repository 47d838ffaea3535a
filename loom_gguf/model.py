"""A GGUF model, opened for running and looking inside."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeGuard

import numpy as np

from .batch import Array, Batch
from .capture import Capture
from .catalog import Node, Topology
from .chat import Message, chat_template, prompt_tokens, render_chat
from .context import Context, ContextParams, Precision
from .embedding import Pooling, check_pooling, normalized, pool
from .errors import (
    CaptureError,
    CaptureMemoryError,
    EmptyPromptError,
    ModelClosedError,
    NotGenerativeError,
    PromptError,
    PromptTooLongError,
    SamplingError,
)
from .gguf_file import GGUFFile
from .library import resolve
from .memory import capture_bytes, need_memory, out_of_memory
from .placement import Placement
from .sampling import Sampler, Sampling
from .states import States
from .text import TextStream
from .weights import Weights

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Step:
    """One generated token, with the rows of the forward pass whose logits produced it.

    The token that ends the generation is a step too: its text is empty, or what had been held back.
    """

    token_id: int
    text: str  # empty where text is held back: half a character, or what may become a stop string
    index: int  # number of this step, from 0
    position: int  # of the token that was read, not of the one produced: n_prompt - 1 + index
    states: States | None  # one row per captured node; None without a capture
    finish_reason: FinishReason | None  # on the last step; "length": max_tokens or the context's end was reached
    prompt_states: States | None = None  # on the first step, where asked for: rows of positions 0 to n_prompt - 2
    logprob: float | None = None  # of token_id in the model's own distribution (natural log); where asked for
    top_logprobs: tuple[tuple[int, float], ...] = ()  # (token id, logprob) of the most probable, best first

    def __repr__(self) -> str:
        """Text and place; how many nodes were captured."""
        captured = "" if self.states is None else f", {len(self.states.values_by_key)} nodes"
        ended = "" if self.finish_reason is None else f", {self.finish_reason}"
        return f"<Step {self.index}: {self.text!r} (id {self.token_id}), position {self.position}{captured}{ended}>"

    def _repr_html_(self) -> str:
        from .notebook import step_html

        return step_html(self)


class Model:
    """A GGUF model in this process.

    >>> with Model("demo") as model:
    ...     states = model.forward("Once upon a time", Capture.all_layers())
    ...     states["l_out-3"].shape
    (8, 128)

    Methods may be called from several threads; they take turns. Several generations may be under way at once.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        n_ctx: int = 4096,
        n_ubatch: int = 512,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        precision: Precision = "fast",
        device: str = "auto",
    ) -> None:
        """Load a model.

        model: path of a .gguf file, a name that the library resolves ("llama3.2", "hf.co/org/repo:Q4_K_M"), or "demo"
            for the model that comes with the package.
        n_ctx: tokens that fit into the context, at most the model's own length.
        n_ubatch: tokens of one forward pass; longer prompts are computed in pieces of this length.
        n_gpu_layers: blocks to keep on the GPU, -1 for all; without a GPU it means nothing.
        n_threads: CPU threads; None chooses by the machine.
        precision: "fast" is how the model runs in practice (flash attention, float16 cache); "exact" computes
            attention in float32 with a float32 cache, for comparison with other implementations.
        device: "auto" (all GPUs that there are, else the CPU), "cpu", "cuda", "cuda:1", "metal".
        """
        self.path = resolve(model)
        self._weights = Weights(self.path, Placement(device, n_gpu_layers))
        self._closed = False
        self._precision: Precision = precision
        try:
            self._context = Context(
                self._weights,
                ContextParams(n_ctx=n_ctx, n_ubatch=n_ubatch, n_threads=n_threads, precision=precision),
            )
        except BaseException:
            self._weights.close()
            raise

    # -- facts --------------------------------------------------------------------------------------------------

    @property
    def arch(self) -> str:
        """The architecture, as llama.cpp calls it."""
        return self._weights.file.arch

    @property
    def n_layer(self) -> int:
        """Number of transformer blocks."""
        return self._weights.n_layer

    @property
    def n_embd(self) -> int:
        """Width of a hidden state."""
        return self._weights.n_embd

    @property
    def n_vocab(self) -> int:
        """Number of token ids."""
        return self._weights.vocab.n_tokens

    @property
    def n_ctx(self) -> int:
        """Tokens that fit into the context."""
        return self._context.n_ctx

    @property
    def precision(self) -> Precision:
        """ "fast" or "exact", as it was opened."""
        return self._precision

    @property
    def quantization(self) -> str:
        """The type that holds most of the weights, e.g. "Q4_0"."""
        return self._weights.file.quantization

    @property
    def encoder(self) -> bool:
        """Whether it reads texts only (the BERT family), and cannot generate."""
        return self._context.encoder

    @property
    def file(self) -> GGUFFile:
        """What its file says about itself: metadata, and where each weight lies."""
        return self._weights.file

    @property
    def topology(self) -> Topology:
        """The graph of a forward pass over several tokens: its nodes, which of them reads which, its hidden states."""
        self._need_open()
        return self._context.catalog.several

    def nodes(self) -> list[Node]:
        """The nodes of one forward pass over several tokens, in graph order."""
        self._need_open()
        return list(self._context.catalog.several.nodes)

    def __repr__(self) -> str:
        """Path, architecture and size."""
        return f"<Model {self.path.name}: {self.arch}, {self.n_layer} layers, n_embd {self.n_embd}>"

    def _repr_html_(self) -> str:
        from .notebook import model_html

        return model_html(self, self._closed)

    # -- text and tokens ----------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, with the special tokens that the model adds (e.g. a beginning-of-sequence token)."""
        self._need_open()
        return self._weights.vocab.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; a beginning-of-sequence token that `tokenize` adds is left out."""
        self._need_open()
        return self._weights.vocab.detokenize(ids)

    def token_text(self, token_id: int) -> str:
        """One token for a person to read: a special one by its name, bytes of half a character as \\xe4.

        Empty where the model has no tokenizer.
        """
        self._need_open()
        return self._weights.vocab.label(token_id)

    # -- running ------------------------------------------------------------------------------------------------

    def forward(self, prompt: str | Sequence[int], capture: Capture, keep: Literal["all", "last"] = "all") -> States:
        """Compute one prompt and return the captured rows of all its tokens, or of its last one.

        Text is tokenized with the model's own special tokens; token ids are taken as they are. Nothing is computed
        after the last wanted node.
        """
        if keep not in ("all", "last"):
            raise ValueError(f'keep is "all" or "last", not {keep!r}')
        if not _is_capture(capture):
            raise CaptureError("nothing to capture: give e.g. Capture.all_layers()")
        tokens = self._prompt(prompt)
        ctx = self._context
        # What cannot be captured is said before anything is computed.
        selection = ctx.catalog.several.select(capture)
        n_rows = len(tokens) if keep == "all" else 1
        need_memory(selection, n_rows)
        sequence = ctx.open_sequence()
        try:
            parts = []
            for start in range(0, len(tokens), ctx.n_ubatch):
                piece = tokens[start : start + ctx.n_ubatch]
                batch = Batch.of_one(piece, start, sequence)
                if keep == "all":
                    kept = np.arange(len(piece))
                elif start + len(piece) == len(tokens):
                    kept = np.array([len(piece) - 1])
                else:
                    ctx.decode(batch)
                    continue
                parts.append(ctx.decode_capturing(batch, capture, kept, stop_early=True).states())
            return States.concatenate(parts)
        except CaptureMemoryError:
            raise
        except MemoryError:  # numpy's, where the pieces are put together
            raise out_of_memory(f"the rows of {n_rows:,} tokens", capture_bytes(selection, n_rows)) from None
        finally:
            ctx.close_sequence(sequence)

    def embed(
        self,
        text: str | Sequence[int],
        pooling: Pooling = "mean",
        normalize: bool = True,
        layer: int | Literal["final", "embedding"] = "final",
    ) -> Array:
        """One vector for a text, float32 (n_embd,).

        pooling: "mean" of all tokens, "last_token", "first_token" (CLS) or "max" over the tokens.
        normalize: scale the vector to length 1.
        layer: which hidden states to pool: "final" (after the final norm), "embedding" (the input of block 0), or a
            block's index, negative ones counted from the last.
        """
        check_pooling(pooling)
        if layer == "final":
            capture = Capture.layers([], final=True)
        elif layer == "embedding":
            capture = Capture.layers([], embedding=True)
        else:
            capture = Capture.layers([layer])
        keep: Literal["all", "last"] = "last" if pooling == "last_token" else "all"
        (rows,) = self.forward(text, capture, keep=keep).values()
        vector = pool(rows, pooling)
        return normalized(vector) if normalize else vector

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        capture: Capture | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = 64,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = 0,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        logprobs: int | None = None,
        prompt_states: bool = False,
    ) -> Iterator[Step]:
        """Generate token by token; each step carries the rows of the pass that produced its token.

        temperature: 0 takes the most probable token each time.
        top_k, top_p, min_p, typical_p: keep only likely tokens, see Sampling; 0, 1, 0 and 1 keep all.
        repeat_penalty, presence_penalty, frequency_penalty: make tokens less likely that are among the last
            repeat_last_n ones, the prompt's included (-1: the whole context).
        seed: None draws a fresh one.
        stop: strings that end the generation and are not part of its text.
        grammar: GBNF text; the generation follows its rule root, and ends when that is complete.
        json_schema: instead of a grammar, a schema (dict or JSON text) that the generated JSON matches; {} or
            "json" for any JSON object. max_tokens may still cut the text off before it is complete.
        logprobs: tell each token's log-probability and those of so many of the most probable tokens, 0 to 20; of
            the model's own distribution, before any filter.
        prompt_states: the first step also brings the rows of the prompt's other tokens.

        Everything is checked at once; computing begins with the first step. The generation holds one of the model's
        sequences until it ends or the iterator is closed.
        """
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            repeat_last_n=repeat_last_n,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            grammar=grammar,
            json_schema=json_schema,
            logprobs=logprobs,
        )
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise SamplingError(f"max_tokens must be an integer of at least 1, not {max_tokens!r}")
        tokens = self._prompt(prompt)
        if _is_capture(capture):
            selection = self._context.catalog.several.select(capture)
            need_memory(selection, len(tokens) if prompt_states else 1)
        elif prompt_states:
            raise CaptureError("prompt_states=True needs a capture that says which nodes")
        if self._context.encoder:
            raise NotGenerativeError(
                f"{self.path.name} is an encoder ({self.arch}): it reads text, it does not go on with it. Use "
                f"forward() or embed()"
            )
        stream = TextStream(stop)
        sampler = Sampler(sampling, self._weights.vocab, self.n_ctx, tokens)
        return self._steps(tokens, capture, sampler, max_tokens, stream, prompt_states)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        """Generate the answer to a conversation; see `chat_prompt` for its arguments, `generate` for the options.

        >>> for step in model.chat([{"role": "user", "content": "Hello"}], max_tokens=32):
        ...     print(step.text, end="")
        """
        prompt = self.chat_prompt(messages, tools=tools, template=template)
        return self.generate(prompt_tokens(self._weights.vocab, prompt), **options)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text that the model's chat template makes of a conversation.

        messages: dicts with "role" and "content", and what else the template reads.
        tools: functions that the model may call, as JSON-schema dicts.
        template: a Jinja template to use instead of the file's own.
        add_generation_prompt: end with the beginning of an answer.

        The text often begins with the beginning-of-sequence token already; `chat` then adds none.
        """
        self._need_open()
        vocab = self._weights.vocab
        return render_chat(
            chat_template(self._weights.file.metadata, tools=bool(tools)) if template is None else template,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            bos_token=vocab.bos_text,
            eos_token=vocab.eos_text,
        )

    def _steps(
        self,
        tokens: Array,
        capture: Capture | None,
        sampler: Sampler,
        max_tokens: int,
        stream: TextStream,
        prompt_states: bool,
    ) -> Iterator[Step]:
        ctx, vocab = self._context, self._weights.vocab
        sequence = -1
        try:
            self._need_open()
            sequence = ctx.open_sequence()
            start, before = self._prefill(tokens, sequence, capture if prompt_states else None)
            read = tokens[start:]
            for index in range(max_tokens):
                batch = Batch.of_one(read, start, sequence)
                batch.outputs[-1] = True
                step_states = None
                with ctx.lock:  # no other decode may come between the logits and the sampler
                    if capture:
                        kept = np.arange(len(read)) if prompt_states and index == 0 else np.array([len(read) - 1])
                        rows = ctx.decode_capturing(batch, capture, kept)
                        if len(kept) > 1:
                            before.append(rows.take(np.arange(len(kept) - 1)).states())
                            rows = rows.take(np.array([len(kept) - 1]))
                        step_states = rows.states(single=True)
                    else:
                        ctx.decode(batch)
                    choice = sampler.sample(ctx.handle, len(read) - 1)
                token_id = choice.token_id
                start += len(read)
                ended = vocab.ends_generation(token_id)
                text = "" if ended else stream.feed(vocab.piece(token_id))
                reason: FinishReason | None = None
                if ended or stream.stopped:
                    reason = "stop"
                elif index + 1 == max_tokens or start >= ctx.n_ctx:
                    reason = "length"
                if reason:
                    text += stream.finish()
                yield Step(
                    token_id=token_id,
                    text=text,
                    index=index,
                    position=start - 1,
                    states=step_states,
                    finish_reason=reason,
                    prompt_states=States.concatenate(before) if before and index == 0 else None,
                    logprob=choice.logprob,
                    top_logprobs=choice.top_logprobs,
                )
                if reason:
                    return
                read = np.array([token_id], np.int32)
        finally:
            sampler.close()
            if sequence >= 0:
                ctx.close_sequence(sequence)

    def _prefill(self, tokens: Array, sequence: int, capture: Capture | None) -> tuple[int, list[States]]:
        """Compute all pieces of a prompt but the last; where that begins, and the rows of those before it."""
        ctx = self._context
        last = (len(tokens) - 1) // ctx.n_ubatch * ctx.n_ubatch
        parts = []
        for start in range(0, last, ctx.n_ubatch):
            batch = Batch.of_one(tokens[start : start + ctx.n_ubatch], start, sequence)
            if capture:
                parts.append(ctx.decode_capturing(batch, capture, np.arange(ctx.n_ubatch)).states())
            else:
                ctx.decode(batch)
        return last, parts

    def _prompt(self, prompt: str | Sequence[int]) -> Array:
        """Checked token ids, int32 (n_tokens,)."""
        self._need_open()
        if isinstance(prompt, str):
            ids: Sequence[int] = self._weights.vocab.tokenize(prompt)
        else:
            if isinstance(prompt, (bytes, bytearray)):  # whose items are integers, and no token ids
                raise PromptError("a prompt is text or a list of token ids, not bytes: decode it first")
            ids = [operator.index(token) for token in prompt]
            self._weights.vocab.check(ids)
        if not ids:
            raise EmptyPromptError("the prompt is empty: give at least one token")
        if len(ids) > self.n_ctx:
            raise PromptTooLongError(
                f"the prompt has {len(ids):,} tokens, but the context holds {self.n_ctx:,}: shorten it"
                + (
                    f", or open the model with a larger n_ctx (it was trained for {self._weights.n_ctx_train:,})"
                    if self.n_ctx < self._weights.n_ctx_train
                    else ", for which the model was trained"
                )
            )
        return np.array(ids, np.int32)

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the memory back. A second call does nothing; any other use afterwards raises ModelClosedError."""
        if not self._closed:
            self._closed = True
            self._context.close()
            self._weights.close()

    def __enter__(self) -> Model:
        """Close at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _need_open(self) -> None:
        if self._closed:
            raise ModelClosedError("this model was closed; open it again with Model(...)")


def _is_capture(capture: Capture | None) -> TypeGuard[Capture]:
    """Whether it wants anything. Raises TypeError for what is no capture."""
    if capture is not None and not isinstance(capture, Capture):
        raise TypeError(f"a capture is made by e.g. Capture.names([...]); {type(capture).__name__} is none")
    return bool(capture)
