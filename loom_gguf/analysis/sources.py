"""What can be analyzed: models that read texts, and files of captured states."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..capture import Capture
from ..errors import PromptError
from ..states import States
from ..states_file import SUFFIXES, load_states, model_facts, read_metadata, token_texts
from .measuring import Progress, TextStates, analyze_states
from .report import Analysis

if TYPE_CHECKING:
    from ..model import Model

_FACTS = ("model", "architecture", "quantization", "n_layer", "n_embd", "precision")


def analyze(
    source: Model | States | Iterable[States] | str | os.PathLike[str],
    prompts: str | Sequence[str] | None = None,
    *,
    name: str | None = None,
    skip_first: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """Measure every captured hidden state of a model or of captured states.

    source: an open model, or a model's path or name, which then reads each of `prompts` once with all layers, the
        embedding and the final state captured; or a .safetensors or .npz file of states; or states, of one or of
        several texts.
    name: what the analysis is called in reports; by default the model's or file's name.
    skip_first: leaves out the rows at this many first positions of each text.
    progress: called with (what is being done, steps done, steps in all).

    The rows of all texts are in memory together: tokens x states x n_embd x 4 bytes, and 8 more bytes for each value
    of one state.

    >>> from loom_gguf.analysis import analyze
    >>> analysis = analyze("demo", "One morning a fox")
    >>> [layer.d_eff_pca90 for layer in analysis.layers]
    """
    from ..model import Model

    texts = [prompts] if isinstance(prompts, str) else prompts
    if isinstance(source, (str, os.PathLike)) and not is_states_file(source):
        with Model(source) as model:
            return analyze(model, prompts, name=name or os.fspath(source), skip_first=skip_first, progress=progress)
    if isinstance(source, Model):
        facts: dict[str, Any] = {**model_facts(source), "precision": source.precision}
        read = _read(source, texts or (), progress)
        name = name or source.path.name
    elif texts is not None:
        raise PromptError("prompts are read by a model; captured states have their text already: leave the prompts out")
    elif isinstance(source, (str, os.PathLike)):
        text, facts = _file(Path(source))
        read, name = [text], name or os.fspath(source)
    else:
        facts, name = {}, name or "states"
        read = [TextStates(states) for states in ([source] if isinstance(source, States) else source)]
    return analyze_states(read, name=name, facts=facts, skip_first=skip_first, progress=progress)


def is_states_file(source: str | os.PathLike[str]) -> bool:
    """Whether a source's name is that of a file of states."""
    return os.fspath(source).endswith(SUFFIXES)


def _read(model: Model, prompts: Sequence[str], progress: Progress | None) -> list[TextStates]:
    if not prompts:
        raise PromptError("a model needs something to read: give it at least one prompt")
    everything = Capture.all_layers(embedding=True, final=True)
    read = []
    for number, prompt in enumerate(prompts):
        if progress is not None:
            progress("reading", number, len(prompts))
        try:
            states = model.forward(prompt, everything, keep="all")
        except PromptError as error:
            if len(prompts) == 1:
                raise
            raise type(error)(f"prompt {number + 1} of {len(prompts)}: {error}") from None
        read.append(TextStates(states, prompt, token_texts(model, states.tokens)))
    if progress is not None:
        progress("reading", len(prompts), len(prompts))
    return read


def _file(path: Path) -> tuple[TextStates, dict[str, Any]]:
    """The states of a file with what it says about them; nothing in its metadata is taken on trust."""
    states, metadata = load_states(path), read_metadata(path)
    names = metadata.get("token_texts")
    fits = isinstance(names, list) and len(names) == len(states.tokens) and all(isinstance(n, str) for n in names)
    prompt, text = metadata.get("prompt"), metadata.get("text", "")
    facts = {key: metadata[key] for key in _FACTS if isinstance(metadata.get(key), (str, int))}
    known = isinstance(prompt, str) and isinstance(text, str)
    return TextStates(states, prompt + text if known else None, names if fits else None), facts
