"""The Loom's ways to generate: fields, defaults, keys and errors, with a runner that has no model."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from fakes import N_EMBD, N_LAYER, FakeManager, FakeRunner, attention, row
from starlette.testclient import TestClient

from loom_gguf import errors
from loom_gguf.capture import Capture
from loom_gguf.requests import TextPrompt

LAST = 6  # position of the last step: 3 tokens of the prompt, 5 generated
NODES = {0: "embd", 1: "l_out-0", 2: "l_out-1", N_LAYER: "result_norm"}  # by Hugging Face's index


def post(client: TestClient, path: str = "/generate", **fields: Any) -> Any:
    return client.post(path, json={"model": "plain", "prompt": "hi"} | fields)


def numbers(values: dict[str, Any]) -> np.ndarray:
    assert set(values) == {"data", "shape", "dtype", "encoding"}
    assert values["dtype"] == "float32"
    if values["encoding"] == "base64":
        return np.frombuffer(base64.b64decode(values["data"]), "<f4").reshape(values["shape"])
    assert values["encoding"] is None
    return np.array(values["data"], np.float32).reshape(values["shape"])


@pytest.mark.parametrize("path", ["/generate", "/v1/generate"])
def test_defaults(client: TestClient, runner: FakeRunner, manager: FakeManager, path: str) -> None:
    told = post(client, path)
    assert told.status_code == 200
    answer = told.json()
    (request,) = runner.requests
    assert request.prompt == TextPrompt("hi")
    assert (request.max_tokens, request.prompt_rows, request.stop, request.compression) == (256, False, (), None)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.logprobs) == (0.7, 0.9, None, None)
    assert request.capture == Capture.layers([], final=True)
    assert manager.uses[0][1] is None
    assert set(answer) == {
        "text", "token_count", "hidden_states", "attention_weights", "sequence_hidden_states", "metadata"
    }  # fmt: skip
    assert (answer["text"], answer["token_count"]) == ("One fox é.", 5)
    assert answer["attention_weights"] is None
    assert answer["sequence_hidden_states"] is None
    assert list(answer["hidden_states"]) == ["-1"]
    values = answer["hidden_states"]["-1"]
    assert values["shape"] == [1, N_EMBD]
    assert np.array_equal(np.float32(values["data"]), row("result_norm", LAST))  # a flat list
    metadata = answer["metadata"]
    seconds = metadata.pop("inference_time_ms") / 1e3
    assert metadata.pop("tokens_per_second") == pytest.approx(5 / seconds)
    assert metadata == {
        "tokens_generated": 5,
        "input_tokens": 3,
        "temperature": 0.7,
        "model_id": "plain",
        "full_sequence": False,
        "finish_reason": "stop",
    }


def test_fields_arrive(client: TestClient, runner: FakeRunner) -> None:
    told = post(
        client, max_tokens=2, temperature=0, top_p=1, return_hidden_states=False, loader="transformers", nosuch=[1]
    ).json()
    (request,) = runner.requests
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_p) == (2, 0, 1)
    assert request.capture is None
    assert (told["text"], told["hidden_states"], told["metadata"]["temperature"]) == ("One fox", None, 0)


@pytest.mark.parametrize("form", ["list", "base64"])
@pytest.mark.parametrize(
    ("layers", "keys"),
    [
        ([-1], {"-1": 3}),
        ([0], {"0": 0}),
        ([1, 2, 3], {"1": 1, "2": 2, "3": 3}),
        ([-4, -3, -2], {"-4": 0, "-3": 1, "-2": 2}),
        ([3, -1, 3], {"3": 3, "-1": 3}),  # the same one twice, as it was written
        ("all", {"-3": 1, "-2": 2, "-1": 3}),
    ],
)
def test_indices_are_those_of_hugging_face(client: TestClient, layers: Any, keys: dict[str, int], form: str) -> None:
    told = post(client, hidden_state_layers=layers, hidden_state_format=form, return_full_sequence=True).json()
    assert list(told["hidden_states"]) == list(told["sequence_hidden_states"]) == list(keys)
    for key, index in keys.items():
        wanted = np.stack([row(NODES[index], position) for position in range(2, LAST + 1)])
        assert np.array_equal(numbers(told["hidden_states"][key]), wanted[-1:])
        assert np.array_equal(numbers(told["sequence_hidden_states"][key]), wanted)
    assert told["metadata"]["full_sequence"] is True


def test_a_sequence_is_a_list_of_rows(client: TestClient) -> None:
    told = post(client, return_full_sequence=True, return_hidden_states=False).json()
    assert told["hidden_states"] is None
    data = told["sequence_hidden_states"]["-1"]["data"]
    assert np.array_equal(np.float32(data[4]), row("result_norm", LAST))


def test_no_layers_are_no_hidden_states(client: TestClient, runner: FakeRunner) -> None:
    assert post(client, hidden_state_layers=[]).json()["hidden_states"] is None
    assert runner.requests[0].capture is None


@pytest.mark.parametrize(("default", "keys"), [((-2, 0), ["-2", "0"]), (None, ["-3", "-2", "-1"])])
def test_the_server_says_which_layers_are_the_default(make_client: Any, default: Any, keys: list[str]) -> None:
    assert list(post(make_client(default_layers=default)).json()["hidden_states"]) == keys


@pytest.mark.parametrize("path", ["/generate", "/generate/stream", "/generate/batch"])
@pytest.mark.parametrize("layer", [4, -5, 10**30])
def test_a_layer_that_is_not_there(client: TestClient, path: str, layer: int) -> None:
    told = post(client, path, hidden_state_layers=[-1, layer], return_hidden_states=True, prompts=["a"])
    assert told.status_code == 422
    (problem,) = told.json()["detail"]
    assert problem["loc"] == ["body", "hidden_state_layers"]
    assert "0 (the embedding) to 3" in problem["msg"]
    assert "-4 to -1" in problem["msg"]


def test_attention_weights_of_the_last_step(make_client: Any, runner: FakeRunner) -> None:
    client = make_client(parallel=1, precision="exact")
    told = post(client, return_attention=True, hidden_state_layers=[1]).json()
    assert list(told["attention_weights"]) == ["0", "1", "2"]
    for il in range(N_LAYER):
        values = told["attention_weights"][str(il)]
        assert values["shape"] == [1, 2, 1, LAST + 1]
        assert np.array_equal(numbers(values)[0, :, 0], attention(il, LAST))
    assert list(told["hidden_states"]) == ["1"]
    assert runner.requests[0].capture == Capture.layers([0]) | Capture.names(["kq_soft_max-*"])


@pytest.mark.parametrize("settings", [{"parallel": 4, "precision": "exact"}, {"parallel": 1, "precision": "fast"}])
@pytest.mark.parametrize("error", [errors.CaptureUnsupportedError("one sequence"), errors.UnknownNodeError("no node")])
def test_attention_names_the_flags_that_it_needs(
    make_client: Any, runner: FakeRunner, settings: Any, error: Exception
) -> None:
    runner.fails_before = error
    told = post(make_client(**settings), return_attention=True)
    assert told.status_code == 400
    assert "`serve --parallel 1 --precision exact`" in told.json()["detail"]
    assert str(error) in told.json()["detail"]
    without = post(make_client(**settings)).json()["detail"]
    assert "--precision" not in without


def test_a_model_without_attention(make_client: Any, runner: FakeRunner) -> None:
    runner.fails_before = errors.UnknownNodeError("no node's name matches")
    told = post(make_client(parallel=1, precision="exact"), return_attention=True)
    assert (told.status_code, told.json()["detail"].endswith("this model computes no attention weights")) == (400, True)


def test_numbers_that_json_cannot_hold(client: TestClient, runner: FakeRunner) -> None:
    runner.change = lambda states: states.with_numbers(
        {key: np.full_like(value.array, np.nan) for key, value in states.values_by_key.items()}
    )
    told = post(client)
    assert (told.status_code, "base64" in told.json()["detail"]) == (400, True)
    values = post(client, hidden_state_format="base64").json()["hidden_states"]["-1"]
    assert np.isnan(numbers(values)).all()


def test_an_answer_is_bounded(make_client: Any, manager: FakeManager) -> None:
    per_row = N_EMBD * 4
    client = make_client(max_answer=6 * per_row)
    assert post(client, return_full_sequence=True).status_code == 200  # 5 rows and the last one
    told = post(client, return_full_sequence=True, hidden_state_layers="all")
    assert (told.status_code, "return_full_sequence" in told.json()["detail"]) == (400, True)
    # All prompts of a batch together.
    batch = {"prompts": ["a", "b"], "return_hidden_states": True, "hidden_state_layers": "all"}
    assert post(client, "/generate/batch", **batch).status_code == 200
    assert post(client, "/generate/batch", **batch | {"prompts": ["a", "b", "c"]}).status_code == 400
    assert manager.in_use == 0


ONE = {"model": "plain", "prompt": "x"}


@pytest.mark.parametrize("path", ["/generate", "/v1/generate", "/generate/stream", "/generate/batch"])
@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 8193}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"return_hidden_states": "yes"}, "return_hidden_states"),
        ({"return_attention": 1}, "return_attention"),
        ({"return_full_sequence": "no"}, "return_full_sequence"),
        ({"hidden_state_layers": "some"}, "hidden_state_layers"),
        ({"hidden_state_layers": -1}, "hidden_state_layers"),
        ({"hidden_state_layers": [0.5]}, "hidden_state_layers"),
        ({"hidden_state_format": "numpy"}, "hidden_state_format"),
        ({"loader": 5}, "loader"),
    ],
)
def test_wrong_fields(client: TestClient, runner: FakeRunner, path: str, fields: dict[str, Any], where: str) -> None:
    told = client.post(path, json=ONE | {"prompts": ["x"]} | fields)
    assert told.status_code == 422, told.text
    problems = told.json()["detail"]
    assert all(set(problem) == {"loc", "msg", "type"} for problem in problems)
    assert problems[0]["loc"][:2] == ["body", where]
    assert not runner.requests


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/generate", {"model": "plain"}, "prompt"),
        ("/generate", {"prompt": "x"}, "model"),
        ("/generate/stream", {"model": "plain", "prompt": ["x"]}, "prompt"),
        ("/generate/batch", {"model": "plain"}, "prompts"),
        ("/generate/batch", {"model": "plain", "prompts": []}, "prompts"),
        ("/generate/batch", {"model": "plain", "prompts": ["x"] * 101}, "prompts"),
        ("/generate/batch", {"model": "plain", "prompts": "x"}, "prompts"),
        ("/generate/batch", {"model": "plain", "prompts": ["x", 5]}, "prompts"),
    ],
)
def test_missing_fields(client: TestClient, path: str, body: dict[str, Any], where: str) -> None:
    told = client.post(path, json=body)
    assert (told.status_code, told.json()["detail"][0]["loc"][:2]) == (422, ["body", where])


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"'])
def test_bodies_that_are_none(client: TestClient, raw: bytes) -> None:
    told = client.post("/generate", content=raw)
    assert (told.status_code, told.json()["detail"][0]["loc"]) == (422, ["body"])


@pytest.mark.parametrize("path", ["/generate", "/generate/stream", "/generate/batch"])
@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.PromptTooLongError("5 of 4"), 400, "the input length exceeds the context length: 5 of 4"),
        (errors.EmptyPromptError("empty"), 400, "empty"),
        (errors.NotGenerativeError("an encoder"), 400, "an encoder"),
        (errors.CaptureUnsupportedError("no l_out"), 400, "Hidden state capture not supported for this model type: no"),
        (
            errors.EngineBusyError("queue full"),
            503,
            "server busy, please try again.  maximum pending requests exceeded: queue full",
        ),
        (errors.RunnerDiedError("died"), 500, "died"),
        (ZeroDivisionError("secret"), 500, "internal server error: ZeroDivisionError"),
    ],
)
def test_errors(
    client: TestClient, runner: FakeRunner, manager: FakeManager, path: str, error: Exception, status: int, text: str
) -> None:
    runner.fails_before = error
    told = client.post(path, json=ONE | {"prompts": ["x"]})
    assert told.status_code == status
    head = "prompts[0]: " if path.endswith("batch") else ""
    assert told.json()["detail"].startswith(head + text)
    assert manager.in_use == 0


def test_no_such_model(client: TestClient) -> None:
    for path in ("/generate", "/generate/stream", "/generate/batch"):
        told = client.post(path, json=ONE | {"model": "nosuch", "prompts": ["x"]})
        assert (told.status_code, told.json()) == (404, {"detail": "model 'nosuch' not found"})


def test_an_error_of_loading(client: TestClient, manager: FakeManager) -> None:
    manager.fails = errors.ModelLoadError("no memory")
    for path in ("/generate", "/generate/stream", "/generate/batch"):
        told = client.post(path, json=ONE | {"prompts": ["x"]})
        assert (told.status_code, told.json()) == (500, {"detail": "no memory"})


# -- batches ------------------------------------------------------------------------------------------------------


def test_a_batch(client: TestClient, runner: FakeRunner, manager: FakeManager) -> None:
    prompts = [f"prompt {i}" for i in range(9)]
    told = client.post("/generate/batch", json={"model": "plain", "prompts": prompts, "max_tokens": 3}).json()
    assert set(told) == {"results", "total_tokens", "total_time_ms", "prompts_processed"}
    assert (told["total_tokens"], told["prompts_processed"], len(told["results"])) == (27, 9, 9)
    assert told["total_time_ms"] > 0
    assert sorted(request.prompt.text for request in runner.requests) == prompts
    assert all(request.capture is None and request.max_tokens == 3 for request in runner.requests)
    assert set(told["results"][0]) == set(post(client).json())
    assert told["results"][0]["hidden_states"] is None
    assert manager.in_use == 0


class Slow(FakeRunner):
    """Counts how many run at once; the one that is asked first ends last."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.now = self.most = 0
        self.fails = fails
        self.cancelled: list[str] = []

    async def generate(self, request: Any) -> Any:
        text = request.prompt.text
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(50 - int(text)):
                await asyncio.sleep(0)
            if text == self.fails:
                raise errors.TokenError("a bad token")
            self.texts = [text]
            async for event in super().generate(request):
                yield event
        except BaseException:
            self.cancelled.append(text)
            raise
        finally:
            self.now -= 1


@pytest.mark.parametrize(("settings", "most"), [({}, 4), ({"parallel": 1}, 1), ({"parallel": 8, "queue": 2}, 2)])
def test_a_batch_runs_together_and_comes_back_in_order(
    make_client: Any, manager: FakeManager, settings: Any, most: int
) -> None:
    manager.runner = runner = Slow()
    prompts = [str(i) for i in range(12)]
    told = make_client(**settings).post("/generate/batch", json={"model": "plain", "prompts": prompts}).json()
    assert [result["text"] for result in told["results"]] == prompts
    assert runner.most == most


def test_one_bad_prompt_ends_its_batch(client: TestClient, manager: FakeManager) -> None:
    manager.runner = runner = Slow(fails="9")
    told = client.post("/generate/batch", json={"model": "plain", "prompts": ["0", "1", "9", "3"]})
    assert (told.status_code, told.json()) == (400, {"detail": "prompts[2]: a bad token"})
    assert sorted(runner.cancelled) == ["0", "1", "3", "9"]
    assert (runner.now, manager.in_use) == (0, 0)


async def _until_gone(app: Any, path: str, body: dict[str, Any], begun: Any) -> None:
    """A request whose client goes away when `begun` says so."""
    raw = json.dumps(body).encode()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": raw, "more_body": False}
        while not begun():
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http", "server": ("localhost", 80),
    }  # fmt: skip
    await app(scope, receive, send)


@pytest.mark.parametrize("path", ["/generate", "/generate/stream", "/generate/batch"])
def test_who_goes_away_frees_everything(
    client: TestClient, runner: FakeRunner, manager: FakeManager, path: str
) -> None:
    async def run() -> None:
        runner.hold = asyncio.Event()  # never set
        n = 4 if path.endswith("batch") else 1
        body = ONE | {"prompts": ["a"] * 6}
        await asyncio.wait_for(_until_gone(client.app, path, body, lambda: len(runner.requests) == n), 30)
        assert (runner.closed, manager.in_use) == (n, 0)

    asyncio.run(run())
