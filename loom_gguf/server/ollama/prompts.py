"""From a request's texts to a prompt, and whether the model thinks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...requests import ChatPrompt, Prompt, TextPrompt
from ..errors import RequestError
from ..models import Facts
from .schemas import ChatBody, GenerateBody

THINK_LEVELS = ("low", "medium", "high")


def generate_prompt(body: GenerateBody, facts: Facts) -> Prompt:
    """The prompt of /api/generate: in the model's chat template, where it has one, as Ollama does."""
    if body.raw:
        return TextPrompt(body.prompt)
    if not (body.template or facts.template):
        return TextPrompt(f"{body.system}\n\n{body.prompt}" if body.system else body.prompt)
    messages = [{"role": "system", "content": body.system}] if body.system else []
    messages.append({"role": "user", "content": body.prompt})
    return ChatPrompt(messages, template=body.template or None, variables=think_variables(body.think, facts))


def chat_prompt(body: ChatBody, facts: Facts) -> ChatPrompt:
    """The prompt of /api/chat."""
    if not facts.template:
        raise RequestError(400, f'"{body.model}" does not support chat: its file carries no chat template')
    messages = [_message(message, at) for at, message in enumerate(body.messages or ())]
    return ChatPrompt(messages, tools=body.tools or None, variables=think_variables(body.think, facts))


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
