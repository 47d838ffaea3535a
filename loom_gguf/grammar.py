"""Grammars that hold generated text to a form: GBNF as llama.cpp reads it, and JSON schemas turned into it."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from llama_cpp.llama_grammar import DOT, PRIMITIVE_RULES, SchemaConverter

from ._native import complaints, forget_complaints, lib
from .errors import GrammarError

# llama.cpp's parser calls itself for every bracket inside another, its check for left recursion for every rule that
# begins with another (a bracket is one, too), and the end of the stack is the end of the process. A stack of 8 MiB
# holds more than 10,000 brackets and 50,000 rules; some systems' threads have a sixteenth of that.
_MAX_NESTING = 256
_MAX_RULES = 10_000
# llama.cpp's own limit of repetitions. The converter writes each of them out: a thousand million are gigabytes of text.
_MAX_REPETITIONS = 2000
_NO_BRACKETS_HERE = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)

_PARSE_ERROR = b"parse: error parsing grammar: "
_stderr = threading.Lock()


def make_grammar(gbnf: str, vocab: Any) -> Any:
    """A grammar sampler of llama.cpp for this llama_vocab; the caller frees it."""
    data = _checked(gbnf)
    forget_complaints()
    sampler, said = _catching_stderr(data, lambda: lib.llama_sampler_init_grammar(vocab, data, b"root"))
    if not sampler:
        reason = said or complaints() or "it gave no reason"
        raise GrammarError(f"llama.cpp refuses the grammar: {reason}. A grammar is GBNF text with a rule named root")
    return sampler


def _checked(gbnf: str) -> bytes:
    if not isinstance(gbnf, str) or not gbnf.strip():
        raise GrammarError(f"grammar must be GBNF text with a rule named root, not {gbnf!r}")
    if "\0" in gbnf:
        raise GrammarError("the grammar holds a NUL character: write \\x00 instead")
    bare = _NO_BRACKETS_HERE.sub("", gbnf)
    depth = 0
    for bracket in re.findall("[()]", bare):
        depth += 1 if bracket == "(" else -1
        if depth > _MAX_NESTING:
            raise GrammarError(f"the grammar's brackets are nested more than {_MAX_NESTING} deep: use rules instead")
    if bare.count("::=") + bare.count("(") > _MAX_RULES:
        raise GrammarError(f"the grammar has more than {_MAX_RULES:,} rules and brackets: simplify it")
    try:
        return gbnf.encode()
    except UnicodeEncodeError as error:
        raise GrammarError(f"the grammar is not valid Unicode: {error}") from None


def _catching_stderr(gbnf: bytes, call: Callable[[], Any]) -> tuple[Any, str]:
    """What `call` returns, and the parser's reason: it goes to the standard error stream, past llama.cpp's log.

    What other threads write there meanwhile is passed on afterwards.
    """
    with _stderr, tempfile.TemporaryFile() as file:
        try:
            saved = os.dup(2)
        except OSError:  # a process without a standard error stream
            return call(), ""
        try:
            os.dup2(file.fileno(), 2)
            result = call()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        file.seek(0)
        written = file.read()
    before, found, rest = written.partition(_PARSE_ERROR)
    if not found:
        _pass_on(written)
        return result, ""
    reason, _, after = rest.partition(b"\n\n" + gbnf + b"\n")
    _pass_on(before + after)
    # Where the parser quotes the place, it quotes everything that follows.
    return result, reason.decode("utf-8", "replace").partition("\n")[0][:200]


def _pass_on(text: bytes) -> None:
    if text:
        os.write(2, text)


# -- JSON schemas -----------------------------------------------------------------------------------------------


def schema_to_gbnf(schema: Mapping[str, Any] | str) -> str:
    """GBNF for JSON texts that match a JSON schema.

    schema: a dict or JSON text. {} and the word "json" mean any JSON object. Schemas are read by llama-cpp-python's
    converter: objects have the properties that are named, in that order; references point into the schema itself
    ("#/$defs/..."); limits of numbers and other keywords that the converter does not know are passed over.
    """
    if isinstance(schema, str):
        try:
            loaded = {} if schema.strip() == "json" else json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"json_schema is not JSON: {error}") from None
    else:
        try:
            loaded = json.loads(json.dumps(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise GrammarError(f"json_schema must be a dict or JSON text: {error}") from None
    if not isinstance(loaded, dict):
        raise GrammarError(f"json_schema must be a JSON object, not {loaded!r}")
    if loaded.keys() <= _ANNOTATIONS:
        loaded = {"type": "object"}
    try:
        return _Converter(loaded).gbnf()
    except GrammarError:
        raise
    except Exception as error:  # the converter raises what comes: KeyError, AssertionError, AttributeError, ...
        reason = f"{type(error).__name__}: {error}"[:300]
        raise GrammarError(f"the JSON schema cannot be made into a grammar: {reason}") from error


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from _references(child)
    elif isinstance(node, list):
        for child in node:
            yield from _references(child)


def _resolve(root: dict[str, Any], reference: str) -> Any:
    """What a reference points to; only into the schema itself, never to the network."""
    if reference != "#" and not reference.startswith("#/"):
        raise GrammarError(f'"$ref" may only point into the schema itself ("#/..."), not to {reference!r}')
    target: Any = root
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, dict) and key in target:
            target = target[key]
        else:
            raise GrammarError(f'"$ref" points to nothing: {reference!r}')
    return target


def _check_repetitions(schema: Mapping[str, Any]) -> None:
    """GrammarError for what would be written out too often."""
    counts = [schema[key] for key in ("minLength", "maxLength", "minItems", "maxItems") if key in schema]
    if isinstance(pattern := schema.get("pattern"), str):
        counts += [_number(digits) for braces in re.findall(r"\{([^{}]*)\}", pattern) for digits in braces.split(",")]
    if any(isinstance(count, (int, float)) and count > _MAX_REPETITIONS for count in counts):
        raise GrammarError(
            f"the JSON schema repeats something more than {_MAX_REPETITIONS:,} times: give smaller limits, or none"
        )


def _number(digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        return 0.0


# Keywords that say nothing about the value.
_ANNOTATIONS = {"$comment", "$schema", "default", "deprecated", "description", "examples", "title"}

# The converter lets raw line breaks and other control characters into strings, and quotation marks into what a
# pattern's dot stands for: neither is JSON. By the rules' texts, since names may be taken by properties.
_STRICT = {
    PRIMITIVE_RULES["char"].content: r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    DOT: r'[^"\\\x7F\x00-\x1F]',
}


class _Converter(SchemaConverter):  # type: ignore[misc]
    """llama-cpp-python's converter, with what it gets wrong put right."""

    def __init__(self, root: dict[str, Any]) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        self._root = root
        self._refs = {ref: _resolve(root, ref) for ref in _references(root)}
        self._names: dict[str, str] = {}  # of references' rules

    def gbnf(self) -> str:
        # Under a name of its own: properties' rules then begin with it, and meet no other rule's name.
        self._rules["root"] = self.visit(self._root, "schema")
        return str(self.format_grammar())

    def visit(self, schema: Any, name: str) -> str:
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise ValueError(f"a schema is an object, not {schema!r}")
        _check_repetitions(schema)
        if schema.keys() <= _ANNOTATIONS:
            return str(self._add_primitive("value", PRIMITIVE_RULES["value"]))
        if schema.get("items") == {}:  # would be taken for absent
            schema = {**schema, "items": True}
        types = schema.get("type")
        if isinstance(types, list) and not schema.keys() & {"$ref", "oneOf", "anyOf"}:
            # It would forget everything else that the schema says.
            rest = {key: value for key, value in schema.items() if key != "type"}
            schema = rest if rest.keys() & {"const", "enum"} else {"anyOf": [{**rest, "type": t} for t in types]}
        return str(super().visit(schema, name))

    def _add_rule(self, name: str, rule: str) -> str:
        return str(super()._add_rule(name, _STRICT.get(rule, rule)))

    def _format_literal(self, literal: str) -> str:
        return str(super()._format_literal(literal.replace("\\", "\\\\")))  # GBNF's backslash, on top of JSON's

    def _resolve_ref(self, ref: str) -> str:
        # By the whole reference: its last part alone may be another rule's name.
        if ref not in self._names:
            self._names[ref] = f"reference-{len(self._names)}"  # for recursion, while it is being visited
            self._names[ref] = self.visit(self._refs[ref], self._names[ref])
        return self._names[ref]
