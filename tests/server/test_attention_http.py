"""Attention weights over HTTP: right rows where the server was started for them, elsewhere a refusal that says how."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import FIDELITY
from oracle import open_model, relative_error
from serving import Real, real_server
from test_hidden import decode

from loom_gguf import Capture

PROMPT = "The quick brown fox jumps over the lazy dog"
WANTED = {"layers": [], "nodes": ["kq_soft_max-*"], "prompt": True}


def body(**wanted: Any) -> dict[str, Any]:
    return {
        "model": "llama",
        "prompt": PROMPT,
        "raw": True,
        "expose_hidden": WANTED | wanted,
        "options": {"temperature": 0, "num_predict": 5, "num_thread": 1, "num_batch": 16},
    }


def test_where_the_server_was_started_for_them() -> None:
    with real_server(FIDELITY, parallel=1) as real, open_model("llama", n_ctx=256) as model:
        for wanted, bound in (({}, 1e-5), ({"encoding": "base64", "compression": "int8"}, 1e-2)):
            status, lines = real.post("/api/generate", body(**wanted))
            assert status == 200
            tokens = model.tokenize(PROMPT)
            records = [record for line in lines for record in line.get("hidden_states", ())]
            made = [r["next_token_id"] for r in records if "next_token_id" in r and r["node"] == "kq_soft_max-0"]
            whole = model.forward([*tokens, *made[:-1]], Capture.names(["kq_soft_max-*"]))
            seen: dict[str, list[int]] = {key: [] for key in whole}
            for record in records:
                n_rows, n_head, n_past = record["shape"][1:]
                last = record["position"] + n_rows
                # The prompt's last token is computed beside those before it: for them a column of zeros.
                assert (n_head, n_past) == (4, last + (last == len(tokens) - 1))
                expected = whole[record["node"]][record["position"] : last, :, :n_past]
                assert relative_error(decode(record), expected) <= bound
                seen[record["node"]] += range(record["position"], last)
            assert len(seen) == model.n_layer
            assert all(positions == list(range(len(tokens) + 4)) for positions in seen.values())


def test_weights_of_a_request_after_another_one() -> None:
    """The cells of the one before are still there; a common beginning is not even computed again."""
    with real_server(FIDELITY, parallel=1) as real, open_model("llama", n_ctx=256) as model:
        for prompt in (PROMPT + " and away", PROMPT + " twice", "Who"):
            status, lines = real.post("/api/generate", body(prompt=False) | {"prompt": prompt})
            assert status == 200
            records = [r for line in lines for r in line.get("hidden_states", ()) if r["node"] == "kq_soft_max-2"]
            read = [*model.tokenize(prompt), *(r["next_token_id"] for r in records[:-1])]
            whole = model.forward(read, Capture.names(["kq_soft_max-2"]))["kq_soft_max-2"]
            assert len(records) == 5
            for record in records:
                at = record["position"]
                assert relative_error(decode(record)[0], whole[at, :, : at + 1]) <= 1e-5
                np.testing.assert_allclose(decode(record).sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"parallel": 4}, {"parallel": 1, "precision": "fast"}, {"precision": "fast"}])
def test_elsewhere_the_refusal_says_how_to_start_the_server(settings: dict[str, Any]) -> None:
    with real_server(FIDELITY, **settings) as real:
        for nodes in (["kq_soft_max-0"], ["kq-2", "l_out-1"], ["kq_soft_max-*"], ["l_out-1", "kq_soft_max-2"]):
            for stream in (True, False):
                asked = body(nodes=nodes) | {"stream": stream}
                status, (told,) = real.post("/api/generate", asked)
                assert status == 400
                assert told["error"].startswith("Invalid hidden state configuration: attention weights (kq-*, kq_*)")
                assert "--parallel 1 --precision exact" in told["error"]
                assert told["detail"]
        assert real.post("/api/generate", body(nodes=["l_out-1"]))[0] == 200


def test_a_server_of_one_sequence_has_other_clients_too(real_exact: Real) -> None:
    status, (told,) = real_exact.post("/api/generate", body(nodes=["kq_soft_max-7"]) | {"stream": False})
    assert (status, "there is no node" in told["error"]) == (400, True)


@pytest.fixture
def real_exact() -> Any:
    with real_server(FIDELITY, parallel=1) as real:
        yield real
