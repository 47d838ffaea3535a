"""What models write between marks: thoughts and calls of tools, taken out of the text while it comes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

_THINK, _END_THINK = "<think>", "</think>"
_CALL, _END_CALL = "<tool_call>", "</tool_call>"


class Piece(NamedTuple):
    """A piece of the answer."""

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()

    def __add__(self, other: object) -> Piece:
        """One after the other."""
        if not isinstance(other, Piece):
            return NotImplemented
        return Piece(self.content + other.content, self.thinking + other.thinking, self.tool_calls + other.tool_calls)

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return self != Piece()


class Parser:
    """Thoughts first, then content with calls of tools in it. What may become a mark is held back."""

    def __init__(self, *, think: bool, thinking: bool = False, tools: Collection[str] | None = None) -> None:
        """`think`: look for thoughts. `thinking`: they have begun already, in the prompt. `tools`: names of tools that
        may be called; None: look for no calls.
        """
        self._state = "think" if think and thinking else "before" if think else "content"
        self._text = ""  # not sorted in yet
        self._skip_space = self._state == "think"
        self._calls = None if tools is None else _Calls(tools)

    @classmethod
    def after(cls, prompt: str | None, *, think: bool, tools: Collection[str] | None) -> Parser:
        """The parser for what comes after a prompt, whose end may have begun a thought. None: it is not known."""
        thinking = (prompt or "").rstrip().endswith(_THINK)
        return cls(think=think, thinking=thinking, tools=tools)

    def feed(self, text: str) -> Piece:
        """The next piece of text."""
        self._text += text
        piece = Piece()
        if self._state == "before":
            bare = self._text.lstrip()
            if bare.startswith(_THINK):
                self._state, self._text, self._skip_space = "think", bare[len(_THINK) :], True
            elif not _THINK.startswith(bare):
                self._state = "content"
        if self._state == "think":
            piece += self._think()
        if self._state == "content":
            if self._skip_space:  # what parts thoughts from the answer belongs to neither
                self._text = self._text.lstrip()
                self._skip_space = not self._text
            content, self._text = self._text, ""
            piece += Piece(content) if self._calls is None else self._calls.feed(content)
        return piece

    def _think(self) -> Piece:
        if self._skip_space:
            self._text = self._text.lstrip()
            self._skip_space = not self._text
        thought, mark, rest = self._text.partition(_END_THINK)
        if mark:
            self._state, self._text, self._skip_space = "content", rest, True
            return Piece(thinking=thought.rstrip())
        # Space before the mark is held back with it: it is no part of the thought.
        kept = thought[: len(thought) - _held(thought, _END_THINK)].rstrip()
        self._text = thought[len(kept) :]
        return Piece(thinking=kept)

    def finish(self) -> Piece:
        """What was held back, when no more text comes."""
        rest, self._text = self._text, ""
        piece = Piece()
        if self._state == "think":
            piece = Piece(thinking=rest.rstrip())
        elif rest:
            piece = Piece(rest) if self._calls is None else self._calls.feed(rest)
        return piece if self._calls is None else piece + self._calls.finish()


class _Calls:
    """Calls of tools: `<tool_call>{...}</tool_call>` anywhere, or one bare JSON object that is the whole answer."""

    def __init__(self, tools: Collection[str]) -> None:
        self._tools = tools
        self._text = ""
        self._skip_space = False  # what follows a call parts it from what is next
        self._begun = False  # something other than space was given out: a bare object would be part of a text

    def feed(self, text: str) -> Piece:
        self._text += text
        piece = Piece()
        while self._text:
            if self._skip_space:
                self._text = self._text.lstrip()
                self._skip_space = not self._text
                continue
            if not self._begun and self._text.lstrip().startswith("{"):
                return piece  # the object may go on: finish() looks at it
            before, mark, rest = self._text.partition(_CALL)
            if not mark:
                held = _held(before, _CALL)
                content, self._text = before[: len(before) - held], before[len(before) - held :]
                if not self._begun and not content.strip():  # space before a call says nothing
                    self._text = content + self._text
                    return piece
                return piece + self._content(content)
            body, end, after = rest.partition(_END_CALL)
            if not end:
                self._text = mark + rest
                return piece + (self._content(before) if self._begun or before.strip() else Piece())
            calls = self._parse(body)
            if calls:
                piece += (self._content(before) if self._begun or before.strip() else Piece()) + Piece(tool_calls=calls)
                self._begun = self._skip_space = True
            else:
                piece += self._content(before + mark + body + end)
            self._text = after
        return piece

    def finish(self) -> Piece:
        text, self._text = self._text, ""
        # Some models end their text where the closing mark should stand.
        calls = self._parse(text.strip().removeprefix(_CALL))
        return Piece(tool_calls=calls) if calls else Piece(text)

    def _content(self, text: str) -> Piece:
        self._begun = self._begun or bool(text.strip())
        return Piece(text)

    def _parse(self, text: str) -> tuple[dict[str, Any], ...]:
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return ()
        if not isinstance(call, Mapping):
            return ()
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
        if not isinstance(arguments, Mapping) or not isinstance(name, str) or name not in self._tools:
            return ()
        return ({"function": {"name": name, "arguments": dict(arguments)}},)


def tool_names(tools: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the functions that a request describes."""
    functions = (tool.get("function", tool) for tool in tools)
    return {f["name"] for f in functions if isinstance(f, Mapping) and isinstance(f.get("name"), str)}


def _held(text: str, mark: str) -> int:
    """Length of the end of `text` that may be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
