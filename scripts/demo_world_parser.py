"""The parser of the demo world: text back to attributes, or None where the text is not of the language.

It is a unification parser. Every hole of a frame has a table of the surfaces that may stand in it, each with
the features that it fixes (``finds``: present, singular). A sentence parses when its surfaces fit a frame and
no two of them fix a feature differently; a story parses when its sentences agree with each other as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

from demo_world_grammar import (
    COMPANION_ADJECTIVES,
    COMPANIONS,
    FRAMES,
    HOLE,
    MANNERS,
    NAME_PAIRS,
    NAMES,
    OBJECT_ADJECTIVES,
    OBJECTS,
    PLACES,
    PRONOUNS,
    REQUIRED,
    ROLES,
    TENSES,
    UTTERANCES,
    WHO,
    verb_form,
    with_article,
)

Features = dict[str, str]
#: first word of a surface -> [(surface, the features that it fixes)]
Table = dict[str, list[tuple[str, Features]]]

#: features that belong to one sentence; all others must agree over the whole story
LOCAL = frozenset({"frame", "role", "mention", "thing", "manner", "utterance"})


def _number(gender: str) -> str:
    return "plural" if gender == "p" else "singular"


def _noun_phrases() -> Iterator[tuple[str, str, Features]]:
    """(hole, surface, features) for the holes that nouns, names and pronouns fill."""
    for gender, (subject, possessive, objective) in PRONOUNS.items():
        fixed = {"gender": gender, "number": _number(gender)}
        yield "S", subject, {**fixed, "mention": "pronoun"}
        yield "poss", possessive, fixed
        yield "them", objective, fixed
    for who, plural in WHO.items():
        yield "S", f"the {who}", {"who": who, "number": "singular", "mention": "noun"}
        yield "S", f"the {plural}", {"who": who, "number": "plural", "gender": "p", "mention": "noun"}
        for name, gender in NAMES.items():
            fixed = {"who": who, "number": "singular", "gender": gender, "name": name}
            yield "intro", f"{with_article(who)} named {name}", fixed
        for pair in NAME_PAIRS:
            fixed = {"who": who, "number": "plural", "gender": "p", "name": pair}
            yield "intro", f"two {plural} named {pair}", fixed
    for name, gender in NAMES.items():
        yield "S", name, {"number": "singular", "gender": gender, "name": name, "mention": "name"}
    for pair in NAME_PAIRS:
        yield "S", pair, {"number": "plural", "gender": "p", "name": pair, "mention": "name"}


def _other_phrases() -> Iterator[tuple[str, str, Features]]:
    """(hole, surface, features) for objects, companions, places and what belongs to a mood."""
    for adjective, noun in product(OBJECT_ADJECTIVES, OBJECTS):
        yield "newobj", with_article(f"{adjective} {noun}"), {"object": noun, "object_adjective": adjective}
    for adjective, noun in product(COMPANION_ADJECTIVES, COMPANIONS):
        fixed = {"companion": noun, "companion_adjective": adjective}
        yield "newcomp", with_article(f"{adjective} {noun}"), fixed
    for noun in OBJECTS:
        yield "obj", noun, {"object": noun}
    for noun in COMPANIONS:
        yield "comp", noun, {"companion": noun}
    for place, (phrase, things) in PLACES.items():
        yield "place", phrase, {"place": place}
        for thing in things:
            yield "thing", thing, {"place": place, "thing": thing}
    for mood, manners in MANNERS.items():
        for manner in manners:
            yield "manner", manner, {"mood": mood, "manner": manner}
    for mood, utterances in UTTERANCES.items():
        for utterance in utterances:
            yield "utt", utterance, {"mood": mood, "utterance": utterance}


@cache
def _slot_tables() -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for slot, surface, features in (*_noun_phrases(), *_other_phrases()):
        tables.setdefault(slot, {}).setdefault(surface.split()[0], []).append((surface, features))
    return tables


@cache
def _verb_table(base: str, fixed: str | None) -> Table:
    """Forms of a verb; with ``fixed`` the subject is not the story's characters, so only tense is learned."""
    table: Table = {}
    for tense, number in product(TENSES, ("singular", "plural")):
        if fixed is not None and number != {"1": "singular", "2": "plural"}[fixed]:
            continue
        features = {"tense": tense} if fixed else {"tense": tense, "number": number}
        form = verb_form(base, tense, number)
        entries = table.setdefault(form, [])
        if entries and entries[0][1]["tense"] == tense:
            entries[:] = [(form, {"tense": tense})]  # "found" serves both numbers and fixes the tense alone
        else:
            entries.append((form, features))
    return table


@cache
def _compiled(frame: int) -> tuple[str | Table, ...]:
    """A frame as literal strings and tables, in order."""
    text, items, end = FRAMES[frame].text, [], 0
    for hole in HOLE.finditer(text):
        if hole.start() > end:
            items.append(text[end : hole.start()])
        if slot := hole["slot"]:
            items.append(_slot_tables()[slot])
        elif verb := hole["verb"]:
            items.append(_verb_table(verb, hole["fixed"]))
        else:
            noun = hole["noun"]
            singular, plural = (noun, {"number": "singular"}), (noun + "s", {"number": "plural"})
            items.append({noun: [singular], noun + "s": [plural]})
        end = hole.end()
    return (*items, text[end:])


def unify(left: Features, right: Features) -> Features | None:
    """Both sets of features together, or None where they contradict each other."""
    if any(left.get(key, value) != value for key, value in right.items()):
        return None
    return {**left, **right}


def _first_word(text: str) -> str:
    end = 0
    while end < len(text) and text[end] not in " .\"'":
        end += 1
    return text[:end]


def _match(items: tuple[str | Table, ...], text: str, features: Features, start: bool) -> Iterator[Features]:
    if not items:
        if not text:
            yield features
        return
    head, rest = items[0], items[1:]
    if isinstance(head, str):
        if text.startswith(head):
            yield from _match(rest, text[len(head) :], features, False)
        return
    word = _first_word(text)
    # At the start every word has a capital: a name its own, others one that the tables do not have.
    keys = sorted({word, word[:1].lower() + word[1:]}) if start else [word]
    for key in keys:
        for surface, fixed in head.get(key, ()):
            seen = surface[0].upper() + surface[1:] if start else surface
            if text.startswith(seen) and (merged := unify(features, fixed)) is not None:
                yield from _match(rest, text[len(seen) :], merged, False)


def sentence_analyses(text: str) -> list[Features]:
    """Every reading of one sentence; the grammar is built so that there is at most one."""
    readings = []
    for index, frame in enumerate(FRAMES):
        fixed = {"frame": str(index), "role": frame.role}
        fixed |= {"mood": frame.mood} if frame.mood else {}
        fixed |= {"weather": frame.weather} if frame.weather else {}
        readings += _match(_compiled(index), text, fixed, True)
    return readings


def parse_sentence(text: str) -> Features | None:
    """What one sentence says, or None where it is not a sentence of the language.

    The keys are the attributes that the sentence shows (``tense``, ``number``, ``who``, ``mood``, ...) and
    ``role``, ``frame`` and the sentence's own choices.
    """
    readings = sentence_analyses(text)
    return readings[0] if readings else None


def split_sentences(text: str) -> list[str]:
    """The sentences of a story. A full stop inside quotation marks ends no sentence."""
    sentences, start, quoted = [], 0, False
    for position, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif letter in ".!?" and not quoted:
            sentences.append(text[start : position + 1].removeprefix(" "))
            start = position + 1
    if start < len(text):
        sentences.append(text[start:].removeprefix(" "))
    return sentences


def slot_of(role: str) -> str:
    """The place of a frame's role in the order of a story (both kinds of speech share one)."""
    return "speech" if role.endswith("speech") else role


def parse_features(text: str) -> tuple[Features, list[Features]] | None:
    """(features of the whole story, features of each sentence), or None where the text is no story."""
    sentences = split_sentences(text)
    if " ".join(sentences) != text:
        return None
    merged: Features = {}
    parsed: list[Features] = []
    for sentence in sentences:
        features = parse_sentence(sentence)
        if features is None:
            return None
        whole = unify(merged, {key: value for key, value in features.items() if key not in LOCAL})
        if whole is None:
            return None
        merged = whole
        parsed.append(features)
    slots = [slot_of(features["role"]) for features in parsed]
    in_order = [role for role in ROLES if role in slots] == slots
    if not in_order or not set(slots) >= REQUIRED or not 4 <= len(slots) <= 7:
        return None
    if "companion" in merged and "companion" not in slots:
        return None  # somebody speaks who was never introduced
    return merged, parsed
