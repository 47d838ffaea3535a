"""A short soak of the real server, and whether scripts/soak.py would notice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import soak_answers as answers
from soak import soak
from soak_answers import Asked, Interrupted, Wrong
from soak_client import Answer
from soak_reference import SUBJECTS, Closeness, Reference
from soak_requests import KINDS, plans

N_REQUESTS = 80
SEED = 10


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes in /proc")
def test_nothing_is_wrong_and_nothing_stays_behind() -> None:
    result = soak(N_REQUESTS, seed=SEED, n_clients=6, names=["demo", "llama", "bert"], points=(50, 100), n_warm=10)
    assert result.outcomes.failures == []
    counts = result.outcomes.counts
    assert counts.total() == N_REQUESTS
    by_outcome = {outcome: sum(n for (_, o), n in counts.items() if o == outcome) for _, outcome in counts}
    assert by_outcome["complete"] > N_REQUESTS / 4
    assert {"left before the answer", "left in the answer", "refused as it should be"} <= by_outcome.keys()
    assert all(worst > 0 for worst in result.worst.values())  # rows were compared


# -- what it would notice: answers that are wrong in one thing ----------------------------------------------------

TOKENS, NEXT = [5, 6, 7], [8, 9]
ROWS = np.arange(1, 9, dtype=np.float32).reshape(4, 2)  # of positions 0 to 3
REFERENCE = Reference(TOKENS, NEXT, ["a", "b"], [1.0, 1.0], {"l_out-0": ROWS}, Closeness(1e-5))
ASKED = Asked("m", "generate", True, 2, REFERENCE, greedy=True, hidden={"prompt": True}, wanted=frozenset({"l_out-0"}))


def record(position: int, n: int, index: int | None) -> dict[str, Any]:
    made = {
        "layer": 0,
        "node": "l_out-0",
        "phase": "prompt" if index is None else "generate",
        "position": position,
        "token_ids": [*TOKENS, *NEXT][position : position + n],
        "token_index": index,
        "shape": [1, n, 2],
        "data": ROWS[position : position + n].ravel().tolist(),
        "compression": "none",
    }
    return made if index is None else made | {"next_token_id": NEXT[index]}


def right() -> list[dict[str, Any]]:
    head = {"model": "m", "created_at": "now", "done": False}
    return [
        head | {"response": "", "hidden_states": [record(0, 2, None)]},
        head | {"response": "a", "hidden_states": [record(2, 1, 0)]},
        head | {"response": "b", "hidden_states": [record(3, 1, 1)]},
        head | {"response": "", "done": True, "done_reason": "length", "eval_count": 2, "prompt_eval_count": 3},
    ]


def check(lines: list[dict[str, Any]], *, whole: bool = True, end: bytes = b"\n") -> None:
    body = b"\n".join(json.dumps(line).encode() for line in lines) + end
    answers.generation(ASKED, Answer(200, "application/x-ndjson", body, whole, 0, 1))


def test_a_right_answer_passes() -> None:
    check(right())
    check(right()[:2], whole=False, end=b'\n{"mod')  # the client left


def spoil(line: int, **fields: Any) -> Any:
    return lambda lines: lines[line].update(fields)


def spoil_record(line: int, **fields: Any) -> Any:
    return lambda lines: lines[line]["hidden_states"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda lines: lines.pop(), "the last line is not done"),
        (lambda lines: lines.pop(1), "'b' in place of 'ab'"),
        (lambda lines: lines.pop(0), "positions"),
        (lambda lines: lines.insert(0, lines[0]), "positions"),
        (lambda lines: lines.reverse(), "the last line is not done"),
        (spoil(1, response="x"), "in place of 'ab'"),
        (spoil(1, done=True), "done before"),
        (spoil(3, eval_count=3), "3 tokens of 2"),
        (spoil(3, prompt_eval_count=2), "2 prompt tokens"),
        (spoil(3, done_reason="load"), "done_reason"),
        (spoil(2, logprobs=[{}]), "1 logprobs"),
        (spoil(2, hidden_states=[]), "positions"),
        (spoil_record(0, data=[1, 2, 3, 4.1]), "the row at 1 is off"),
        (spoil_record(2, data=[7, 8.01]), "the row at 3 is off"),
        (spoil_record(2, data=[7]), "1 numbers of shape"),
        (spoil_record(2, data=[7, float("nan")]), "not finite"),
        (spoil_record(2, token_index=0), "token_index"),
        (spoil_record(1, next_token_id=5), "no chain"),
        (spoil_record(2, token_ids=[5]), "token 5 in place of 8"),
        (spoil_record(0, node="l_out-1"), "nodes"),
        (spoil_record(0, compression="int8"), "compression"),
    ],
)
def test_a_wrong_answer_is_noticed(change: Any, text: str) -> None:
    lines = json.loads(json.dumps(right()))
    change(lines)
    with pytest.raises(Wrong, match=text):
        check(lines)


def test_an_error_in_the_middle_is_told_from_an_answer() -> None:
    with pytest.raises(Interrupted, match="the process"):
        check([*right()[:2], {"error": "the process ended"}])


@pytest.mark.parametrize("end", [b"", b'\n{"model'])
def test_an_answer_that_is_cut_off_is_noticed(end: bytes) -> None:
    with pytest.raises(Wrong, match="has no end"):
        check(right(), end=end)


def test_a_request_of_a_seed_is_always_the_same() -> None:
    class References:
        subjects = SUBJECTS

        def answer(self, *_: Any) -> None:
            return None

    twice = [plans(References(), 0, range(40, 300)) for _ in range(2)]  # type: ignore[arg-type]
    assert [str(plan) for plan in twice[0]] == [str(plan) for plan in twice[1]]
    assert {plan.kind for plan in twice[0]} >= {kind.name for kind in KINDS if kind.weight >= 2}
