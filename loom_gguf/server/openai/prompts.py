"""From OpenAI's messages, tools and prompts to what a model's process understands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...library import Extras
from ...requests import ChatPrompt, Prompt, TextPrompt, TokensPrompt
from ..conversations import with_own
from ..errors import RequestError
from ..models import Facts
from .schemas import ChatBody

_NO_THOUGHTS = "none"  # of reasoning_effort


def prompts(value: str | Sequence[Any]) -> list[Prompt]:
    """One text or list of token ids, or several."""
    if isinstance(value, str):
        return [TextPrompt(value)]
    if isinstance(value[0], int):
        return [TokensPrompt(tuple(int(each) for each in value))]
    return [TextPrompt(each) if isinstance(each, str) else TokensPrompt(tuple(each)) for each in value]


def chat_prompt(body: ChatBody, facts: Facts, extras: Extras) -> ChatPrompt:
    """The prompt of a conversation."""
    if not facts.template:
        raise RequestError(400, f"{body.model} cannot chat: its file carries no chat template; use /v1/completions")
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort == _NO_THOUGHTS:
        variables.setdefault("enable_thinking", False)
    tools = body.tools if body.tools and body.tool_choice != "none" else None
    messages = [_message(each, at) for at, each in enumerate(body.messages)]
    return ChatPrompt(with_own(messages, extras), template=extras.jinja or None, tools=tools, variables=variables)


def schema(body: ChatBody) -> dict[str, Any] | None:
    """The JSON schema that the answer must follow: of the response's format, or of the tools that must be called."""
    must = _tools_that_must_be_called(body)
    if must:
        return {"anyOf": [_call(tool) for tool in must]}
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {}
    if form.json_schema is None:
        raise RequestError(400, "response_format: json_schema needs a json_schema with a schema")
    return form.json_schema.schema_


def _tools_that_must_be_called(body: ChatBody) -> list[Mapping[str, Any]]:
    functions = [tool.get("function") for tool in body.tools or ()]
    if not all(isinstance(each, Mapping) and isinstance(each.get("name"), str) for each in functions):
        raise RequestError(400, "tools: each needs a function with a name")
    choice = body.tool_choice
    if choice in (None, "auto", "none"):
        return []
    if choice == "required":
        wanted = functions
    else:
        named = choice.get("function") if isinstance(choice, dict) else None
        name = named.get("name") if isinstance(named, dict) else None
        wanted = [each for each in functions if name is not None and each["name"] == name]  # type: ignore[index]
    if not wanted:
        raise RequestError(
            400, 'tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}} '
            "with the name of one of the tools"
        )  # fmt: skip
    return wanted  # type: ignore[return-value]


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a call, in the form that the parser of answers takes for one."""
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
    }


def _message(message: Mapping[str, Any], at: int) -> dict[str, Any]:
    """A message as templates read it."""
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(400, f'messages[{at}] needs a "role", a string such as "user"')
    made: dict[str, Any] = {"role": "system" if role == "developer" else role}
    made["content"] = _text(message.get("content"), at)
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise RequestError(400, f"messages[{at}].tool_calls must be a list of objects")
        made["tool_calls"] = [_with_arguments(call) for call in calls]
    for key in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(message.get(key), str):
            made[key] = message[key]
    return made


def _text(content: Any, at: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            raise RequestError(400, f"messages[{at}].content must be text, not {kind or 'anything else'!r:.40}")
        texts.append(part["text"])
    return "".join(texts)


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call whose arguments are an object, as templates want them; OpenAI sends them as JSON text."""
    function = call.get("function")
    if not isinstance(function, Mapping):
        return dict(call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}
