"""Names of models: `[host/][namespace/]model[:tag]`, as Ollama writes them.

The grammar is that of Ollama's types/model/name.go: each part begins with a letter, digit or underscore and goes on
with those, hyphens and dots (no dots in a namespace; colons in a host only), all in ASCII; a host has at most 350
characters, the others 80. So no part is `..`, holds a slash or a NUL, or looks like another one in Unicode.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ..errors import ModelNameError

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
HUGGING_FACE = "hf.co"
LATEST = f":{TAG}"

_HUGGING_FACE_TOO = "huggingface.co"
_SCHEMES = ("https://", "http://")
_PARTS = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}
_LONGEST = 1000  # characters; beyond it nothing is looked at
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # str.lower() makes a k of the Kelvin sign


@dataclass(frozen=True)
class Name:
    """A whole name; every part is valid."""

    host: str
    namespace: str
    model: str
    tag: str
    scheme: str = field(default="https", compare=False)  # of the registry

    @property
    def short(self) -> str:
        """Without the parts that are the defaults: "llama3.2", "hf.co/org/repo:Q4_K_M"."""
        host, namespace = lower(self.host) == HOST, lower(self.namespace) == NAMESPACE
        before = "" if host and namespace else f"{self.namespace}/" if host else f"{self.host}/{self.namespace}/"
        return bare(f"{before}{self.model}:{self.tag}")

    @property
    def path(self) -> PurePosixPath:
        """Where its manifest lies below `manifests`."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        """All parts: "registry.ollama.ai/library/llama3.2:latest"."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"


def parse_name(text: str) -> Name:
    """The name that a text stands for, with Ollama's defaults for what it leaves out. ModelNameError if it is none."""
    if len(text) > _LONGEST:
        raise ModelNameError(f"a model's name of {len(text):,} characters: it has [host/][namespace/]model[:tag]")
    scheme = next((scheme for scheme in _SCHEMES if lower(text).startswith(scheme)), "")
    rest = text[len(scheme) :]
    tag = TAG
    if rest.rfind(":") > rest.rfind("/"):
        rest, _, tag = rest.rpartition(":")
    before, _, model = rest.rpartition("/")
    host, _, namespace = before.rpartition("/")
    slashes = rest.count("/")
    return _checked(
        text, host if slashes > 1 else HOST, namespace if slashes else NAMESPACE, model, tag, scheme[:-3] or "https"
    )


def name_of_parts(parts: tuple[str, ...]) -> Name:
    """The name of a manifest by its path below `manifests`. ModelNameError where it is none."""
    if len(parts) != 4:
        raise ModelNameError(f"{'/'.join(parts):.200}: a manifest lies at host/namespace/model/tag")
    return _checked("/".join(parts), *parts, "https")


def bare(name: str) -> str:
    """A name without ":latest"."""
    return name[: -len(LATEST)] if lower(name[-len(LATEST) :]) == LATEST else name


def lower(text: str) -> str:
    """ASCII letters in lower case, and nothing else changed."""
    return text.translate(_LOWER)


def key(name: str) -> str:
    """What two names have in common if they are the same to a user."""
    made = lower(bare(name))
    return made.replace(_HUGGING_FACE_TOO, HUGGING_FACE, 1) if made.startswith(f"{_HUGGING_FACE_TOO}/") else made


def keys(name: str) -> frozenset[str]:
    """All keys that a user may mean by a name; none where it cannot be one."""
    if not name or len(name) > _LONGEST:
        return frozenset()
    try:
        return frozenset({key(name), key(parse_name(name).short)})
    except ModelNameError:  # names of files follow no grammar
        return frozenset({key(name)})


def _checked(text: str, host: str, namespace: str, model: str, tag: str, scheme: str) -> Name:
    for (kind, pattern), part in zip(_PARTS.items(), (host, namespace, model, tag), strict=True):
        if not pattern.fullmatch(part):
            raise ModelNameError(
                f"{text!r:.200} is no model's name: its {kind} {part!r:.100} is not allowed. A name is "
                f"[host/][namespace/]model[:tag] of letters, digits, '_', '-' and '.'"
            )
    return Name(host, namespace, model, tag, scheme)
