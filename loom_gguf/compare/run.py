"""Running both sides over the same tokens."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ComparisonError, DifferentTokensError
from ..model import Model
from ..states import States
from ..states_file import load_states
from .collect import Collector
from .result import THRESHOLD, Comparison
from .sides import Given, ModelSide, Side, StatesSide, both_fit, check_alike, check_same_texts, kept_on_disk, side_of
from .texts import DEFAULT_PROMPTS

Progress = Callable[[int, int], None]
_Passes = Iterator[tuple[States, States]]


def compare(
    a: Given,
    b: Given,
    prompts: str | Sequence[str] | None = None,
    *,
    tokens: Sequence[int] | Sequence[Sequence[int]] | None = None,
    a_options: Mapping[str, Any] | None = None,
    b_options: Mapping[str, Any] | None = None,
    logits: bool = True,
    threshold: float = THRESHOLD,
    one_at_a_time: bool | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare every hidden state, and the logits, that A and B compute of the same tokens.

    a, b: a model (open, or a path or name of one), or states (captured, or a file of them: .safetensors or .npz, also
        PyTorch's, see `loom_gguf.hugging_face_states`). A is the reference: errors are relative to it.
    prompts: one or several texts, tokenized by A; None takes DEFAULT_PROMPTS. B must have the same vocabulary.
    tokens: instead, the token ids of one or several prompts, taken as they are.
        Where a side is states, their tokens are read, and neither may be given.
    a_options, b_options: how to open a model file: keyword arguments of Model, e.g. {"precision": "exact"} or
        {"n_gpu_layers": 0}.
    logits: also compare the logits. A prompt's take n_tokens x n_vocab x 4 bytes a side.
    threshold: the relative error from which two states count as parted (see Comparison.first_parting).
    one_at_a_time: open B only after A was closed, and keep A's rows in a temporary folder meanwhile; None does so
        where the memory does not hold both files. Models that were given open stay open.
    progress: called with the number of forward passes done and that of all.

    Each prompt is one forward pass, as `Model.forward` does it; only one prompt's rows are in memory at a time. Raises
    DifferentTokensError, DifferentModelsError, NotCapturedError where the sides have no hidden state in common, and
    what opening and running a model raises.
    """
    if not isinstance(threshold, (int, float)) or not math.isfinite(threshold) or threshold < 0:
        raise ComparisonError(f"the threshold is a relative error, 0 or more, not {threshold!r}")
    sides = side_of(a, a_options, "a"), side_of(b, b_options, "b")
    collector = Collector(logits)
    done = _counter(progress)
    with contextlib.ExitStack() as stack:
        for states_a, states_b in _passes(
            sides, _Wanted(prompts, tokens), logits, one_at_a_time, collector, stack, done
        ):
            collector.add(states_a, states_b)
    return collector.result(threshold, [note for side in sides if isinstance(side, ModelSide) for note in side.notes])


class _Wanted:
    """What is to be read, checked as far as it can be without a model."""

    def __init__(self, prompts: Any, tokens: Any) -> None:
        if prompts is not None and tokens is not None:
            raise ComparisonError("prompts and tokens are both given: give one of them")
        self.given = prompts is not None or tokens is not None
        self.texts = None if tokens is not None else DEFAULT_PROMPTS if prompts is None else _list_of(prompts, str)
        self.tokens: list[Sequence[int]] = []
        if tokens is not None:
            self.tokens = list(tokens) if len(tokens) and not hasattr(tokens[0], "__index__") else [tokens]
        if not self.texts and not self.tokens:
            raise ComparisonError("no prompts: give at least one")

    def ids(self, model: Model) -> list[Sequence[int]]:
        """Token ids of every prompt."""
        return self.tokens if self.texts is None else [model.tokenize(text) for text in self.texts]


def _list_of(value: Any, kind: type) -> list[Any]:
    return [value] if isinstance(value, kind) else list(value)


def _passes(
    sides: tuple[Side, Side],
    wanted: _Wanted,
    logits: bool,
    one_at_a_time: bool | None,
    collector: Collector,
    stack: contextlib.ExitStack,
    done: Callable[[int], None],
) -> _Passes:
    """Both sides' states, prompt by prompt; what is opened is closed by `stack`."""
    a, b = sides
    if isinstance(a, ModelSide) and isinstance(b, ModelSide):
        paths = a.path, b.path
        check_alike(*paths, by_text=wanted.texts is not None)
        if one_at_a_time is None:
            one_at_a_time = not both_fit(*paths)
        if one_at_a_time and isinstance(a.given, Path):
            return _apart(a, b, wanted, logits, collector, stack, done)
        return _together(a, b, wanted, logits, collector, stack, done)
    if wanted.given:
        raise ComparisonError("captured states have tokens of their own, so give neither prompts nor tokens")
    return _captured(a, b, logits, collector, stack, done)


def _together(
    a: ModelSide,
    b: ModelSide,
    wanted: _Wanted,
    logits: bool,
    collector: Collector,
    stack: contextlib.ExitStack,
    done: Callable[[int], None],
) -> _Passes:
    model_a, model_b = stack.enter_context(a.opened()), stack.enter_context(b.opened())
    collector.name(a.facts(model_a), b.facts(model_b), model_a.token_text)
    prompts = wanted.ids(model_a)
    for ids in prompts:
        states_a = model_a.forward(ids, a.capture(model_a, logits))
        done(2 * len(prompts))
        yield states_a, model_b.forward(ids, b.capture(model_b, logits))
        done(2 * len(prompts))


def _apart(
    a: ModelSide,
    b: ModelSide,
    wanted: _Wanted,
    logits: bool,
    collector: Collector,
    stack: contextlib.ExitStack,
    done: Callable[[int], None],
) -> _Passes:
    def of_a(model: Model, prompts: list[Sequence[int]]) -> Iterator[States]:
        for ids in prompts:
            yield model.forward(ids, a.capture(model, logits))
            done(2 * len(prompts))

    with a.opened() as model_a:
        facts_a = a.facts(model_a)
        paths = stack.enter_context(kept_on_disk(of_a(model_a, wanted.ids(model_a))))
    model_b = stack.enter_context(b.opened())
    collector.name(facts_a, b.facts(model_b), model_b.token_text)
    for path in paths:
        states_a = load_states(path)
        path.unlink()
        yield states_a, model_b.forward(states_a.tokens, b.capture(model_b, logits))
        done(2 * len(paths))


def _captured(
    a: Side, b: Side, logits: bool, collector: Collector, stack: contextlib.ExitStack, done: Callable[[int], None]
) -> _Passes:
    """At least one side is there already: its tokens are read."""
    if isinstance(a, StatesSide) and isinstance(b, StatesSide):
        texts = {**b.texts, **a.texts}
        collector.name(a.facts, b.facts, lambda token: texts.get(token, ""))
        yield a.states, b.states
        return
    side, captured = (a, b) if isinstance(a, ModelSide) else (b, a)
    assert isinstance(side, ModelSide)
    assert isinstance(captured, StatesSide)
    states = captured.states
    if states.positions != list(range(len(states.tokens))):
        raise DifferentTokensError(
            f"{captured.facts.name} does not have the rows of a text from its beginning (its positions are not 0, 1, "
            f"2, ...), so a model cannot read the same tokens: capture the prompt's rows too"
        )
    model = stack.enter_context(side.opened())
    check_same_texts(model, captured.texts, captured.facts.name)
    facts = side.facts(model)
    collector.name(*((facts, captured.facts) if side is a else (captured.facts, facts)), model.token_text)
    computed = model.forward(states.tokens, side.capture(model, logits))
    done(1)
    yield (computed, states) if side is a else (states, computed)


def _counter(progress: Progress | None) -> Callable[[int], None]:
    passes = 0

    def done(total: int) -> None:
        nonlocal passes
        passes += 1
        if progress is not None:
            progress(passes, total)

    return done
