"""The server's settings: flags, else environment, else defaults. The only place that reads the environment for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from .context import Precision
from .errors import LoomError

PREFIX = "LOOM_"  # of the environment variables: LOOM_PORT sets `port`
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)"


@dataclass(frozen=True)
class ServerSettings:
    """How the server runs."""

    host: str = "127.0.0.1"
    port: int = 11434  # 0: any free one
    models_dir: Path | None = None  # whose .gguf files are offered by name
    allow_paths: bool = False  # whether requests may name files by their paths
    parallel: int = 4  # sequences of one model at once
    max_models: int = 3  # loaded at once
    keep_alive: float = 300.0  # seconds that an idle model stays; negative: for ever
    ctx: int = 4096  # tokens of one sequence, where a request does not say; at most the model's own length
    precision: Precision = "fast"
    origins: tuple[str, ...] = ()  # web pages' origins that may ask, besides those of this machine; "*": all
    api_key: str | None = None  # to be sent as `Authorization: Bearer ...`
    queue: int = 64  # requests that may wait for one model
    max_body: int = 64 * 2**20  # bytes of a request
    max_answer: int = 2**30  # bytes of captured numbers in one answer without streaming

    @classmethod
    def read(cls, environ: Mapping[str, str], flags: Mapping[str, Any]) -> ServerSettings:
        """Settings from `flags` (those that are None were not given), then from the environment."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            text = environ.get(PREFIX + field.name.upper())
            given = flags.get(field.name)
            if given is not None:
                values[field.name] = given
            elif text:
                try:
                    values[field.name] = _PARSERS[field.name](text)
                except ValueError as error:
                    raise LoomError(f"the environment variable {PREFIX}{field.name.upper()}: {error}") from None
        return cls(**values)


def duration(text: str) -> float:
    """Seconds of a number or of a duration as Go writes it ("5m", "1h30m"); ValueError for anything else."""
    try:
        return _finite(float(text))
    except ValueError:
        sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
        if not re.fullmatch(f"({_PART})+", rest):
            raise ValueError(f"{text!r:.60} is no duration: give seconds, or e.g. 90s, 5m, 1h30m") from None
        return _finite(sign * sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, rest)))


def port(text: str) -> int:
    """A TCP port; 0 for any free one."""
    return _between(text, 0, 65535)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _between(text, 1, 2**31 - 1)


def switch(text: str) -> bool:
    """Yes or no."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{text!r:.60} is neither 1 nor 0")


def origins(text: str) -> tuple[str, ...]:
    """Origins with commas between them."""
    return tuple(part for part in (part.strip().rstrip("/") for part in text.split(",")) if part)


def _precision(text: str) -> str:
    if text not in get_args(Precision):
        raise ValueError(f"{text!r} is none of {', '.join(get_args(Precision))}")
    return text


def _between(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise ValueError(f"{text!r:.60} is no whole number from {low} to {high}")
    return int(text)


def _finite(seconds: float) -> float:
    if not abs(seconds) < 1e12:  # also NaN
        raise ValueError("a duration must be shorter than 30,000 years")
    return seconds


_PARSERS: Mapping[str, Any] = {
    "host": str,
    "port": port,
    "models_dir": Path,
    "allow_paths": switch,
    "parallel": positive,
    "max_models": positive,
    "keep_alive": duration,
    "ctx": positive,
    "precision": _precision,
    "origins": origins,
    "api_key": str,
    "queue": positive,
    "max_body": positive,
    "max_answer": positive,
}
