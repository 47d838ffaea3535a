"""Ollama's options and fields as plain data that a model's process understands."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ...context import MIN_UBATCH
from ...errors import ManifestError
from ...sampling import MAX_SEED, Sampling
from ...settings import duration
from ..errors import RequestError, first_problem
from ..loading import LoadWishes
from .schemas import GenerateBody, GenerationRequest, KeepAlive, Options

logger = logging.getLogger(__name__)

_MAX_LOGPROBS = 20

# Options of Ollama's that mean nothing here: about memory and devices that llama.cpp manages, or samplers it has not.
_WITHOUT_EFFECT = frozenset({
    "draft_num_predict", "embedding_only", "f16_kv", "logits_all", "low_vram", "main_gpu", "mirostat", "mirostat_eta",
    "mirostat_tau", "num_keep", "numa", "penalize_newline", "tfs_z", "use_mlock", "use_mmap", "vocab_only",
})  # fmt: skip

# Go's templates begin their variables with a dot, which Jinja never does. No brace is passed over: clients write these
# texts, and a search from each of many braces to the end would take for ever.
_GO_TEMPLATE = re.compile(r"\{\{-?\s*(?:(?:if|else if|range|with|eq|ne|and|or|not|len|json)\b[^{}]*?\s)?[.$]")


def parse_options(options: Mapping[str, Any] | None, own: Mapping[str, Any] | None = None) -> Options:
    """The options of a request; what nobody knows is said in the log.

    own: those that the model brings along; the request's win. ManifestError where the model's are wrong.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    return Options.model_validate(_own_options(own or {}).model_dump(exclude_unset=True) | _checked(given))


def _own_options(own: Mapping[str, Any]) -> Options:
    known = {key: own[key] for key in own.keys() & Options.model_fields.keys() if own[key] is not None}
    try:
        return Options.model_validate(known)
    except ValidationError as error:
        raise ManifestError(f"the model's own parameters are wrong: {first_problem(error)}") from None


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are known; a RequestError tells which one is wrong."""
    unknown = given.keys() - Options.model_fields.keys()
    for name in sorted(unknown - _WITHOUT_EFFECT):
        logger.warning("the option %.80r is not known and has no effect", name)
    for name in sorted(unknown & _WITHOUT_EFFECT):
        logger.debug("the option %r has no effect here", name)
    try:
        found = Options.model_validate({key: value for key, value in given.items() if key not in unknown})
        return found.model_dump(exclude_unset=True)
    except ValidationError as error:
        raise RequestError(400, f"option {first_problem(error)}") from None


def load_wishes(options: Options) -> LoadWishes:
    """What the options say of how the model is loaded."""
    return LoadWishes(
        n_ctx=options.num_ctx,
        n_ubatch=None if options.num_batch is None else max(options.num_batch, MIN_UBATCH),
        n_gpu_layers=options.num_gpu,
        n_threads=options.num_thread or None,
    )


def sampling(body: GenerationRequest, options: Options) -> Sampling:
    """How to choose tokens; SamplingError for what is out of range."""
    if not 0 <= body.top_logprobs <= _MAX_LOGPROBS:
        raise RequestError(400, f"top_logprobs must be between 0 and {_MAX_LOGPROBS}")
    return Sampling(
        temperature=options.temperature,
        top_k=max(options.top_k, 0),
        top_p=options.top_p,
        min_p=options.min_p,
        typical_p=options.typical_p,
        repeat_penalty=options.repeat_penalty,
        repeat_last_n=options.repeat_last_n,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=options.seed % MAX_SEED if options.seed >= 0 else None,  # clients send times in milliseconds
        json_schema=_schema(body.format),
        logprobs=body.top_logprobs if body.logprobs or body.top_logprobs else None,
    )


def stop_texts(options: Options) -> tuple[str, ...]:
    """Texts that end the answer."""
    texts = [options.stop] if isinstance(options.stop, str) else options.stop or []
    return tuple(text for text in texts if text)


def max_tokens(options: Options) -> int | None:
    """Tokens to generate; None: until the context is full."""
    return None if options.num_predict < 0 else options.num_predict


def keep_alive(value: KeepAlive) -> float | None:
    """Seconds; negative: for ever; None: as the server does anyway."""
    if value is None or value == "":
        return None
    try:
        return duration(str(value))
    except ValueError as error:
        raise RequestError(400, f"keep_alive: {error}") from None


def check_generate(body: GenerateBody) -> None:
    """Refuse what cannot be done, in words."""
    if body.raw and (body.template or body.system or body.context):
        raise RequestError(400, "raw mode does not support template, system, or context")
    if body.context:
        raise RequestError(400, "context is not supported: send the conversation as messages to /api/chat instead")
    if body.suffix:
        raise RequestError(400, f'"{body.model}" does not support insert: this server only goes on from a prompt')
    if body.images:
        raise RequestError(400, f'"{body.model}" does not support images: this server reads only text')
    if is_go_template(body.template):
        raise RequestError(
            400, "template: this is a Go template; this server renders Jinja templates, as GGUF files carry them"
        )


def is_go_template(template: str) -> bool:
    """Whether a template is written in Go's language, as Ollama's are."""
    return _GO_TEMPLATE.search(template) is not None


def _schema(form: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if form is None or form == "":
        return None
    if isinstance(form, dict):
        return form
    if form == "json":
        return {}
    raise RequestError(400, f'invalid format: {json.dumps(form[:80])}; expected "json" or a valid JSON Schema object')
