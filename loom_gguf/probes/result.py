"""What probes found, layer by layer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..optional import optional

if TYPE_CHECKING:
    import pandas as pd

    from ..picture import Picture

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Accuracy of a linear probe at S hidden states; arrays are (S,), shares of texts between 0 and 1."""

    states: tuple[str, ...]  # "embedding", "0", "1", ..., "final"
    accuracy: Floats  # on texts that the probe was not fitted on; mean of all folds of all repeats
    low: Floats  # lower end of the confidence interval, see `interval`
    high: Floats
    control: Floats  # the same accuracy with shuffled labels
    chance: float  # share of the commonest label: what is reached by always guessing it
    classes: dict[str, int]  # label -> number of texts
    n_groups: int | None  # None: every text by itself
    folds: int
    repeats: int
    c: float  # inverse strength of the L2 penalty
    confidence: float
    seed: int
    unfinished: npt.NDArray[np.int64]  # fits, of both kinds, that had not converged after 1000 iterations
    facts: dict[str, Any] = field(default_factory=dict)  # model and pooling, where known

    @property
    def n_texts(self) -> int:
        """Number of labelled texts."""
        return sum(self.classes.values())

    @property
    def selectivity(self) -> Floats:
        """Accuracy above the shuffled labels', (S,) (Hewitt and Liang, 2019)."""
        return self.accuracy - self.control

    @property
    def best(self) -> str:
        """The state of the highest accuracy; the lowest of them where several have it."""
        return self.states[int(self.accuracy.argmax())]

    @property
    def known_from(self) -> str | None:
        """The lowest state whose whole interval lies above both chance and control; None where none does."""
        above = np.flatnonzero(self.low > np.maximum(self.control, self.chance))
        return self.states[above[0]] if len(above) else None

    def __repr__(self) -> str:
        """The best state, and what guessing gives."""
        i = int(self.accuracy.argmax())
        return (
            f"<ProbeResult: {self.n_texts} texts, {len(self.classes)} classes; best at {self.best}: "
            f"{self.accuracy[i]:.3f} ({self.low[i]:.3f} to {self.high[i]:.3f}), shuffled {self.control[i]:.3f}, "
            f"chance {self.chance:.3f}>"
        )

    def _repr_html_(self) -> str:
        from ..notebook import probe_html

        return probe_html(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON; one record per state under "states"."""
        return {
            **{name: getattr(self, name) for name in (
                "n_texts", "n_groups", "classes", "chance", "folds", "repeats", "c", "confidence", "seed", "best",
                "known_from", "facts",
            )},
            "states": self._records(),
        }  # fmt: skip

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_dataframe(self) -> pd.DataFrame:
        """One line per state: state, accuracy, low, high, control, selectivity, unfinished. Needs pandas."""
        return optional("pandas", "to_dataframe").DataFrame(self._records())

    def plot(self, title: str | None = None) -> Picture:
        """The curve of accuracies over the states, with interval, control and chance."""
        from .curves import draw_curves

        return draw_curves({title or "": self})

    def _records(self) -> list[dict[str, Any]]:
        columns = {
            name: getattr(self, name).tolist()
            for name in ("accuracy", "low", "high", "control", "selectivity", "unfinished")
        }
        return [
            {"state": state, **{name: column[i] for name, column in columns.items()}}
            for i, state in enumerate(self.states)
        ]
