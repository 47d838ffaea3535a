"""Words and sentence frames of the demo world, the toy language that the built-in demo model speaks.

A frame is a sentence with holes:

``{S}``        the subject: a pronoun, ``the fox`` / ``the foxes``, or the name(s)
``{intro}``    ``a fox named Mila`` / ``two foxes named Mila and Tom``
``{place}``    ``in the harbour``, ...
``{newobj}``   ``a red kite`` (first mention); ``{obj}`` is ``kite`` (later mention)
``{newcomp}``  ``an old turtle`` (first mention); ``{comp}`` is ``turtle``
``{thing}``    something that is found in the story's place and in no other place
``{manner}``   how it is done; each manner belongs to one mood
``{utt}``      what is said; each utterance belongs to one mood
``{poss}`` ``{them}``  pronouns that agree with the subject of the story
``[walk]``     a verb that agrees with the story's characters; ``[walk:1]`` always has a singular subject,
               ``[walk:2]`` always a plural one; every verb carries the tense
``<head>``     a noun that is plural when the characters are (``her head`` / ``their heads``)

This module holds data only. The sampler is ``demo_world.py`` and the parser ``demo_world_parser.py``: they
share these tables and no code path, so that each can be checked against the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations

NUMBERS = {"singular": 0.6, "plural": 0.4}
TENSES = {"past": 0.6, "present": 0.4}
MOODS = ("happy", "sad", "angry", "calm", "scared")
WEATHERS = ("rain", "sun", "fog", "snow", "wind")

#: character -> its plural
WHO = {
    "fox": "foxes", "bear": "bears", "rabbit": "rabbits", "owl": "owls", "cat": "cats", "dog": "dogs",
    "mouse": "mice", "frog": "frogs", "goat": "goats", "duck": "ducks", "wolf": "wolves", "hen": "hens",
    "otter": "otters", "badger": "badgers",
}  # fmt: skip

#: place -> (how it is said, the things that are found there)
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "harbour": ("in the harbour", ("boats", "fishing nets", "lighthouse")),
    "forest": ("in the forest", ("oak trees", "ferns", "mossy stump")),
    "mill": ("at the mill", ("water wheel", "flour sacks", "millstone")),
    "market": ("at the market", ("fruit stalls", "fish baskets", "cheese cart")),
    "garden": ("in the garden", ("rose beds", "pond", "apple tree")),
    "castle": ("in the castle", ("tall tower", "iron gate", "throne")),
    "station": ("at the station", ("train", "ticket office", "clock")),
    "library": ("in the library", ("bookshelves", "reading lamp", "wooden ladder")),
    "beach": ("on the beach", ("sand dunes", "shells", "tide pool")),
    "mountain": ("on the mountain", ("cliff", "cave", "snowy peak")),
}

#: name -> gender of its pronoun
NAMES = {
    "Mila": "f", "Nora": "f", "Ida": "f", "Zoe": "f", "Ruby": "f", "Ella": "f",
    "Tom": "m", "Otto": "m", "Finn": "m", "Max": "m", "Leo": "m", "Hugo": "m",
}  # fmt: skip
NAME_PAIRS = tuple(f"{first} and {second}" for first, second in permutations(NAMES, 2))

OBJECTS = ("lantern", "kite", "drum", "book", "ring", "coin", "map", "bell", "cup", "key")
OBJECT_ADJECTIVES = ("red", "blue", "green", "old", "small", "golden")
COMPANIONS = ("turtle", "sparrow", "snail", "beetle", "squirrel", "hedgehog")
COMPANION_ADJECTIVES = ("old", "young", "shy")

#: gender -> (subject, possessive, object) pronoun; "p" is the plural
PRONOUNS = {"f": ("she", "her", "her"), "m": ("he", "his", "him"), "p": ("they", "their", "them")}
#: how {S} is said -> probability
MENTIONS = {"pronoun": 0.5, "noun": 0.25, "name": 0.25}

MANNERS = {
    "happy": ("merrily", "cheerfully", "with a bright grin"),
    "sad": ("wearily", "gloomily", "with drooping shoulders"),
    "angry": ("furiously", "crossly", "with a dark scowl"),
    "calm": ("gently", "peacefully", "without a care"),
    "scared": ("nervously", "timidly", "on trembling legs"),
}

UTTERANCES = {
    "happy": ("What a wonderful day!", "This is the best thing ever!", "Let us sing and dance!",
              "I could hug the whole world,", "Hooray, we did it!"),
    "sad": ("Nothing will be the same again,", "I miss the old days so much,", "Why did it have to end?",
            "It hurts to say goodbye,", "There is no comfort left,"),
    "angry": ("This is an outrage!", "How dare they do this!", "I have had enough of it!",
              "Somebody will pay for this!", "Stay out of my way!"),
    "calm": ("There is no need to hurry,", "Listen to the quiet air,", "All is well,",
             "We have plenty of time,", "Let the day drift by,"),
    "scared": ("Did you hear that noise?", "Something is watching us,", "Please do not leave me here!",
               "We must get away from here!", "I dare not look,"),
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One sentence with holes; ``mood`` and ``weather`` are None where the frame fits any."""

    role: str
    text: str
    mood: str | None = None
    weather: str | None = None


#: the order of the sentences; a story has the three required ones and 1 to 4 of the others
ROLES = ("opening", "setting", "action", "event", "reaction", "companion", "speech", "ending")
REQUIRED = frozenset({"opening", "event", "ending"})

_NEUTRAL = {
    "opening": ("There [be] {intro} {place}.", "{intro} [live] {place}.", "{intro} [spend] a day {place}.",
                "One morning {intro} [arrive] {place}.", "{intro} [wake] up early {place}."),
    "action": ("{S} [walk] {manner} past the {thing}.", "{S} [look] {manner} at the {thing}.",
               "{S} [wait] {manner} near the {thing}.", "{S} [wander] {manner} around the {thing}."),
    "companion": ("{newcomp} [come:1] by.", "{newcomp} [join:1] {them}.", "{S} [meet] {newcomp}.",
                  "{newcomp} [sit:1] nearby and [listen:1].", "{newcomp} [look:1] at the {obj}."),
    "self_speech": ('"{utt}" {S} [say].', '"{utt}" {S} [say] after a while.', '"{utt}" {S} [repeat] twice.'),
    "companion_speech": ('"{utt}" the {comp} [say:1].', '"{utt}" the {comp} [tell:1] {them}.',
                         '"{utt}" [reply:1] the {comp}.'),
}  # fmt: skip

_SETTING = {
    "rain": ("Rain [fall:1] from a grey sky.", "It [be:1] a wet day."),
    "sun": ("The sun [shine:1] over the hills.", "It [be:1] a bright day."),
    "fog": ("Thick fog [cover:1] the road.", "It [be:1] a misty day."),
    "snow": ("Snow [lie:1] on the ground.", "It [be:1] a white winter day."),
    "wind": ("A strong wind [blow:1] from the north.", "It [be:1] a stormy day."),
}

_MOODED = {
    ("event", "happy"): ("{S} [find] {newobj} and [laugh] out loud.", "A friend [give:1] {them} {newobj}.",
                         "{S} [win] {newobj} in a merry game.", "{S} [dance] around {newobj}.",
                         "{S} [get] {newobj} for a birthday."),
    ("event", "sad"): ("{S} [lose] {newobj} and [sigh].", "{S} [break] {newobj} and [weep].",
                       "{newobj} [sink:1] in the deep water.", "{S} [inherit] {newobj} from a lost friend.",
                       "{S} [say] goodbye to {newobj}."),
    ("event", "angry"): ("A thief [steal:1] {newobj} from {them}.", "{S} [kick] {newobj} against the wall.",
                         "{S} [throw] {newobj} on the ground.", "{S} [quarrel] loudly over {newobj}.",
                         "A rude neighbour [ruin:1] {newobj}."),
    ("event", "calm"): ("{S} [polish] {newobj} with patience.", "{S} [sit] down beside {newobj}.",
                        "{S} [paint] {newobj} in the soft light.", "{newobj} [rest:1] in {poss} <lap>.",
                        "{S} [watch] {newobj} for a quiet hour."),
    ("event", "scared"): ("{S} [see] {newobj} move by itself.", "{S} [drop] {newobj} and [tremble].",
                          "A shadow [fall:1] over {newobj}.", "{S} [hear] {newobj} rattle in the dark.",
                          "{S} [hide] behind {newobj}."),
    ("reaction", "happy"): ("{S} [smile] from ear to ear.", "{S} [jump] up and down with joy.",
                            "{poss} eyes [shine:2] with delight.", "{S} [clap] and [sing] a song.",
                            "{S} [giggle] again and again."),
    ("reaction", "sad"): ("{S} [hang] {poss} <head>.", "A tear [roll:1] down {poss} <cheek>.",
                          "{S} [cry] for a while.", "{S} [feel] alone and empty.", "{poss} <heart> [ache]."),
    ("reaction", "angry"): ("{S} [stamp] {poss} feet.", "{S} [growl] and [clench] {poss} teeth.",
                            "{poss} <face> [turn] red.", "{S} [shout] at the wall.",
                            "{S} [slam] a door with a bang."),
    ("reaction", "calm"): ("{S} [breathe] slowly and deeply.", "{S} [close] {poss} eyes and [rest].",
                           "{poss} <mind> [grow] still.", "{S} [lean] back and [yawn].",
                           "{S} [stretch] {poss} legs at ease."),
    ("reaction", "scared"): ("{S} [shake] from head to toe.", "{poss} knees [knock:2] together.",
                             "{S} [freeze] and [stare] into the dark.",
                             "Cold sweat [run:1] down {poss} <back>.",
                             "{S} [scream] for help."),
    ("ending", "happy"): ("In the end {S} [skip] home with the {obj}.", "{S} [share] the {obj} and [cheer].",
                          "At night {S} [fall] asleep with a smile.",
                          "That evening {S} [celebrate] with cake and music.",
                          "{S} [wave] the {obj} in triumph."),
    ("ending", "sad"): ("In the end {S} [walk] home in tears.", "{S} [leave] the {obj} behind and [grieve].",
                        "At night {S} [sob] into {poss} <pillow>.", "That evening {S} [mourn] the {obj}.",
                        "{S} [look] at the {obj} one last time."),
    ("ending", "angry"): ("In the end {S} [storm] off with the {obj}.", "{S} [smash] the {obj} and [curse].",
                          "At night {S} [plot] revenge.", "That evening {S} [rage] about the {obj}.",
                          "{S} [march] away with clenched fists."),
    ("ending", "calm"): ("In the end {S} [drift] off to sleep.",
                         "{S} [place] the {obj} on a shelf and [relax].",
                         "At night {S} [gaze] at the peaceful stars.",
                         "That evening {S} [sip] warm tea beside the {obj}.",
                         "{S} [stroll] home at an easy pace."),
    ("ending", "scared"): ("In the end {S} [flee] without the {obj}.",
                           "{S} [lock] the {obj} away and [panic].",
                           "At night {S} [lie] awake in fear.",
                           "That evening {S} [creep] home past dark windows.",
                           "{S} [cling] to the {obj} in terror."),
}  # fmt: skip

FRAMES: tuple[Frame, ...] = (
    *(Frame(role, text) for role, texts in _NEUTRAL.items() for text in texts),
    *(Frame("setting", text, weather=weather) for weather, texts in _SETTING.items() for text in texts),
    *(Frame(role, text, mood=mood) for (role, mood), texts in _MOODED.items() for text in texts),
)

_IRREGULAR_PAST = {
    "spend": "spent", "wake": "woke", "come": "came", "meet": "met", "sit": "sat", "say": "said",
    "tell": "told", "fall": "fell", "shine": "shone", "lie": "lay", "blow": "blew", "find": "found",
    "give": "gave", "win": "won", "get": "got", "lose": "lost", "break": "broke", "weep": "wept",
    "sink": "sank", "steal": "stole", "throw": "threw", "see": "saw", "hear": "heard", "hide": "hid",
    "sing": "sang", "hang": "hung", "feel": "felt", "grow": "grew", "shake": "shook", "freeze": "froze",
    "run": "ran", "leave": "left", "flee": "fled", "creep": "crept", "cling": "clung", "panic": "panicked",
    "clap": "clapped", "slam": "slammed", "skip": "skipped", "plot": "plotted", "sip": "sipped",
    "drop": "dropped", "sob": "sobbed", "quarrel": "quarrelled",
}  # fmt: skip


def verb_form(base: str, tense: str, number: str) -> str:
    """The form of a verb, e.g. ``verb_form("cry", "present", "singular") == "cries"``."""
    singular = number == "singular"
    if base == "be":
        return {"present": ("are", "is"), "past": ("were", "was")}[tense][singular]
    consonant_y = base.endswith("y") and base[-2] not in "aeiou"
    if tense == "past":
        if base in _IRREGULAR_PAST:
            return _IRREGULAR_PAST[base]
        return base[:-1] + "ied" if consonant_y else base + ("d" if base.endswith("e") else "ed")
    if not singular:
        return base
    if consonant_y:
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "z", "ch", "sh")) else "s")


def with_article(phrase: str) -> str:
    """``phrase`` behind ``a`` or ``an``."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


#: a frame split into literal text and holes
HOLE = re.compile(r"\{(?P<slot>\w+)\}|\[(?P<verb>\w+)(?::(?P<fixed>[12]))?\]|<(?P<noun>\w+)>")
