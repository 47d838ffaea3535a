"""Models by the names that The Loom's clients use: in paths, and together with a quantization."""

from __future__ import annotations

import re

from ...errors import ModelNotFoundError
from ...library.loose import agreed_quantization
from ...library.names import LATEST
from ..errors import RequestError
from ..models import Entry, Models, file_of

UNQUANTIZED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # and what The Loom calls these types

# Where a name ends with a quantization: `-Q4_K_M`, `.Q8_0`, `:8b-instruct-q4_0`, `-IQ2_XXS`, `-f16`.
_QUANTIZATION = re.compile(r"[-._:]((?:I?Q\d|TQ\d|MXFP\d)(?:_[0-9A-Z]+)*|BF16|F16|F32|FP16|FP32)$", re.IGNORECASE)
_ALIASES = {"FP16": "F16", "FP32": "F32"}
_OF_PYTORCH = ("gptq", "awq")
_USUAL = ("Q4_K_M", "Q4_K", "Q4_K_S")  # of several files with 4 bits, those that most people take


def entry_of(models: Models, model_id: str) -> Entry:
    """The model that a path names: as it is written, else with `--` for `/`; ModelNotFoundError where there is none."""
    try:
        return models.find(model_id)
    except ModelNotFoundError:
        return models.find(model_id.replace("--", "/"))


def pick(models: Models, name: str, quantization: str | None) -> Entry:
    """A model's file of this quantization; without one, the file that has the name."""
    if not quantization:
        return models.find(name)
    wanted = quantization.upper()
    if quantization.lower() in _OF_PYTORCH:
        raise RequestError(
            400,
            f"quantization: {quantization.lower()} belongs to PyTorch models; a GGUF file has a quantization of its "
            f"own. Give 4bit, 8bit, or a name such as Q4_K_M",
        )
    family = _split(name)[0]
    entries = [entry for entry in models.entries() if _split(entry.name)[0] == family]
    if not entries:
        return models.find(name)  # which says that there is none
    said = {entry.name: _quantizations(models, entry) for entry in entries}
    fitting = [entry for entry in entries if any(_is_meant(wanted, each) for each in said[entry.name])]
    if not fitting:
        there = ", ".join(f"{name} ({told[0]})" for name, told in said.items())
        raise RequestError(400, f"quantization: there is no {quantization!r:.40} of this model; there are {there}")

    def order(entry: Entry) -> tuple[bool, bool, int, str]:
        """What the name says counts more than what is in the file: a mixture may be mostly of another type."""
        first = said[entry.name][0]
        return not _is_meant(wanted, first), _bare(entry.name) != _bare(name), _rank(first), entry.name

    return min(fitting, key=order)


def _bare(name: str) -> str:
    return name.lower().removesuffix(LATEST)


def _split(name: str) -> tuple[str, str | None]:
    """A name without its quantization, in lower case, and that."""
    name = name[: -len(LATEST)] if name.lower().endswith(LATEST) else name
    found = _QUANTIZATION.search(name)
    if found is None:
        return name.lower(), None
    quantization = found[1].upper()
    return name[: found.start()].lower(), _ALIASES.get(quantization, quantization)


def _quantizations(models: Models, entry: Entry) -> list[str]:
    """What its name and its header say: Q4_K_M is a mixture, most of it Q4_K."""
    in_header = models.facts(file_of(entry)).quantization
    said = agreed_quantization(_split(entry.name)[1], in_header)
    return [in_header] if said in (None, in_header) else [str(said), in_header]


def _is_meant(wanted: str, quantization: str) -> bool:
    if wanted == "4BIT":
        return quantization.startswith("Q4_")
    if wanted == "NONE":
        return quantization in UNQUANTIZED
    return quantization == ("Q8_0" if wanted == "8BIT" else _ALIASES.get(wanted, wanted))


def _rank(quantization: str) -> int:
    return _USUAL.index(quantization) if quantization in _USUAL else len(_USUAL)
