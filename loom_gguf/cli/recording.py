"""The rows of a generation, collected step by step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import Model, Step
    from ..states import States


class Recording:
    """Text and rows of a generation so far; every position that was computed has its row exactly once."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.text = ""
        self._parts: list[States] = []

    def add(self, step: Step) -> None:
        """Take note of a step. Raises CaptureUnsupportedError at the first step that does not fit those before."""
        from ..states import States

        for part in (step.prompt_states, step.states):
            if part is not None:
                if self._parts and not _alike(self._parts[-1], part):
                    States.concatenate([self._parts[-1], part])  # raises where they do not fit, and says why
                self._parts.append(part)
        self.text += step.text

    def read(self, states: States) -> None:
        """Take note of the rows of a text that was only read."""
        self._parts.append(states)

    def play(self, step: Step) -> None:
        """Take note of a step and write its text; in this order, so that all text that was seen has its rows."""
        self.add(step)
        sys.stdout.write(step.text)
        sys.stdout.flush()

    def end_line(self) -> None:
        """Leave a terminal at the beginning of a line; a file or pipe gets the text and nothing else."""
        if sys.stdout.isatty() and self.text and not self.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()

    @property
    def states(self) -> States | None:
        """All rows, in the order of their positions; None where nothing was captured."""
        from ..states import States

        return States.concatenate(self._parts) if self._parts else None

    def facts(self, model: Model, prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of a file of these states."""
        from ..states_file import model_facts, token_texts

        states = self.states
        return {
            **model_facts(model),
            **settings,
            "prompt": prompt,
            "n_prompt": len(model.tokenize(prompt)),
            "text": self.text,
            "token_texts": token_texts(model, states.tokens) if states is not None else None,
        }


def _alike(last: States, part: States) -> bool:
    """Whether the rows of both are of the same nodes and shapes; then they fit into one array without a question."""
    a, b = last.values_by_key, part.values_by_key
    return a.keys() == b.keys() and all(
        value.row_axis is not None and value.array.shape[1:] == a[key].array.shape[1:] for key, value in b.items()
    )
