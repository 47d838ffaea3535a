"""Conversations to prompts: the chat template that a GGUF file carries, rendered as Hugging Face renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import ChatTemplateError, PromptError
from .vocab import Vocab

_KEY = "tokenizer.chat_template"
_FOR_TOOLS = f"{_KEY}.tool_use"

Message = Mapping[str, Any]  # {"role": ..., "content": ..., and what else the template reads}


def chat_template(metadata: Mapping[str, Any], *, tools: bool = False) -> str:
    """The template among a GGUF file's metadata; the one for tools, where there is one and `tools` are given."""
    for key in (_FOR_TOOLS, _KEY) if tools else (_KEY,):
        template = metadata.get(key)
        if isinstance(template, str) and template:
            return template
    raise ChatTemplateError(
        "this model file carries no chat template: pass one with template=..., or write the prompt yourself and use "
        "generate()"
    )


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation. `variables`: more names for the template, e.g. enable_thinking.

    Templates come with files from anywhere: they run in Jinja's sandbox, see only what they are given, and cannot
    change it. ChatTemplateError tells what a template says against the messages, or what is wrong with it.
    """
    _check(template, messages, tools)
    try:
        names: dict[str, Any] = {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        # What is fixed wins over what a caller adds.
        return _ENVIRONMENT.from_string(template).render({**(variables or {}), **names})
    except _RefusedError as error:
        raise ChatTemplateError(f"the chat template refuses these messages: {error}") from None
    except TemplateSyntaxError as error:
        raise ChatTemplateError(f"the chat template is broken in its line {error.lineno}: {error.message}") from None
    except SecurityError as error:
        raise ChatTemplateError(f"the chat template wants what the sandbox forbids: {error}") from None
    except RecursionError:
        raise ChatTemplateError("the chat template calls itself without end, or is nested too deep") from None
    except Exception as error:  # a template can raise whatever Python can
        raise ChatTemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error


def check_template(template: str) -> None:
    """ChatTemplateError where a text is no template."""
    _check(template, [{"role": "user", "content": ""}], None)
    try:
        _ENVIRONMENT.from_string(template)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(f"the chat template is broken in its line {error.lineno}: {error.message}") from None
    except (RecursionError, ValueError, OverflowError):
        raise ChatTemplateError("the chat template is nested too deep") from None


def prompt_tokens(vocab: Vocab, prompt: str) -> list[int]:
    """Token ids of a rendered conversation.

    Most templates write the beginning-of-sequence token themselves; then the tokenizer adds no second one.
    """
    written = bool(vocab.bos_text) and prompt.startswith(vocab.bos_text)
    return vocab.tokenize(prompt, add_special=not written)


def _check(template: object, messages: object, tools: object) -> None:
    if not isinstance(template, str) or not template:
        raise ChatTemplateError(f"a chat template is Jinja text, not {template!r}")
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise PromptError(f'messages is a list of {{"role": ..., "content": ...}}, not {type(messages).__name__}')
    if not messages:
        raise PromptError("messages is empty: give at least one message")
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise PromptError(f'messages[{at}] must be {{"role": ..., "content": ...}}, not {message!r:.80}')
        if not isinstance(message.get("role"), str):
            raise PromptError(f'messages[{at}] needs a "role", a string such as "user"')
    if tools is None:
        return
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise PromptError("tools is a list of dicts, each describing a function")


# -- what templates may use -------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """The template called raise_exception."""


def _raise_exception(message: object = "no reason given") -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter is made for web pages: it would write < and & as escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks an answer's text for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - so declared by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    return environment


_ENVIRONMENT = _environment()
