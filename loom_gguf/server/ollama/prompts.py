"""From a request's texts to a prompt, and whether the model thinks first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...library import Extras
from ...requests import ChatPrompt, Prompt, TextPrompt
from ..conversations import beginning, with_own
from ..errors import RequestError
from ..models import Facts
from .schemas import ChatBody, GenerateBody

THINK_LEVELS = ("low", "medium", "high")


# "{{ .Prompt }}" stands where a model has no template, at Ollama too.
_PLAIN_TEMPLATE = re.compile(r"\s*(\{\{-?\s*\.Prompt\s*-?\}\})?\s*")
_NOTHING = Extras()


def generate_prompt(body: GenerateBody, facts: Facts, extras: Extras = _NOTHING) -> Prompt:
    """The prompt of /api/generate: in the model's chat template, where it has one, as Ollama does.

    The model's own system prompt and first messages count where the request has no system prompt.
    """
    if body.raw:
        return TextPrompt(body.prompt)
    system = body.system or extras.system
    if not (body.template or facts.template):
        _refuse_go_template(body.model, extras, "send the prompt as it is to be with raw: true, or a Jinja template")
        return TextPrompt(f"{system}\n\n{body.prompt}" if system else body.prompt)
    messages = [{"role": "system", "content": system}] if system else []
    messages += beginning(extras)
    messages.append({"role": "user", "content": body.prompt})
    template = body.template or extras.jinja or None
    return ChatPrompt(messages, template=template, variables=think_variables(body.think, facts))


def chat_prompt(body: ChatBody, facts: Facts, extras: Extras = _NOTHING) -> ChatPrompt:
    """The prompt of /api/chat: the model's own first messages, then the request's.

    The model's system prompt counts where the request does not begin with one.
    """
    if not facts.template:
        _refuse_go_template(body.model, extras, "take a GGUF of it that carries a chat template")
        raise RequestError(400, f'"{body.model}" does not support chat: its file carries no chat template')
    asked = [_message(message, at) for at, message in enumerate(body.messages or ())]
    return ChatPrompt(
        with_own(asked, extras),
        template=extras.jinja or None,
        tools=body.tools or None,
        variables=think_variables(body.think, facts),
    )


def check_think(model: str, think: bool | str | None, facts: Facts) -> None:
    """Refuse thoughts of a model that has none; not wanting any is always right."""
    if isinstance(think, str) and think not in THINK_LEVELS:
        raise RequestError(400, f"think must be true, false, or one of {', '.join(THINK_LEVELS)}, not {think!r:.40}")
    if think and not facts.can_think:
        raise RequestError(400, f'"{model}" does not support thinking')


def think_variables(think: bool | str | None, facts: Facts) -> dict[str, Any]:
    """Variables for the template; none where the request leaves it to the template."""
    if think is None or "enable_thinking" not in facts.template:
        return {}
    return {"enable_thinking": bool(think)}


def _refuse_go_template(model: str, extras: Extras, instead: str) -> None:
    if not _PLAIN_TEMPLATE.fullmatch(extras.template):
        raise RequestError(
            400,
            f'"{model}" has only a Go template of Ollama\'s, and its file carries no chat template: this server '
            f"renders Jinja templates, as GGUF files carry them: {instead}",
        )


def _message(message: Mapping[str, Any], at: int) -> dict[str, Any]:
    """An Ollama message as templates read them, which follow OpenAI's form."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise RequestError(400, f'messages[{at}] needs a "role", a string such as "user"')
    if content is not None and not isinstance(content, str):
        raise RequestError(400, f"messages[{at}].content must be a string")
    if message.get("images"):
        raise RequestError(400, f"messages[{at}] has images: this server reads only text")
    made: dict[str, Any] = {"role": role, "content": content or ""}
    if calls := message.get("tool_calls"):
        if not isinstance(calls, Sequence) or not all(isinstance(call, Mapping) for call in calls):
            raise RequestError(400, f"messages[{at}].tool_calls must be a list of objects")
        made["tool_calls"] = [{"type": "function", **call} for call in calls]
    if message.get("thinking"):
        made["reasoning_content"] = message["thinking"]
    if name := message.get("tool_name") or message.get("name"):
        made["name"] = name
    return made
