"""Thoughts and calls, however the text is cut."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom_gguf.server.parsing import Parser, Piece

CALL = '{"name": "look", "arguments": {"at": 1}}'
MADE = {"function": {"name": "look", "arguments": {"at": 1}}}
CASES = [
    ("plain text", Piece("plain text")),
    ("<think>\nhm </think>\n\nYes", Piece("Yes", "hm")),
    ("  <think>hm", Piece("", "hm")),
    ("<think></think>Yes", Piece("Yes")),
    ("a <think> b", Piece("a <think> b")),
    ("<thin air", Piece("<thin air")),
    ("<think>a < b </thin c</think>d", Piece("d", "a < b </thin c")),
    (f"<think>x</think>{CALL}", Piece("", "x", (MADE,))),
    (f"<tool_call>{CALL}</tool_call>", Piece(tool_calls=(MADE,))),
    (f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>", Piece(tool_calls=(MADE, MADE))),
    (f"<tool_call>{CALL}", Piece(tool_calls=(MADE,))),
    (f"So: <tool_call>{CALL}</tool_call>", Piece("So: ", "", (MADE,))),
    (f"So: {CALL}", Piece(f"So: {CALL}")),
    ("<tool_call>nonsense</tool_call> x", Piece("<tool_call>nonsense</tool_call> x")),
    ('{"name": "other", "arguments": {}}', Piece('{"name": "other", "arguments": {}}')),
    ('{"name": "look", "arguments": "text"}', Piece('{"name": "look", "arguments": "text"}')),
    ("{not json", Piece("{not json")),
    ("a <tool_cal", Piece("a <tool_cal")),
]


def parse(parts: Iterable[str]) -> Piece:
    parser = Parser(think=True, tools={"look"})
    return sum((parser.feed(part) for part in parts), Piece()) + parser.finish()


@pytest.mark.parametrize(("text", "piece"), CASES)
def test_in_one_and_letter_by_letter(text: str, piece: Piece) -> None:
    assert parse([text]) == piece
    assert parse(text) == piece


@given(st.sampled_from(CASES), st.lists(st.integers(0, 80), max_size=5))
def test_cut_anywhere(case: tuple[str, Piece], cuts: list[int]) -> None:
    text, piece = case
    ends = [0, *sorted(cuts), len(text)]
    assert parse(text[a:b] for a, b in pairwise(ends)) == piece


@given(st.text(alphabet="<think>/ {}ab", max_size=40))
def test_without_marks_asked_for_nothing_is_changed(text: str) -> None:
    parser = Parser(think=False)
    assert Piece(text) == sum((parser.feed(c) for c in text), Piece()) + parser.finish()
