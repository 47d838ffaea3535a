"""OpenAI's own Python client against a real server with a runner that has no model, and one with a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fakes import N_EMBD, FakeManager, FakeRunner, row
from serving import serving, until
from starlette.testclient import TestClient

from loom_gguf import Capture, Model
from loom_gguf.errors import ModelClosedError, NotGenerativeError, PromptTooLongError
from loom_gguf.library import demo_path
from loom_gguf.manager import Manager
from loom_gguf.requests import ChatPrompt, TextPrompt, TokensPrompt
from loom_gguf.runner import Runner
from loom_gguf.server.models import Facts, Models
from loom_gguf.server.services import Services
from loom_gguf.settings import ServerSettings

HI: list[Any] = [{"role": "user", "content": "hi"}]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"]},
    },
}


@pytest.fixture
def address(manager: FakeManager, folder: Path) -> Iterator[str]:
    with serving(Services(Models(folder), manager, ServerSettings())) as address:
        yield address


@pytest.fixture
def openai_client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


# -- chat ---------------------------------------------------------------------------------------------------------


def test_chat(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    told = openai_client.chat.completions.create(model="demo", messages=HI)
    assert told.object == "chat.completion"
    assert told.model == "demo"
    assert told.choices[0].message.content == "One fox é."
    assert told.choices[0].finish_reason == "stop"
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (3, 5, 8)
    sent = runner.requests[0]
    assert isinstance(sent.prompt, ChatPrompt)
    assert sent.capture is None
    assert (sent.sampling.temperature, sent.sampling.top_p, sent.sampling.top_k) == (1.0, 1.0, 0)
    assert sent.max_tokens is None


def test_chat_streamed(openai_client: openai.OpenAI) -> None:
    chunks = list(
        openai_client.chat.completions.create(
            model="demo", messages=HI, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "One fox é."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/api/generate", "/generate/stream"])
def test_no_proxy_holds_pieces_of_a_stream_back(client: TestClient, path: str) -> None:
    told = client.post(path, json={"model": "demo", "messages": HI, "prompt": "x", "stream": True})
    assert told.status_code == 200
    assert (told.headers["cache-control"], told.headers["x-accel-buffering"]) == ("no-cache", "no")


def test_async_clients_at_once(address: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(model="demo", messages=HI, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one() for _ in range(8)))

    assert asyncio.run(ask()) == ["One fox é."] * 8


def test_what_a_request_says_reaches_the_model(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    openai_client.chat.completions.create(
        model="demo", messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 3}'}}
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "a fox"},
        ],
        temperature=0.5, top_p=0.25, frequency_penalty=0.1, presence_penalty=0.2, seed=-1, stop=["x", "y"],
        max_completion_tokens=7, logprobs=True, top_logprobs=2, tools=[LOOK],  # type: ignore[list-item]
        response_format={"type": "json_object"}, extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )  # fmt: skip
    sent = runner.requests[0]
    assert isinstance(sent.prompt, ChatPrompt)
    assert sent.prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": 3}}}
        ]},
        {"role": "tool", "content": "a fox", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert sent.prompt.tools == [LOOK]
    assert sent.prompt.variables == {"enable_thinking": False}
    chosen = sent.sampling
    assert (chosen.temperature, chosen.top_p, chosen.frequency_penalty, chosen.presence_penalty) == (
        0.5,
        0.25,
        0.1,
        0.2,
    )
    assert (chosen.seed, chosen.logprobs, chosen.json_schema, chosen.repeat_last_n) == (2**32 - 2, 2, {}, -1)
    assert (sent.max_tokens, sent.stop) == (7, ("x", "y"))


def test_calls_of_tools(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    runner.texts = ["<tool_", 'call>{"name": "look", "arguments": {"at": 3}}', "</tool_call>"]
    told = openai_client.chat.completions.create(model="demo", messages=HI, tools=[LOOK])  # type: ignore[list-item]
    assert told.choices[0].finish_reason == "tool_calls"
    assert told.choices[0].message.content is None
    (call,) = told.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": 3})
    with openai_client.chat.completions.stream(model="demo", messages=HI, tools=[LOOK]) as stream:  # type: ignore[list-item]
        final = stream.get_final_completion()  # put together by the client's own accumulator
    (call,) = final.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": 3})


def test_a_tool_that_must_be_called(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    runner.texts = ['{"name": "look", ', '"arguments": {"at": 3}}']
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        told = openai_client.chat.completions.create(
            model="demo",
            messages=HI,
            tools=[LOOK],
            tool_choice=choice,  # type: ignore[call-overload]
        )
        assert told.choices[0].message.tool_calls[0].function.name == "look"
    schema = runner.requests[-1].sampling.json_schema
    assert isinstance(schema, dict)
    assert schema["anyOf"][0]["properties"]["name"] == {"const": "look"}
    openai_client.chat.completions.create(model="demo", messages=HI, tools=[LOOK], tool_choice="none")  # type: ignore[list-item]
    assert isinstance(prompt := runner.requests[-1].prompt, ChatPrompt)
    assert prompt.tools is None


def test_a_tool_that_must_be_called_may_define_types(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    """References in its parameters, as pydantic writes them, still point to what they pointed to."""
    place = {"type": "object", "properties": {"x": {"const": 5}}, "required": ["x"]}
    parameters = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Place"}, "more": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["at"],
        "$defs": {"Place": place},
    }
    go: Any = {"type": "function", "function": {"name": "go", "parameters": parameters}}
    openai_client.chat.completions.create(model="demo", messages=HI, tools=[LOOK, go], tool_choice="required")  # type: ignore[list-item]
    gbnf = runner.requests[-1].sampling.gbnf
    assert gbnf is not None
    assert '"5"' in gbnf


def test_log_probabilities(openai_client: openai.OpenAI) -> None:
    told = openai_client.chat.completions.create(model="demo", messages=HI, logprobs=True, top_logprobs=2)
    assert told.choices[0].logprobs is not None
    content = told.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 5
    assert content[0].logprob == -0.5
    assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -1.5]
    chunks = list(openai_client.chat.completions.create(model="demo", messages=HI, logprobs=True, stream=True))
    told_of = [c for chunk in chunks if chunk.choices[0].logprobs for c in chunk.choices[0].logprobs.content or []]
    assert len(told_of) == 5


def test_thoughts_are_no_content(
    openai_client: openai.OpenAI, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Facts, "can_think", True)
    runner.texts = ["<think>", "hm", "</think>", "Yes."]
    told = openai_client.chat.completions.create(model="demo", messages=HI)
    assert told.choices[0].message.content == "Yes."
    assert told.choices[0].message.reasoning_content == "hm"  # type: ignore[attr-defined]


# -- The Loom's keys ----------------------------------------------------------------------------------------------


def test_hidden_states_beside_openais_keys(client: TestClient) -> None:
    asked = {"model": "demo", "messages": HI, "return_hidden_states": True}
    told = client.post("/v1/chat/completions", json=asked).json()
    assert told["text"] == told["choices"][0]["message"]["content"] == "One fox é."
    assert told["hidden_state"]["shape"] == [1, N_EMBD]
    assert (told["hidden_state"]["layer"], told["hidden_state"]["dtype"]) == (-1, "float32")
    np.testing.assert_array_equal(np.float32(told["hidden_state"]["final"][0]), row("result_norm", 2 + 4))
    assert told["metadata"]["model"] == "demo"
    assert told["metadata"]["tokens_per_second"] == 10.0
    assert told["metadata"]["latency_ms"] > 0
    streamed = client.post("/v1/chat/completions", json=asked | {"stream": True}).text
    ends = [line for line in streamed.splitlines() if "hidden_state" in line]
    assert len(ends) == 1
    assert json.loads(ends[0].removeprefix("data: "))["hidden_state"] == told["hidden_state"]


@pytest.mark.parametrize("default", [True, False])
def test_one_setting_says_whether_chats_have_hidden_states(make_client: Any, default: bool) -> None:
    client = make_client(chat_hidden_states=default)
    asked = {"model": "demo", "messages": HI}
    told = client.post("/v1/chat/completions", json=asked).json()
    assert ("hidden_state" in told) == ("text" in told) == ("metadata" in told) == default
    other = client.post("/v1/chat/completions", json=asked | {"return_hidden_states": not default}).json()
    assert ("hidden_state" in other) == (not default)


# -- completions --------------------------------------------------------------------------------------------------


def test_completions(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    told = openai_client.completions.create(model="plain", prompt="hi", max_tokens=3, logprobs=2)
    assert (told.object, told.choices[0].text, told.choices[0].finish_reason) == ("text_completion", "One fox", "stop")
    logprobs = told.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == [-0.5] * 3
    assert len(logprobs.tokens or []) == len(logprobs.text_offset or []) == len(logprobs.top_logprobs or []) == 3
    assert runner.requests[0].prompt == TextPrompt("hi")
    openai_client.completions.create(model="plain", prompt=[1, 2])
    assert runner.requests[1].prompt == TokensPrompt((1, 2))
    assert runner.requests[1].max_tokens == 16


def test_several_prompts_in_order(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    told = openai_client.completions.create(model="plain", prompt=["a", "b", "c", "d", "e", "f"], echo=True)
    assert [choice.index for choice in told.choices] == list(range(6))
    assert [choice.text for choice in told.choices] == [f"{letter}One fox é." for letter in "abcdef"]
    assert told.usage is not None
    assert told.usage.total_tokens == 6 * 8
    chunks = list(openai_client.completions.create(model="plain", prompt=[[1, 2], [3]], stream=True))
    for index in range(2):
        assert "".join(c.choices[0].text for c in chunks if c.choices[0].index == index) == "One fox é."


# -- the rest -----------------------------------------------------------------------------------------------------


def test_embeddings(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    wanted = np.arange(1, N_EMBD + 1) / np.linalg.norm(np.arange(1, N_EMBD + 1))
    for more in ({}, {"encoding_format": "float"}):  # the client itself asks for base64 where nothing is said
        told = openai_client.embeddings.create(model="bert", input=["a", "b"], **more)  # type: ignore[arg-type]
        assert [each.index for each in told.data] == [0, 1]
        np.testing.assert_allclose(told.data[1].embedding, wanted, rtol=1e-6)
    assert told.usage.prompt_tokens == 6
    short = openai_client.embeddings.create(model="bert", input=[1, 2], dimensions=3)
    np.testing.assert_allclose(short.data[0].embedding, wanted[:3] / np.linalg.norm(wanted[:3]), rtol=1e-6)
    assert runner.embeds[-1].prompt == TokensPrompt((1, 2))


def test_models(openai_client: openai.OpenAI, folder: Path) -> None:
    (folder / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    names = [model.id for model in openai_client.models.list()]
    assert "demo:latest" in names
    assert "broken:latest" not in names
    assert openai_client.models.retrieve("Deep/Er.Q4_0").id == "Deep/Er.Q4_0:latest"
    with pytest.raises(openai.NotFoundError, match="model 'nosuch' not found"):
        openai_client.models.retrieve("nosuch")


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("chat/completions", {}, "messages"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "role"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ("chat/completions", {"messages": HI, "n": 2}, "n must be 1"),
        ("chat/completions", {"messages": HI, "temperature": 3}, "temperature"),
        ("chat/completions", {"messages": HI, "temperature": "hot"}, "temperature"),
        ("chat/completions", {"messages": HI, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"messages": HI, "logit_bias": {"1": 2}}, "logit_bias"),
        ("chat/completions", {"messages": HI, "tools": [{}]}, "tools"),
        ("chat/completions", {"messages": HI, "tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {"messages": HI, "response_format": {"type": "json_schema"}}, "json_schema"),
        ("chat/completions", {"messages": HI, "expose_hidden": {}}, "return_hidden_states"),
        ("completions", {}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("completions", {"prompt": "x", "best_of": 2}, "best_of"),
        ("completions", {"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": "x", "dimensions": 0}, "dimensions"),
        ("embeddings", {"input": "x", "encoding_format": "float16"}, "encoding_format"),
    ],
)
def test_what_is_refused(client: TestClient, path: str, fields: dict[str, Any], words: str) -> None:
    answer = client.post(f"/v1/{path}", json={"model": "demo", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error["message"] + str(error["param"])
    assert error["type"] == "invalid_request_error"
    assert answer.json()["detail"] == error["message"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PromptTooLongError("long"), openai.BadRequestError),
        (NotGenerativeError("an encoder"), openai.BadRequestError),
        (ModelClosedError("later"), openai.InternalServerError),
        (RuntimeError("wires"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_before_the_first_byte(
    openai_client: openai.OpenAI, runner: FakeRunner, error: Exception, kind: type[Exception], stream: bool
) -> None:
    runner.fails_before = error
    with pytest.raises(kind):
        openai_client.chat.completions.create(model="demo", messages=HI, stream=stream)  # type: ignore[call-overload]


def test_an_error_in_mid_stream(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    runner.fails_after, runner.error = 2, ModelClosedError("it was unloaded")
    stream = openai_client.chat.completions.create(model="demo", messages=HI, stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError, match="it was unloaded"):
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(texts) == "One fox"


def test_a_reader_that_leaves(openai_client: openai.OpenAI, runner: FakeRunner) -> None:
    runner.texts = ["x"] * 100_000
    with openai_client.chat.completions.create(model="demo", messages=HI, stream=True) as stream:
        next(iter(stream))
    until(lambda: runner.closed == 1)


# -- with a model -------------------------------------------------------------------------------------------------


def test_the_demo_model() -> None:
    settings = ServerSettings(ctx=256, precision="exact", parallel=1)
    with serving(Services(Models(), Manager(Runner.start), settings)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        told = client.chat.completions.create(
            model="demo", messages=HI, temperature=0, max_tokens=6, extra_body={"return_hidden_states": True}
        )
        schema = {"type": "object", "properties": {"fox": {"enum": ["red"]}}, "required": ["fox"]}
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        formed = client.chat.completions.create(model="demo", messages=HI, temperature=0, response_format=form)
        assert json.loads(formed.choices[0].message.content or "") == {"fox": "red"}
        vector = client.embeddings.create(model="demo", input="The fox").data[0].embedding
    with Model(demo_path(), n_ctx=256, precision="exact") as model:
        steps = list(model.chat(HI, capture=Capture.layers([], final=True), max_tokens=6))
        assert told.choices[0].message.content == "".join(step.text for step in steps)
        final = steps[-1].states
        assert final is not None
        np.testing.assert_allclose(told.hidden_state["final"][0], final.final, rtol=1e-5, atol=1e-5)  # type: ignore[attr-defined]
        np.testing.assert_allclose(vector, model.embed("The fox", pooling="last_token"), rtol=1e-4, atol=1e-5)
