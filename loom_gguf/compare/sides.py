"""The two sides of a comparison: a model to run, or states that are there already."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..capture import Capture
from ..errors import (
    CaptureUnsupportedError,
    DifferentModelsError,
    DifferentTokensError,
    LoomError,
    TokenError,
    UnknownNodeError,
)
from ..gguf_file import read_gguf
from ..hugging_face_states import LOGITS, is_hugging_face
from ..library import resolve
from ..memory import available_bytes
from ..model import Model
from ..states import States
from ..states_file import SUFFIXES, load_states, model_facts, read_metadata, save_states
from .result import SideFacts

Side: TypeAlias = "ModelSide | StatesSide"
Given: TypeAlias = "Model | States | str | os.PathLike[str]"


@dataclass
class StatesSide:
    """States of one text, as a caller or a file has them."""

    states: States
    facts: SideFacts
    texts: Mapping[int, str] = field(default_factory=dict)  # of its tokens, where the file tells them


@dataclass
class ModelSide:
    """A model, open or to be opened inside a with block."""

    given: Model | Path
    options: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    _capture: Capture | None = None

    @property
    def path(self) -> Path:
        """The model's file."""
        return self.given.path if isinstance(self.given, Model) else self.given

    def facts(self, model: Model) -> SideFacts:
        """What a report says of it."""
        return SideFacts(model.path.name, {**model_facts(model), **self.options, "precision": model.precision})

    @contextlib.contextmanager
    def opened(self) -> Iterator[Model]:
        """The model; closed at the end where it was opened here."""
        if isinstance(self.given, Model):
            yield self.given
        else:
            with Model(self.given, **self.options) as model:
                yield model

    def capture(self, model: Model, logits: bool) -> Capture:
        """All hidden states that this model has, and its logits."""
        if self._capture is None:
            wanted = {"hidden states": Capture.all_layers(embedding=True, final=True)}
            if logits:
                wanted["logits"] = Capture.names([LOGITS])
            if _refusal(model, Capture.all_layers(embedding=True, final=True)) is not None:
                wanted["embedding"] = Capture.layers([], embedding=True)
                wanted["layers"] = Capture.all_layers()
                wanted["final"] = Capture.layers([], final=True)
                del wanted["hidden states"]
            refusals = {name: error for name, part in wanted.items() if (error := _refusal(model, part)) is not None}
            if wanted.keys() - refusals.keys() <= {"logits"}:
                raise next(iter(refusals.values()))
            for name, error in refusals.items():
                encoder = name == "logits" and model.encoder
                self.notes.append(f"{model.path.name}: no {name}: {'an encoder has none' if encoder else error}")
            self._capture = Capture()
            for name in wanted.keys() - refusals.keys():
                self._capture |= wanted[name]
        return self._capture


def _refusal(model: Model, part: Capture) -> LoomError | None:
    """Why a model does not have these nodes; None where it has."""
    try:
        model.forward([0], part)
    except (CaptureUnsupportedError, UnknownNodeError) as error:
        return error
    return None


def side_of(given: Given, options: Mapping[str, Any] | None, name: str) -> Side:
    """What was given as a side. Raises LoomErrors for a file that is missing or no file of states.

    name: "a" or "b", for messages.
    """
    if isinstance(given, (Model, States)):
        if options:
            raise TypeError(f"{name}_options open a model file, but {name} is a {type(given).__name__}")
        return ModelSide(given, {}) if isinstance(given, Model) else StatesSide(given, SideFacts("states", {}))
    path = Path(given).expanduser()
    if path.suffix in SUFFIXES:
        states, metadata = load_states(path), read_metadata(path)
        texts = metadata.get("token_texts")
        if not (
            isinstance(texts, list) and len(texts) == len(states.tokens) and all(isinstance(t, str) for t in texts)
        ):
            texts = None
        about = ("model", "architecture", "quantization", "precision")
        facts = {key: value for key in about if isinstance(value := metadata.get(key), str)}
        if is_hugging_face(states):
            facts["written by"] = "PyTorch"
        return StatesSide(
            states,
            SideFacts(path.name, facts),
            dict(zip(states.tokens, texts, strict=True)) if texts is not None else {},
        )
    return ModelSide(resolve(given), dict(options or {}))


def both_fit(a: Path, b: Path) -> bool:
    """Whether the weights of two files can be in memory at once; True where the system does not say."""
    available = available_bytes()
    return available is None or a.stat().st_size + b.stat().st_size < 0.8 * available


@contextlib.contextmanager
def kept_on_disk(states: Iterator[States]) -> Iterator[list[Path]]:
    """Files that hold these states, in a temporary folder ($TMPDIR) which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="loom_gguf-") as folder:
        paths = []
        for number, part in enumerate(states):
            paths.append(Path(folder) / f"{number}.safetensors")
            save_states(part, paths[-1])
        yield paths


def check_alike(a: Path, b: Path, *, by_text: bool) -> None:
    """Compare what two model files say of themselves, before they are loaded.

    by_text: A's token ids of a text go through both, so the ids must mean the same. Raises DifferentModelsError or
    DifferentTokensError.
    """
    files = read_gguf(a), read_gguf(b)
    for what, key in (("layers", "block_count"), ("values in a hidden state", "embedding_length")):
        ours, theirs = (file.hparam(key) for file in files)
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
            raise DifferentModelsError(
                f"{a.name} has {ours} {what}, {b.name} has {theirs}: only files of the same model can be compared"
            )
    texts = [file.metadata.get("tokenizer.ggml.tokens") for file in files]
    if by_text and texts[0] is not None:
        _check_same_vocabulary(a.name, b.name, texts[0], texts[1])


def _check_same_vocabulary(a: str, b: str, ours: Sequence[str], theirs: Sequence[str] | None) -> None:
    way_out = "so a text cannot be the same tokens to both. Give token ids instead of text"
    if theirs is None:
        raise DifferentTokensError(f"{b} carries no vocabulary to compare with that of {a}, {way_out}")
    head = f"{a} and {b} have different vocabularies"
    if len(ours) != len(theirs):
        raise DifferentTokensError(f"{head} ({len(ours):,} and {len(theirs):,} tokens), {way_out}")
    for token, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        if x != y:
            raise DifferentTokensError(f"{head} (token {token} is {x!r} and {y!r}), {way_out}")


def check_same_texts(model: Model, texts: Mapping[int, str], file: str) -> None:
    """Raise DifferentTokensError where a file's tokens have other texts in the model; texts: by id, of the file."""
    for token, text in texts.items():
        try:
            ours = model.token_text(token)
        except TokenError:
            raise DifferentTokensError(
                f"{file} has the token {token}, {model.path.name} only {model.n_vocab:,} tokens: they do not belong "
                f"to one vocabulary"
            ) from None
        if ours and ours != text:
            raise DifferentTokensError(
                f"token {token} is {text!r} in {file} and {ours!r} in {model.path.name}: they do not belong to one "
                f"vocabulary"
            )
