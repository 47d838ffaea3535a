"""A small world of stories with known attributes and a known distribution.

Every story has a character (``who``), a ``place``, a ``mood``, a ``number`` (one character or two), a
``tense`` and a few lesser attributes. The mood is never named in a story: it shows in what happens, in how
things are done and in what is said. As the sampler's choices are all recorded and the text has exactly one
derivation, ``story_log_prob`` is the exact log-probability of the text, and the mean of its negative is the
entropy of the language: the loss that no model can beat. Chats are in ``demo_world_chat.py``.

    python scripts/demo_world.py --stories 3
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import TypeVar

from demo_world_grammar import (
    COMPANION_ADJECTIVES,
    COMPANIONS,
    FRAMES,
    HOLE,
    MANNERS,
    MENTIONS,
    MOODS,
    NAME_PAIRS,
    NAMES,
    NUMBERS,
    OBJECT_ADJECTIVES,
    OBJECTS,
    PLACES,
    PRONOUNS,
    REQUIRED,
    ROLES,
    TENSES,
    UTTERANCES,
    WEATHERS,
    WHO,
    verb_form,
    with_article,
)
from demo_world_parser import LOCAL, Features, parse_features, parse_sentence, slot_of, split_sentences

__all__ = [
    "MAIN_ATTRIBUTES",
    "Story",
    "parse_sentence",
    "parse_story",
    "sample_story",
    "split_sentences",
    "story_log_prob",
]

#: the attributes that every story has and that are drawn independently of each other
MAIN_ATTRIBUTES = ("who", "place", "mood", "number", "tense")
#: a speech is the companion's with this probability, where there is a companion
COMPANION_SPEAKS = 0.6

_OPTIONAL = tuple(role for role in ROLES if role not in REQUIRED)
#: which sentences a story has; drawn uniformly
PLANS = tuple(
    tuple(role for role in ROLES if role in REQUIRED or role in chosen)
    for size in range(1, 5)
    for chosen in combinations(_OPTIONAL, size)
)

T = TypeVar("T")


@dataclass(frozen=True)
class Story:
    """A story, its attributes and its derivation.

    ``sentences`` holds, per sentence, the frame and the choices that were made in it, all as strings.
    """

    text: str
    who: str
    place: str
    mood: str
    number: str
    tense: str
    name: str
    gender: str
    object: str
    object_adjective: str
    companion: str | None
    companion_adjective: str | None
    weather: str | None
    sentences: tuple[tuple[tuple[str, str], ...], ...]

    def attributes(self) -> dict[str, str | None]:
        """The attributes alone, without the text and the derivation."""
        return {key: value for key, value in vars(self).items() if key not in {"text", "sentences"}}


class _Chooser:
    """Draws, and adds up the log-probability (nats) of what it drew."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.log_prob = 0.0

    def uniform(self, options: Sequence[T]) -> T:
        self.log_prob -= math.log(len(options))
        return options[self.rng.randrange(len(options))]

    def weighted(self, options: dict[str, float]) -> str:
        chosen = self.rng.choices(list(options), list(options.values()))[0]
        self.log_prob += math.log(options[chosen])
        return chosen


@cache
def _frames(role: str, mood: str, weather: str | None) -> tuple[int, ...]:
    """The frames that fit, each drawn with the same probability."""
    return tuple(
        index
        for index, frame in enumerate(FRAMES)
        if frame.role == role and frame.mood in (None, mood) and frame.weather in (None, weather)
    )


def _pronoun(facts: Features, case: int) -> str:
    return PRONOUNS[facts["gender"]][case]


def _realise(frame: int, facts: Features) -> str:
    """The sentence that a frame makes of the story's facts and this sentence's own choices."""
    who = WHO[facts["who"]] if facts["number"] == "plural" else facts["who"]
    count = f"two {who}" if facts["number"] == "plural" else with_article(who)
    text, out, end = FRAMES[frame].text, [], 0
    for hole in HOLE.finditer(text):
        out.append(text[end : hole.start()])
        end = hole.end()
        if verb := hole["verb"]:
            number = {"1": "singular", "2": "plural", None: facts["number"]}[hole["fixed"]]
            out.append(verb_form(verb, facts["tense"], number))
        elif noun := hole["noun"]:
            out.append(noun + ("s" if facts["number"] == "plural" else ""))
        elif hole["slot"] == "S":
            mentions = {"pronoun": _pronoun(facts, 0), "noun": f"the {who}", "name": facts["name"]}
            out.append(mentions[facts["mention"]])
        elif hole["slot"] == "intro":
            out.append(f"{count} named {facts['name']}")
        elif hole["slot"] == "newobj":
            out.append(with_article(f"{facts['object_adjective']} {facts['object']}"))
        elif hole["slot"] == "newcomp":
            out.append(with_article(f"{facts['companion_adjective']} {facts['companion']}"))
        elif hole["slot"] == "place":
            out.append(PLACES[facts["place"]][0])
        elif hole["slot"] in ("poss", "them"):
            out.append(_pronoun(facts, 1 if hole["slot"] == "poss" else 2))
        else:
            key = {"obj": "object", "comp": "companion", "utt": "utterance"}.get(hole["slot"], hole["slot"])
            out.append(facts[key])
    sentence = "".join(out) + text[end:]
    return sentence[0].upper() + sentence[1:]


def _draw_facts(chooser: _Chooser, fixed: Features) -> tuple[Features, tuple[str, ...]]:
    """The story's facts and its plan; what is in ``fixed`` is not drawn."""
    facts = {
        "who": fixed.get("who") or chooser.uniform(list(WHO)),
        "place": fixed.get("place") or chooser.uniform(list(PLACES)),
        "mood": fixed.get("mood") or chooser.uniform(MOODS),
        "number": fixed.get("number") or chooser.weighted(NUMBERS),
        "tense": fixed.get("tense") or chooser.weighted(TENSES),
    }
    plural = facts["number"] == "plural"
    facts["name"] = chooser.uniform(NAME_PAIRS if plural else list(NAMES))
    facts["gender"] = "p" if plural else NAMES[facts["name"]]
    facts["object"] = chooser.uniform(OBJECTS)
    facts["object_adjective"] = chooser.uniform(OBJECT_ADJECTIVES)
    plan = chooser.uniform(PLANS)
    if "companion" in plan:
        facts["companion"] = chooser.uniform(COMPANIONS)
        facts["companion_adjective"] = chooser.uniform(COMPANION_ADJECTIVES)
    if "setting" in plan:
        facts["weather"] = chooser.uniform(WEATHERS)
    return facts, plan


def _draw_sentence(chooser: _Chooser, slot: str, facts: Features, plan: tuple[str, ...]) -> Features:
    """The frame and the choices of one sentence."""
    role = slot
    if slot == "speech":
        share = COMPANION_SPEAKS if "companion" in plan else 0.0
        speakers = {"companion_speech": share, "self_speech": 1.0 - share}
        role = chooser.weighted(speakers) if share else "self_speech"
    frame = chooser.uniform(_frames(role, facts["mood"], facts.get("weather")))
    text = FRAMES[frame].text
    choices = {"frame": str(frame), "role": role}
    if "{S}" in text:
        choices["mention"] = chooser.weighted(MENTIONS)
    if "{thing}" in text:
        choices["thing"] = chooser.uniform(PLACES[facts["place"]][1])
    if "{manner}" in text:
        choices["manner"] = chooser.uniform(MANNERS[facts["mood"]])
    if "{utt}" in text:
        choices["utterance"] = chooser.uniform(UTTERANCES[facts["mood"]])
    return choices


def _make_story(facts: Features, choices: list[Features], text: str) -> Story:
    optional = {key: facts.get(key) for key in ("companion", "companion_adjective", "weather")}
    sentences = tuple(tuple(sorted(choice.items())) for choice in choices)
    return Story(**{**facts, **optional}, text=text, sentences=sentences)


def sample_with_log_prob(rng: random.Random, **fixed: str) -> tuple[Story, float]:
    """A story and the log-probability (nats) of the choices that made it, given the ``fixed`` attributes."""
    if unknown := set(fixed) - set(MAIN_ATTRIBUTES):
        raise ValueError(f"cannot fix {sorted(unknown)}; choose from {MAIN_ATTRIBUTES}")
    chooser = _Chooser(rng)
    facts, plan = _draw_facts(chooser, fixed)
    choices = [_draw_sentence(chooser, slot, facts, plan) for slot in plan]
    text = " ".join(_realise(int(choice["frame"]), facts | choice) for choice in choices)
    return _make_story(facts, choices, text), chooser.log_prob


def sample_story(rng: random.Random, **fixed: str) -> Story:
    """A story; main attributes may be fixed, e.g. ``sample_story(rng, mood="sad", who="fox")``."""
    return sample_with_log_prob(rng, **fixed)[0]


def parse_story(text: str) -> Story | None:
    """The story that ``text`` is, with attributes and derivation read from the text alone, or None."""
    result = parse_features(text)
    if result is None:
        return None
    facts, sentences = result
    choices = [{key: value for key, value in sentence.items() if key in LOCAL} for sentence in sentences]
    return _make_story(facts, choices, text)


def attribute_log_prob(attribute: str, value: str) -> float:
    """Log-probability (nats) of one main attribute."""
    if attribute in ("number", "tense"):
        return math.log((NUMBERS if attribute == "number" else TENSES)[value])
    options: Sequence[str] = {"who": tuple(WHO), "place": tuple(PLACES), "mood": MOODS}[attribute]
    return -math.log(len(options)) if value in options else -math.inf


def _sentence_log_prob(choices: Features, story: Story) -> float:
    role, mood = choices["role"], story.mood
    total = -math.log(len(_frames(role, mood, story.weather)))
    if slot_of(role) == "speech" and story.companion is not None:
        total += math.log(COMPANION_SPEAKS if role == "companion_speech" else 1.0 - COMPANION_SPEAKS)
    if "mention" in choices:
        total += math.log(MENTIONS[choices["mention"]])
    if "thing" in choices:
        total -= math.log(len(PLACES[story.place][1]))
    if "manner" in choices:
        total -= math.log(len(MANNERS[mood]))
    if "utterance" in choices:
        total -= math.log(len(UTTERANCES[mood]))
    return total


def story_log_prob(story: Story, fixed: Sequence[str] = ()) -> float:
    """Exact log-probability (nats) of the story's text, given the main attributes that ``fixed`` names."""
    total = -math.log(len(PLANS))
    for attribute in MAIN_ATTRIBUTES:
        if attribute not in fixed:
            total += attribute_log_prob(attribute, getattr(story, attribute))
    total -= math.log(len(NAME_PAIRS if story.number == "plural" else NAMES))
    total -= math.log(len(OBJECTS) * len(OBJECT_ADJECTIVES))
    if story.companion is not None:
        total -= math.log(len(COMPANIONS) * len(COMPANION_ADJECTIVES))
    if story.weather is not None:
        total -= math.log(len(WEATHERS))
    return total + sum(_sentence_log_prob(dict(choices), story) for choices in story.sentences)


def main() -> None:
    """Print a few stories with their attributes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.stories):
        story = sample_story(rng)
        facts = ", ".join(f"{key}={value}" for key, value in story.attributes().items() if value)
        print(f"{story.text}\n  [{facts}; {-story_log_prob(story):.2f} nats]\n")


if __name__ == "__main__":
    main()
