"""The demo world's grammar and parser (no model and no torch needed)."""

from __future__ import annotations

import math
import random
import re
import sys
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import demo_world as world
import demo_world_chat as chat
import demo_world_grammar as grammar
from demo_world_parser import LOCAL, sentence_analyses

COUNT = 400


@pytest.fixture(scope="module")
def stories() -> list[world.Story]:
    rng = random.Random(7)
    return [world.sample_story(rng) for _ in range(COUNT)]


def test_every_story_parses_back_to_itself(stories):
    """The parser reads attributes and derivation from the text alone, and finds what the sampler recorded."""
    for story in stories:
        assert world.parse_story(story.text) == story


def test_every_sentence_has_one_reading_that_agrees_with_its_story(stories):
    for story in stories:
        sentences = world.split_sentences(story.text)
        assert 4 <= len(sentences) <= 7
        for sentence, choices in zip(sentences, story.sentences, strict=True):
            (reading,) = sentence_analyses(sentence)
            facts = story.attributes() | dict(choices)
            assert all(facts[key] == value for key, value in reading.items())


def test_recorded_log_prob_is_the_scored_one():
    """The log-probability that the sampler adds up while it draws is the one that is read from the text."""
    rng = random.Random(8)
    for _ in range(COUNT):
        story, log_prob = world.sample_with_log_prob(rng)
        parsed = world.parse_story(story.text)
        assert parsed is not None
        assert world.story_log_prob(parsed) == pytest.approx(log_prob)


def test_fixed_attributes_are_kept_and_not_paid_for():
    rng = random.Random(9)
    fixed = {"who": "owl", "place": "beach", "mood": "scared", "number": "plural", "tense": "present"}
    story, log_prob = world.sample_with_log_prob(rng, **fixed)
    assert {key: getattr(story, key) for key in fixed} == fixed
    assert world.story_log_prob(story, fixed=tuple(fixed)) == pytest.approx(log_prob)
    with pytest.raises(ValueError, match="cannot fix"):
        world.sample_story(rng, weather="rain")


def test_probabilities_of_frames_and_plans_sum_to_one():
    """Enumerates one sentence: for every role and mood the probabilities of all its texts add up to one."""
    assert len(set(world.PLANS)) == len(world.PLANS) == 30
    facts = {"who": "fox", "place": "mill", "number": "singular", "tense": "past", "name": "Ida"}
    facts |= {
        "gender": "f",
        "object": "cup",
        "object_adjective": "old",
        "companion": "snail",
        "companion_adjective": "shy",
    }
    roles = {frame.role for frame in grammar.FRAMES}
    for role in roles:
        for mood in grammar.MOODS:
            texts: dict[str, float] = defaultdict(float)
            frames = world._frames(role, mood, "rain")
            for frame in frames:
                holes = set(re.findall(r"\{(\w+)\}", grammar.FRAMES[frame].text))
                mentions = grammar.MENTIONS if "S" in holes else {"-": 1.0}
                things = grammar.PLACES["mill"][1] if "thing" in holes else ("-",)
                manners = grammar.MANNERS[mood] if "manner" in holes else ("-",)
                utterances = grammar.UTTERANCES[mood] if "utt" in holes else ("-",)
                ways = len(frames) * len(things) * len(manners) * len(utterances)
                for mention, thing, manner, utt in product(mentions, things, manners, utterances):
                    own = {"mention": mention, "thing": thing, "manner": manner, "utterance": utt}
                    text = world._realise(frame, facts | own)
                    assert text not in texts, "two derivations of one sentence"
                    texts[text] += mentions[mention] / ways
            assert sum(texts.values()) == pytest.approx(1.0)


def test_log_prob_matches_how_often_a_sentence_is_drawn():
    """Empirical frequency of the opening sentence against its probability, for one character and tense."""
    rng = random.Random(10)
    fixed = {"who": "cat", "place": "mill", "mood": "calm", "number": "singular", "tense": "past"}
    count = 6000
    drawn = Counter(world.split_sentences(world.sample_story(rng, **fixed).text)[0] for _ in range(count))
    ways = len(world._frames("opening", "calm", None)) * len(grammar.NAMES)
    assert len(drawn) == ways
    chi_squared = sum((seen - count / ways) ** 2 / (count / ways) for seen in drawn.values())
    assert chi_squared < ways + 5 * math.sqrt(2 * ways)


def test_mean_log_prob_matches_the_entropy_by_hand():
    """Entropy of the facts of a story, summed by hand, against sampled log-probabilities of those facts."""
    rng = random.Random(11)
    log_probs = []
    for _ in range(2000):
        chooser = world._Chooser(rng)
        world._draw_facts(chooser, {})
        log_probs.append(chooser.log_prob)
    binary = sum(-p * math.log(p) for table in (grammar.NUMBERS, grammar.TENSES) for p in table.values())
    name = 0.6 * math.log(12) + 0.4 * math.log(132)
    companion = sum("companion" in plan for plan in world.PLANS) / 30 * math.log(18)
    weather = sum("setting" in plan for plan in world.PLANS) / 30 * math.log(5)
    entropy = math.log(14 * 10 * 5 * 60 * 30) + binary + name + companion + weather
    assert -sum(log_probs) / len(log_probs) == pytest.approx(entropy, abs=0.15)


@pytest.mark.parametrize(
    ("sentence", "features"),
    [
        ("Two mice named Ida and Tom arrive at the mill.", None),
        ("One morning two mice named Ida and Tom arrive at the mill.", {"who": "mouse", "number": "plural"}),
        ("He hung his head.", {"mood": "sad", "tense": "past", "number": "singular", "gender": "m"}),
        ("They hang their heads.", {"mood": "sad", "tense": "present", "number": "plural"}),
        ('"All is well," says the turtle.', None),
        ('"All is well," replies the turtle.', {"mood": "calm", "tense": "present", "companion": "turtle"}),
        ("A shy snail comes by.", {"companion": "snail", "companion_adjective": "shy", "tense": "present"}),
        ("Snow lay on the ground.", {"weather": "snow", "tense": "past"}),
    ],
)
def test_parse_sentence_examples(sentence, features):
    parsed = world.parse_sentence(sentence)
    if features is None:
        assert parsed is None
    else:
        assert parsed is not None
        assert features.items() <= parsed.items()


@pytest.mark.parametrize(
    "sentence",
    [
        "She find a red kite and laughs out loud.",  # number of a verb
        "They finds a red kite and laugh out loud.",
        "She finds a red kite and laughed out loud.",  # two tenses
        "They hang their head.",  # number of a noun
        "She hangs his head.",  # pronouns disagree
        "Mila hangs his head.",  # name and pronoun disagree
        "The foxes hang her heads.",
        "A fox named Mila and Tom lives in the harbour.",
        "Two foxes named Mila and Mila live in the harbour.",
        "A owl named Mila lives in the harbour.",
        "A fox named Mila lives on the harbour.",
        "she hangs her head.",
        "She hangs her head",
        "She hangs her head. ",
        "A wet day.",
        "",
    ],
)
def test_wrong_sentences_are_rejected(sentence):
    assert world.parse_sentence(sentence) is None


STORY = (
    "A fox named Mila lives in the harbour. It is a wet day. Mila walks wearily past the boats. "
    "She loses a red kite and sighs. An old turtle comes by. "
    '"It hurts to say goodbye," the turtle says. At night she sobs into her pillow.'
)


def test_the_example_story_is_one():
    story = world.parse_story(STORY)
    assert story is not None
    assert story.attributes() == {
        "who": "fox", "place": "harbour", "mood": "sad", "number": "singular", "tense": "present",
        "name": "Mila", "gender": "f", "object": "kite", "object_adjective": "red", "companion": "turtle",
        "companion_adjective": "old", "weather": "rain",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("It is a wet day.", "It was a wet day."),  # tense of one sentence
        ("At night she sobs into her pillow.", "At night she gazes at the peaceful stars."),  # mood
        ("wearily", "merrily"),
        ("It hurts to say goodbye,", "All is well,"),
        ("past the boats", "past the throne"),  # a thing of another place
        ("the turtle says", "the snail says"),  # another companion
        ("An old turtle comes by. ", ""),  # a companion who was not introduced
        ("Mila walks", "Nora walks"),  # another name
        ("Mila walks", "The bear walks"),  # another character
        ("She loses", "He loses"),
        ("She loses a red kite and sighs.", "They lose a red kite and sigh."),  # number
        ("At night she sobs into her pillow.", "That evening she mourns the drum."),  # another object
        (" At night she sobs into her pillow.", ""),  # no ending
        ("It is a wet day. ", "It is a wet day. It is a wet day. "),
        ("It is a wet day. ", "It is a wet day.  "),
    ],
)
def test_inconsistent_stories_are_rejected(old, new):
    assert old in STORY
    assert world.parse_story(STORY.replace(old, new)) is None


def test_random_corruptions_are_rejected(stories):
    """One story's sentence in another story: rejected wherever an attribute that it shows differs."""
    rng = random.Random(12)
    rejected = 0
    for story in stories[:150]:
        other = rng.choice(stories)
        sentences, others = world.split_sentences(story.text), world.split_sentences(other.text)
        position = rng.randrange(len(sentences))
        foreign = others[min(position, len(others) - 1)]
        features = world.parse_sentence(foreign)
        facts = story.attributes()
        differs = any(facts[key] not in (value, None) for key, value in features.items() if key not in LOCAL)
        mixed = " ".join([*sentences[:position], foreign, *sentences[position + 1 :]])
        if differs and position != 0:
            # The event introduces the object: its own is no contradiction where nothing else names one.
            parsed = world.parse_story(mixed)
            if parsed is not None:
                assert features["role"] in {"event", "companion", "setting"}
                assert all(parsed.attributes()[key] == facts[key] for key in world.MAIN_ATTRIBUTES)
            else:
                rejected += 1
    assert rejected > 80


def test_a_mood_is_never_named(stories):
    words = {word for words in chat.MOOD_WORDS.values() for word in words} | set(grammar.MOODS)
    for story in stories:
        assert not words & set(re.findall(r"[a-z]+", story.text.lower()))


def test_request_probabilities_sum_to_one_and_requests_are_unambiguous():
    total, seen = 0.0, set()
    for phrase, wanted, log_prob in chat._request_phrases():
        assert phrase not in seen
        seen.add(phrase)
        total += math.exp(log_prob)
        assert set(wanted) <= {"who", "number", "place", "mood"}
    assert total == pytest.approx(1.0)


def test_chats_are_scored_and_their_stories_fit():
    rng = random.Random(13)
    for _ in range(200):
        sample = chat.sample_chat(rng)
        assert math.isfinite(chat.chat_log_prob(sample))
        for request, story in sample.turns:
            wanted, _ = chat.parse_request(request)
            assert all(getattr(story, key) == value for key, value in wanted.items())
    story = world.sample_story(rng, mood="sad", who="fox", place="harbour", number="singular")
    request = "Tell me a sad story about a fox in the harbour."
    assert math.isfinite(chat.chat_log_prob(chat.Chat(None, ((request, story),))))
    unmet = chat.Chat(None, (("Tell me a happy story about a fox in the harbour.", story),))
    assert chat.chat_log_prob(unmet) == -math.inf
    assert chat.parse_request("Tell me a sad story about an fox.") is None


def test_sampling_repeats_with_the_seed():
    first = [chat.sample_document(random.Random(f"{n}-x")) for n in range(20)]
    assert first == [chat.sample_document(random.Random(f"{n}-x")) for n in range(20)]
