"""What a model must answer: computed in this process, alone, one prompt after the other, greedy, in exact precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from loom_gguf import Capture, Model
from loom_gguf.library import demo_path

Array = npt.NDArray[Any]
How = Literal["text", "chat"]

CTX = 256  # tokens
N_STEPS = 24
FIDELITY = Path(__file__).parent.parent / "tests" / "fidelity"
COMPRESSION = {"none": 0.0, "float16": 1e-3, "int8": 5e-3}  # how far it moves a value, of the row's largest one
NODE = "attn_norm-1"  # which every one of the models below has


@dataclass(frozen=True)
class Subject:
    """A model that is asked."""

    name: str
    path: Path
    generates: bool = True
    chats: bool = False
    parallel: bool = True  # state space models compute one sequence at a time
    tolerance: float = 1e-5  # of a row in another batch, relative to the row's largest value; F32 weights
    n_layer: int = 0
    n_embd: int = 0
    n_vocab: int = 0


SUBJECTS = (
    # F16 weights: ggml rounds to F16 what they are multiplied with, and another batch's last bit may flip a rounding.
    Subject("demo", demo_path(), chats=True, tolerance=2e-3),
    Subject("llama", FIDELITY / "llama.gguf"),
    Subject("qwen3", FIDELITY / "qwen3.gguf"),
    Subject("mamba", FIDELITY / "mamba.gguf", parallel=False),
    Subject("bert", FIDELITY / "bert.gguf", generates=False),
)

TEXTS = (
    "Once there was a fox",
    "Once there was a fox who met a shy beetle",  # shares cells with the first one
    "A dog",
    "The owl had a red hat. One day the owl went to the river, and there it met a small, hungry mouse.",
)


@dataclass
class Closeness:
    """How far a model's numbers may be from the reference's, and were at most. Relative to a row's largest value."""

    tolerance: float
    worst: float = 0.0  # without compression

    def excess(self, values: Array, expected: Array, compression: str = "none") -> str:
        """What is wrong with a row; empty where nothing is."""
        if values.shape != expected.shape:
            return f"has the shape {values.shape} in place of {expected.shape}"
        off = float(np.abs(values - expected).max() / np.abs(expected).max())
        if compression == "none":
            self.worst = max(self.worst, off)
        most = self.tolerance + COMPRESSION[compression]
        return "" if off <= most else f"is off by {off:.2e} of its largest value, more than {most:.2e}"


@dataclass(frozen=True)
class Reference:
    """One prompt's greedy answer and all rows of it."""

    tokens: list[int]  # of the prompt
    token_ids: list[int]  # generated
    texts: list[str]
    gaps: list[float]  # between the two most probable tokens' log-probabilities: small ones may go either way
    rows: Mapping[str, Array]  # by their name on the wire; (positions, n_embd), from position 0 to the last one read
    closeness: Closeness


class References:
    """All of them, by model."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """names: only these models; none: all."""
        self.subjects: list[Subject] = []
        self.closeness: dict[str, Closeness] = {}
        self._answers: dict[tuple[str, How, str], Reference] = {}
        self._vectors: dict[tuple[str, str], Array] = {}
        for subject in SUBJECTS:
            if not names or subject.name in names:
                with Model(subject.path, n_ctx=CTX, n_threads=1, precision="exact") as model:
                    self._add(subject, model)

    def _add(self, subject: Subject, model: Model) -> None:
        fields = {**vars(subject), "n_layer": model.n_layer, "n_embd": model.n_embd, "n_vocab": model.n_vocab}
        self.subjects.append(Subject(**fields))
        close = self.closeness[subject.name] = Closeness(subject.tolerance)
        for text in TEXTS:
            pooling: Any = "last_token" if subject.generates else "mean"
            self._vectors[subject.name, text] = model.embed(text, pooling=pooling, normalize=False)
            if subject.generates:
                self._answers[subject.name, "text", text] = _answer(model, text, close)
            if subject.chats:
                self._answers[subject.name, "chat", text] = _answer(model, [{"role": "user", "content": text}], close)

    def answer(self, model: str, how: How, text: str) -> Reference | None:
        """Where there is one."""
        return self._answers.get((model, how, text))

    def vector(self, model: str, text: str) -> Array | None:
        """float32 (n_embd,), not normalised."""
        return self._vectors.get((model, text))


def _answer(model: Model, prompt: Any, closeness: Closeness) -> Reference:
    capture = Capture.all_layers(embedding=True, final=True) | Capture.names([NODE])
    options: Any = {"capture": capture, "max_tokens": N_STEPS, "logprobs": 2, "prompt_states": True}
    made = model.generate(prompt, **options) if isinstance(prompt, str) else model.chat(prompt, **options)
    steps = list(made)
    before = steps[0].prompt_states
    assert before is not None
    each = [step.states for step in steps]

    def rows(take: Any) -> Array:
        return np.concatenate([take(before), *(np.atleast_2d(take(states)) for states in each)])

    found = {f"l_out-{il}": rows(lambda states, il=il: states.layer(il)) for il in range(model.n_layer)}
    found |= {"embedding": rows(lambda s: s.embedding), "final": rows(lambda s: s.final), NODE: rows(lambda s: s[NODE])}
    assert each[0] is not None
    return Reference(
        [*before.tokens, *each[0].tokens],
        [step.token_id for step in steps],
        [step.text for step in steps],
        [step.top_logprobs[0][1] - step.top_logprobs[1][1] for step in steps],
        found,
        closeness,
    )
