"""expose_hidden, record for record, from known rows."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from fakes import KEYS, N_EMBD, N_LAYER, FakeRunner, row
from starlette.testclient import TestClient

from loom_gguf.errors import CaptureMemoryError, CaptureUnsupportedError, UnknownNodeError
from loom_gguf.states import States

INVALID = "Invalid hidden state configuration: "


def post(client: TestClient, path: str = "/api/generate", **fields: Any) -> list[dict[str, Any]]:
    body: dict[str, Any] = {"model": "plain"}
    body |= {"prompt": "hi"} if path == "/api/generate" else {"model": "demo"}
    if path == "/api/chat":
        body["messages"] = [{"role": "user", "content": "hi"}]
    answer = client.post(path, json=body | fields)
    assert answer.status_code == 200, answer.text
    return [json.loads(line, parse_constant=_no_constant) for line in answer.text.splitlines()]


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def records(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for line in lines for record in line.get("hidden_states", [])]


def decode(record: dict[str, Any]) -> np.ndarray:
    """The record's values as float64, as a client would get them."""
    data = record["data"]
    if "encoding" in record:
        types = {"none": "<f4", "float16": "<f2", "int8": "i1"}
        data = np.frombuffer(base64.b64decode(data, validate=True), types[record["compression"]])
    # JSON has the shortest number that becomes the same float32.
    values = np.asarray(data, np.float32).astype(np.float64).reshape(record["shape"])
    if record["compression"] == "int8":
        scale = np.asarray(record["scale"], np.float64).reshape(len(values[0]), -1)
        per_value = np.repeat(scale, record.get("scale_block", values[0, 0].size), axis=1)[:, : values[0, 0].size]
        values = values * per_value.reshape(values.shape)
    return values[0]


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("encoding", ["json", "base64"])
@pytest.mark.parametrize(("compression", "block"), [("none", None), ("float16", None), ("int8", None), ("int8", 3)])
def test_every_record(
    client: TestClient, path: str, stream: bool, encoding: str, compression: str, block: int | None
) -> None:
    wanted = {"compression": compression, "encoding": encoding, "scale_block": block, "prompt": True}
    wanted |= {"embedding": True, "final": True, "nodes": ["Qcur-0"]}
    lines = post(client, path, stream=stream, expose_hidden=wanted)
    found = records(lines)
    names = [(None, "embedding"), (None, "Qcur-0"), (0, "l_out-0"), (1, "l_out-1"), (2, "l_out-2"), (None, "final")]
    assert [(r["layer"], r["node"]) for r in found] == names * 6
    keys = {"embedding": "embd", "final": "result_norm"}
    seen: dict[str, list[int]] = {}
    for number, record in enumerate(found):
        key = keys.get(record["node"], record["node"])
        n_rows = record["shape"][1]
        positions = range(record["position"], record["position"] + n_rows)
        seen.setdefault(key, []).extend(positions)
        exact = np.stack([row(key, p) for p in positions]).reshape(record["shape"][1:])
        tolerance = {"none": 0, "float16": 2e-3, "int8": np.abs(exact).max() / 250}[compression]
        np.testing.assert_allclose(decode(record), exact, rtol=0, atol=tolerance)
        assert record["shape"] == ([1, n_rows, 2, 4] if key == "Qcur-0" else [1, n_rows, N_EMBD])
        assert record["compression"] == compression
        assert record.get("encoding") == ("base64" if encoding == "base64" else None)
        assert ("scale" in record) == (compression == "int8")
        assert record.get("saturated") == (0 if compression == "float16" else None)
        if compression == "int8":
            n_blocks = 1 if block is None else 3
            assert record.get("scale_block") == block
            assert len(record["scale"]) == n_rows * n_blocks
        if number < len(names):
            assert (record["phase"], record["token_ids"], record["token_index"]) == ("prompt", [7, 8], None)
            assert "next_token_id" not in record
        else:
            i = number // len(names) - 1
            assert (record["phase"], record["token_index"], record["position"]) == ("generate", i, 2 + i)
            assert (record["token_ids"], record["next_token_id"]) == ([9 if i == 0 else 49 + i], 50 + i)
        if encoding == "json" and compression == "int8":
            assert all(isinstance(value, int) and -127 <= value <= 127 for value in record["data"])
    assert all(positions == list(range(7)) for positions in seen.values())  # every position exactly once
    assert set(seen) == set(KEYS) - {"ids", "mask"}


def test_float16_numbers_in_json_are_rounded_to_float16(client: TestClient) -> None:
    for record in records(post(client, expose_hidden={"compression": "float16"})):
        assert np.array_equal(np.float32(record["data"]), np.float16(record["data"]).astype(np.float32))


def test_rows_stand_on_the_line_of_their_text(client: TestClient) -> None:
    lines = post(client, expose_hidden={"layers": [1]})
    assert [line["response"] for line in lines] == ["One", " fox", "", " é", ".", ""]
    for i, line in enumerate(lines[:-1]):
        assert [r["token_index"] for r in line["hidden_states"]] == [i]
        assert [r["layer"] for r in line["hidden_states"]] == [1]
    assert "hidden_states" not in lines[-1]
    assert [line["message"]["content"] for line in post(client, "/api/chat", hidden_states={"layers": [1]})][2] == ""


def test_without_it_no_line_has_the_key(client: TestClient) -> None:
    for fields in (
        {},
        {"expose_hidden": None},
        {"expose_hidden": {"enabled": False}},
        {"expose_hidden": {"layers": []}},
    ):
        lines = post(client, **fields)
        assert [line["response"] for line in lines] == ["One", " fox", " é", ".", ""]
        assert not any("hidden_states" in line for line in lines)


@pytest.mark.parametrize(
    ("wanted", "layers"),
    [
        ({}, [0, 1, 2]),
        ({"layers": None}, [0, 1, 2]),
        ({"layers": [2, 0, 2]}, [0, 2]),
        ({"last_layer_only": True}, [2]),
        ({"last_layer_only": True, "layers": [0]}, [2]),
        ({"layers": [], "final": True}, [None]),
        ({"layers": [], "nodes": ["l_out-1"]}, [1]),
        ({"layers": [1.0]}, [1]),
    ],
)
def test_which_layers(client: TestClient, wanted: dict[str, Any], layers: list[int | None]) -> None:
    found = records(post(client, expose_hidden=wanted, options={"num_predict": 1}))
    assert [r["layer"] for r in found] == layers


def test_a_node_is_called_as_it_was_asked_for(client: TestClient) -> None:
    def names(**wanted: Any) -> list[str]:
        return [r["node"] for r in records(post(client, expose_hidden=wanted, options={"num_predict": 1}))]

    assert names(layers=[], nodes=["result_norm", "embd"]) == ["embd", "result_norm"]
    assert names(layers=[], nodes=["result_norm"], final=True) == ["final", "result_norm"]
    assert names(layers=[1], nodes=["l_out-1"]) == ["l_out-1"]


def test_nodes_of_other_kinds(client: TestClient) -> None:
    for compression in ("none", "float16", "int8"):
        wanted = {"layers": [], "nodes": ["ids", "mask"], "compression": compression}
        ids, mask = records(post(client, expose_hidden=wanted, options={"num_predict": 1}))
        assert (ids["dtype"], ids["compression"], ids["shape"]) == ("int32", "none", [1, 1, 8])
        assert ids["data"] == (row("ids", 2) * 10).astype(int).tolist()
        assert (mask["whole"], mask["shape"], mask["data"]) == (True, [1, 2, 3], [0, 1, 2, 3, 4, 5])


def test_prompt_rows_in_pieces(client: TestClient, runner: FakeRunner) -> None:
    runner.prompt, runner.pieces = list(range(20, 31)), 3
    found = records(post(client, expose_hidden={"prompt": True, "layers": [0]}))
    prompt = [r for r in found if r["phase"] == "prompt"]
    assert [r["position"] for r in prompt] == [0, 4, 7]
    assert [token for r in prompt for token in r["token_ids"]] == runner.prompt[:-1]


def test_long_prompts_make_records_and_lines_of_bounded_length(
    client: TestClient, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loom_gguf.server.ollama import hidden

    monkeypatch.setattr(hidden, "_RECORD_VALUES", 3 * N_EMBD)
    monkeypatch.setattr(hidden, "_LINE_VALUES", 4 * N_EMBD)
    runner.prompt = list(range(9))
    for compression in ("none", "float16", "int8"):
        lines = post(client, expose_hidden={"prompt": True, "layers": [0, 1], "compression": compression})
        found = [r for r in records(lines) if r["phase"] == "prompt"]
        assert [(r["layer"], r["position"], r["shape"][1]) for r in found] == [
            (0, 0, 3), (0, 3, 3), (0, 6, 2), (1, 0, 3), (1, 3, 3), (1, 6, 2),
        ]  # fmt: skip
        assert [len(line["hidden_states"]) for line in lines[:6]] == [1, 1, 1, 1, 1, 1]
        assert all(line["response"] == "" for line in lines[:6])
        for record in found:
            exact = np.stack([row(record["node"], record["position"] + r) for r in range(record["shape"][1])])
            np.testing.assert_allclose(decode(record), exact, atol=0.02)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"layers": [-1]}, "layers must be non-negative"),
        ({"layers": [N_LAYER]}, "there is no layer 3; this model's layers are 0 to 2"),
        ({"layers": [True]}, "layers.0: "),
        ({"layers": "all"}, "layers: "),
        ({"layers": [1.5]}, "layers.0: "),
        ({"layer": [1]}, "there is no field 'layer'"),
        ({"compression": "zip"}, "compression: "),
        ({"encoding": "hex"}, "encoding: "),
        ({"enabled": 1}, "enabled: "),
        ({"scale_block": 0, "compression": "int8"}, "scale_block: "),
        ({"scale_block": 32}, "scale_block belongs to int8"),
        ({"nodes": [""]}, "nodes.0: "),
        ({"nodes": ["x"] * 257}, "nodes: "),
        (True, "it must be an object"),
        ([], "it must be an object"),
        ({"layers": [-1], "enabled": False}, "layers must be non-negative"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_invalid(client: TestClient, wanted: Any, reason: str, stream: bool) -> None:
    answer = client.post(
        "/api/generate", json={"model": "plain", "prompt": "x", "stream": stream, "expose_hidden": wanted}
    )
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(INVALID + reason)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UnknownNodeError("no node x"), 400, INVALID + "no node x"),
        (CaptureUnsupportedError("why"), 400, "Hidden state capture not supported for this model type"),
        (CaptureMemoryError("why"), 500, "Failed to allocate memory for hidden state capture"),
    ],
)
def test_errors_of_the_engine(client: TestClient, runner: FakeRunner, error: Exception, status: int, text: str) -> None:
    runner.fails_before = error
    answer = client.post("/api/generate", json={"model": "plain", "prompt": "x", "expose_hidden": {}})
    assert (answer.status_code, answer.json()["error"]) == (status, text)
    assert answer.json().get("detail") == (None if text.startswith(INVALID) else "why")


def _with(value: float) -> Any:
    def change(states: States) -> States:
        arrays = {key: v.array.copy() for key, v in states.values_by_key.items()}
        arrays["l_out-1"].flat[0] = value
        return states.with_numbers(arrays)

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_cannot_hold(client: TestClient, runner: FakeRunner, value: float) -> None:
    runner.change = _with(value)
    body = {"model": "plain", "prompt": "x", "expose_hidden": {"layers": [1]}}
    answer = client.post("/api/generate", json=body)
    assert answer.status_code == 400
    assert "l_out-1" in answer.json()["error"]
    assert "base64" in answer.json()["error"]
    answered = records(post(client, expose_hidden={"layers": [1], "encoding": "base64"}))
    np.testing.assert_array_equal(decode(answered[0])[0, 0], np.float32(value))


def test_int8_blocks_that_cannot_be_said_have_scale_null(client: TestClient, runner: FakeRunner) -> None:
    change = _with(np.nan)
    runner.change = lambda states: change(states.decompress()).compress("int8", 4)
    wanted = {"layers": [1], "compression": "int8", "scale_block": 4}
    first = records(post(client, expose_hidden=wanted | {"encoding": "base64"}))[0]
    assert first["scale"][0] is None
    assert first["scale"][1] > 0
    answer = client.post("/api/generate", json={"model": "plain", "prompt": "x", "expose_hidden": wanted})
    assert "base64" in answer.json()["error"]


def test_saturated_is_counted(client: TestClient, runner: FakeRunner) -> None:
    change = _with(1e9)
    runner.change = lambda states: change(states.decompress()).compress("float16")
    first = records(post(client, expose_hidden={"layers": [0, 1], "compression": "float16"}))[:2]
    assert [r["saturated"] for r in first] == [0, 1]
    assert first[1]["data"][0] == 65504


def test_one_answer_is_bounded(make_client: Any) -> None:
    client = make_client(max_answer=400)
    body = {"model": "plain", "prompt": "x", "expose_hidden": {}}
    answer = client.post("/api/generate", json=body | {"stream": False})
    assert answer.status_code == 400
    assert "stream" in answer.json()["error"]
    assert len(client.post("/api/generate", json=body).text.splitlines()) == 6
