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
from .schemas import ChatCompletionBody, Message

_NO_THOUGHTS = "none"  # of reasoning_effort


def prompts(value: str | Sequence[Any]) -> list[Prompt]:
    """One text or list of token ids, or several."""
    if isinstance(value, str):
        return [TextPrompt(value)]
    if isinstance(value[0], int):
        return [TokensPrompt(tuple(int(each) for each in value))]
    return [TextPrompt(each) if isinstance(each, str) else TokensPrompt(tuple(each)) for each in value]


def chat_prompt(body: ChatCompletionBody, facts: Facts, extras: Extras) -> ChatPrompt:
    """The prompt of a conversation."""
    if not facts.template:
        raise RequestError(400, f"{body.model} cannot chat: its file carries no chat template; use /v1/completions")
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort == _NO_THOUGHTS:
        variables.setdefault("enable_thinking", False)
    tools = body.tools if body.tools and body.tool_choice != "none" else None
    messages = [_message(each, at) for at, each in enumerate(body.messages)]
    return ChatPrompt(with_own(messages, extras), template=extras.jinja or None, tools=tools, variables=variables)


def schema(body: ChatCompletionBody) -> dict[str, Any] | None:
    """The JSON schema that the answer must follow: of the response's format, or of the tools that must be called."""
    must = _tools_that_must_be_called(body)
    if must:
        try:
            return {"anyOf": [_call(tool, f"#/anyOf/{at}/properties/arguments") for at, tool in enumerate(must)]}
        except RecursionError:
            raise RequestError(400, "tools: parameters are nested too deep") from None
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {}
    if form.json_schema is None:
        raise RequestError(400, "response_format: json_schema needs a json_schema with a schema")
    return form.json_schema.schema_


def _tools_that_must_be_called(body: ChatCompletionBody) -> list[Mapping[str, Any]]:
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


def _call(function: Mapping[str, Any], at: str) -> dict[str, Any]:
    """The schema of a call, in the form that the parser of answers takes for one. `at`: where its arguments stand."""
    arguments = _moved(function.get("parameters") or {"type": "object"}, at)
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
    }


def _moved(schema: Any, to: str) -> Any:
    """A schema that has become a part of another one: its references point into itself as before."""
    if isinstance(schema, list):
        return [_moved(each, to) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, to) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = to + reference[1:]
    return moved


def _message(message: Message, at: int) -> dict[str, Any]:
    """A message as templates read it."""
    made: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    made["content"] = _text(message.content, at)
    if message.tool_calls:
        made["tool_calls"] = [_with_arguments(call) for call in message.tool_calls]
    more = message.model_extra or {}
    return made | {
        key: more[key] for key in ("name", "tool_call_id", "reasoning_content") if isinstance(more.get(key), str)
    }


def _text(content: str | list[dict[str, Any]] | None, at: int) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    texts = []
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(400, f"messages[{at}].content must be text, not {part.get('type')!r:.40}")
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
