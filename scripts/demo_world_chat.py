"""Chats of the demo world: requests for a story, and the documents that the demo model is trained on.

A chat has an optional system message, one or two requests and one story per request that fits it. As for the
stories, the distribution is known exactly and every text has one derivation.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from demo_world import Story, attribute_log_prob, sample_story, story_log_prob
from demo_world_grammar import MOODS, NUMBERS, PLACES, WHO, with_article

BEGIN, END, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (BEGIN, END, USER, ASSISTANT)

#: share of training documents that are chats; the others are bare stories
CHAT_SHARE = 0.15
SYSTEM_SHARE = 0.4
SECOND_TURN_SHARE = 0.3
#: how often a request names an attribute; a request that names ``who`` names ``number`` with it
NAMED = {"who": 0.9, "place": 0.5, "mood": 0.75}

#: system message -> the tense that it asks for
SYSTEM_MESSAGES: dict[str, str | None] = {
    "You are a storyteller.": None,
    "You tell short stories to children.": None,
    "Tell every story in the past tense.": "past",
    "Your stories happened long ago.": "past",
    "Tell every story in the present tense.": "present",
    "Your stories happen right now.": "present",
}
MOOD_WORDS = {
    "happy": ("happy", "joyful"),
    "sad": ("sad", "sorrowful"),
    "angry": ("angry", "furious"),
    "calm": ("calm", "restful"),
    "scared": ("scary", "frightening"),
}
FIRST_REQUESTS = (
    "Tell me {}.",
    "Please tell me {}.",
    "Can you tell me {}?",
    "I would like to hear {}.",
    "Write {}, please.",
    "Do you know {}?",
)
NEXT_REQUESTS = ("Now tell me {}.", "Thank you! And now {}, please.", "Next I want {}.")


@dataclass(frozen=True)
class Chat:
    """``turns`` are (request, story) pairs."""

    system: str | None
    turns: tuple[tuple[str, Story], ...]

    def messages(self) -> list[dict[str, str]]:
        """The chat in the usual form: a list of ``{"role", "content"}``."""
        out = [] if self.system is None else [{"role": "system", "content": self.system}]
        for request, story in self.turns:
            out += [{"role": "user", "content": request}, {"role": "assistant", "content": story.text}]
        return out


def request_text(wanted: dict[str, str], template: str, mood_word: str | None = None) -> str:
    """The request for a story with the ``wanted`` attributes, e.g. ``Tell me a sad story about a fox.``"""
    mood = mood_word or (MOOD_WORDS[wanted["mood"]][0] if "mood" in wanted else None)
    phrase = with_article(f"{mood} story" if mood else "story")
    if "who" in wanted:
        plural = wanted.get("number") == "plural"
        phrase += " about " + (f"two {WHO[wanted['who']]}" if plural else with_article(wanted["who"]))
    if "place" in wanted:
        phrase += ("" if "who" in wanted else " set") + " " + PLACES[wanted["place"]][0]
    return template.format(phrase)


def _draw_request(rng: random.Random, templates: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    wanted: dict[str, str] = {}
    if rng.random() < NAMED["who"]:
        wanted["who"] = rng.choice(list(WHO))
        wanted["number"] = rng.choices(list(NUMBERS), list(NUMBERS.values()))[0]
    if rng.random() < NAMED["place"]:
        wanted["place"] = rng.choice(list(PLACES))
    mood_word = None
    if rng.random() < NAMED["mood"]:
        wanted["mood"] = rng.choice(MOODS)
        mood_word = rng.choice(MOOD_WORDS[wanted["mood"]])
    return request_text(wanted, rng.choice(templates), mood_word), wanted


def sample_chat(rng: random.Random) -> Chat:
    """A chat, drawn from the distribution that ``chat_log_prob`` scores."""
    system = rng.choice(list(SYSTEM_MESSAGES)) if rng.random() < SYSTEM_SHARE else None
    tense = SYSTEM_MESSAGES[system] if system else None
    turns = []
    for templates in (FIRST_REQUESTS, NEXT_REQUESTS)[: 1 + (rng.random() < SECOND_TURN_SHARE)]:
        request, wanted = _draw_request(rng, templates)
        turns.append((request, sample_story(rng, **wanted, **({"tense": tense} if tense else {}))))
    return Chat(system, tuple(turns))


def _request_phrases() -> Iterator[tuple[str, dict[str, str], float]]:
    """(phrase, attributes, log-probability in nats) for everything that a request may ask for."""
    nobody: list[tuple[str, str] | None] = [None]
    for someone, place, mood in product(
        nobody + list(product(WHO, NUMBERS)), [None, *PLACES], [None, *product(MOODS, (0, 1))]
    ):
        log_prob, wanted, word = 0.0, {}, None
        for attribute, value in (("who", someone), ("place", place), ("mood", mood)):
            log_prob += math.log(NAMED[attribute] if value else 1.0 - NAMED[attribute])
        if someone:
            wanted |= dict(zip(("who", "number"), someone, strict=True))
        if place:
            wanted["place"] = place
        if mood:
            wanted["mood"], word = mood[0], MOOD_WORDS[mood[0]][mood[1]]
            log_prob -= math.log(2)  # two words per mood
        log_prob += sum(attribute_log_prob(attribute, value) for attribute, value in wanted.items())
        yield request_text(wanted, "{}", word), wanted, log_prob


_PHRASES = {phrase: (wanted, log_prob) for phrase, wanted, log_prob in _request_phrases()}
_TEMPLATES = [
    (re.compile("^" + ".*".join(map(re.escape, template.split("{}"))) + "$"), template, templates)
    for templates in (FIRST_REQUESTS, NEXT_REQUESTS)
    for template in templates
]


def parse_request(text: str) -> tuple[dict[str, str], float] | None:
    """(the attributes that a request asks for, its log-probability in nats), or None where it is none."""
    for pattern, template, templates in _TEMPLATES:
        if pattern.match(text):
            before, after = template.split("{}")
            found = _PHRASES.get(text[len(before) : len(text) - len(after)])
            if found is not None:
                return found[0], found[1] - math.log(len(templates))
    return None


def chat_log_prob(chat: Chat) -> float:
    """Exact log-probability (nats) of a chat; -inf where a request is not of the language or is not met."""
    total = math.log(SYSTEM_SHARE / len(SYSTEM_MESSAGES) if chat.system else 1.0 - SYSTEM_SHARE)
    total += math.log(SECOND_TURN_SHARE if len(chat.turns) == 2 else 1.0 - SECOND_TURN_SHARE)
    tense = SYSTEM_MESSAGES[chat.system] if chat.system else None
    for request, story in chat.turns:
        parsed = parse_request(request)
        if parsed is None:
            return -math.inf
        wanted = parsed[0] | ({"tense": tense} if tense else {})
        if any(getattr(story, attribute) != value for attribute, value in wanted.items()):
            return -math.inf
        total += parsed[1] + story_log_prob(story, fixed=tuple(wanted))
    return total


@dataclass(frozen=True)
class Document:
    """One training document, its special tokens spelled out.

    ``log_prob`` (nats) is that of a document beginning with ``text``: the sum over its tokens, each given
    those before it, which is what a language model's loss over the same tokens is to be held against.
    """

    text: str
    log_prob: float
    kind: str


def render_chat(chat: Chat) -> str:
    """The chat as the model sees it. The GGUF file's chat template must give the same string."""
    turns = (f"{USER}{request}{END}{ASSISTANT}{story.text}{END}" for request, story in chat.turns)
    return BEGIN + (chat.system or "") + "".join(turns)


def story_document(story: Story) -> Document:
    """A bare story between the begin and end tokens."""
    log_prob = math.log(1.0 - CHAT_SHARE) + story_log_prob(story)
    return Document(f"{BEGIN}{story.text}{END}", log_prob, "story")


def chat_document(chat: Chat) -> Document:
    """A chat as a document. No token of it says that no turn follows, so that choice is not counted."""
    unseen = math.log(1.0 - SECOND_TURN_SHARE) if len(chat.turns) == 1 else 0.0
    return Document(render_chat(chat), math.log(CHAT_SHARE) + chat_log_prob(chat) - unseen, "chat")


def sample_document(rng: random.Random) -> Document:
    """A document of the training distribution: a chat with probability ``CHAT_SHARE``, else a bare story."""
    if rng.random() < CHAT_SHARE:
        return chat_document(sample_chat(rng))
    return story_document(sample_story(rng))
