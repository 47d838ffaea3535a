"""From the text of a flag, an environment variable or a scalar in a file to a value; ValueError says what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from ..context import Precision

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_FOR_EVER = -1.0
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
TRANSPORTS = ("http", "unix", "both")
SPLIT_MODES = ("layer", "row", "none")


def duration(text: str) -> float:
    """Seconds of a number or of a duration as Go writes it ("5m", "1h30m")."""
    try:
        return _finite(float(text))
    except ValueError:
        sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
        if not re.fullmatch(f"({_PART})+", rest):
            raise ValueError(f"{text!r:.60} is no duration: give seconds, or e.g. 90s, 5m, 1h30m") from None
        return _finite(sign * sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, rest)))


def minutes(text: str) -> float:
    """Minutes to seconds; 0 is for ever, as The Loom has it."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e10:
        raise ValueError(f"{text!r:.60} is no number of minutes; 0 is for ever")
    return value * 60 or _FOR_EVER


def port(text: str) -> int:
    """A TCP port; 0 for any free one."""
    return _between(text, 0, 65535)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _between(text, 1, 2**31 - 1)


def index(text: str) -> int:
    """A whole number of at least 0."""
    return _between(text, 0, 2**31 - 1)


def boolean(text: str) -> bool:
    """True or false, as YAML and people write them."""
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"{text!r:.60} is neither true nor false")
    return text.lower() in _TRUE


def words(text: str) -> tuple[str, ...]:
    """A list with commas between its items."""
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def origins(text: str) -> tuple[str, ...]:
    """Origins with commas between them."""
    return tuple(part.rstrip("/") for part in words(text))


def layers(text: str) -> tuple[int, ...] | None:
    """Indices as Hugging Face counts hidden states, with commas between them; "all" is None."""
    if text.strip().lower() == "all":
        return None
    try:
        found = tuple(int(part) for part in words(text))
    except ValueError:
        raise ValueError(f'{text!r:.60} is neither "all" nor a list of whole numbers') from None
    if not found:
        raise ValueError('no layer is named: give "all", or whole numbers such as -1')
    return found


def proportions(text: str) -> tuple[float, ...]:
    """Parts of a whole, with commas or slashes between them."""
    try:
        found = tuple(float(part) for part in words(text.replace("/", ",")))
    except ValueError:
        found = ()
    if not found or not all(0 <= part < 1e9 for part in found) or not sum(found):
        raise ValueError(f"{text!r:.60} are no proportions: give e.g. 3,1 for three quarters and one quarter")
    return found


def path(text: str) -> Path:
    """A path; ~ is the home folder."""
    return Path(text).expanduser()


def text(text: str) -> str:
    """As it is."""
    return text


def secret(text: str) -> str:
    """A key; an empty one would let everybody in."""
    if not text.strip():
        raise ValueError("the key is empty: give one, or leave it out where everybody may ask")
    return text


def device(text: str) -> str:
    """A device by name; The Loom has the number of a GPU there."""
    return f"gpu:{text}" if text.isascii() and text.isdigit() else text


def precision(text: str) -> str:
    """How exactly to compute."""
    return _one_of(text, get_args(Precision))


def transport(text: str) -> str:
    """What to listen on."""
    return _one_of(text, TRANSPORTS)


def split_mode(text: str) -> str:
    """How llama.cpp splits a model over several GPUs."""
    return _one_of(text, SPLIT_MODES)


def log_level(text: str) -> str:
    """A level of Python's logging."""
    return _one_of(text.lower(), _LOG_LEVELS)


def _one_of(text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        raise ValueError(f"{text!r:.60} is none of {', '.join(known)}")
    return text


def _between(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise ValueError(f"{text!r:.60} is no whole number from {low} to {high}")
    return int(text)


def _finite(seconds: float) -> float:
    if not abs(seconds) < 1e12:  # also NaN
        raise ValueError("a duration must be shorter than 30,000 years")
    return seconds
