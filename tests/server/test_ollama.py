"""Ollama's routes over a runner without a model."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from asking import chat, generate, lines
from fakes import FakeManager, FakeRunner
from starlette.testclient import TestClient

from loom_gguf.jobs import Finished
from loom_gguf.requests import ChatPrompt, TextPrompt

# -- the server itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_get_and_head(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")


def test_version_and_root(client: TestClient) -> None:
    assert "loom_gguf" in client.get("/").text
    assert client.get("/api/version").json()["loom_gguf"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/push"), ("POST", "/api/blobs/sha256:0")],
)
def test_what_is_not_here_says_so(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 501
    assert answer.json()["error"]


@pytest.mark.parametrize("way", ["pull", "create", "copy", "delete"])
def test_a_server_without_a_store_of_its_own(client: TestClient, way: str) -> None:
    answer = client.request("DELETE" if way == "delete" else "POST", f"/api/{way}", json={"model": "x"})
    assert answer.status_code == 400
    assert "no store of its own" in answer.json()["error"]


def test_no_such_route(client: TestClient) -> None:
    assert (client.get("/api/nothing").status_code, client.get("/api/generate").status_code) == (404, 405)
    assert client.get("/api/nothing").json() == {"error": "GET /api/nothing: not found"}


def test_tags(client: TestClient) -> None:
    models = client.get("/api/tags").json()["models"]
    assert [m["name"] for m in models] == ["Bert:latest", "Deep/Er.Q4_0:latest", "demo:latest", "plain:latest"]
    plain = models[-1]
    assert len(plain["digest"]) == 64
    assert plain["details"]["family"] == "llama"
    assert plain["details"]["quantization_level"] == "F32"
    assert plain["modified_at"].endswith("Z")


def test_tags_leaves_out_what_is_broken(client: TestClient, folder: Any) -> None:
    (folder / "broken.gguf").write_bytes(b"GGUF")
    assert len(client.get("/api/tags").json()["models"]) == 4


def test_ps(client: TestClient, manager: FakeManager) -> None:
    assert client.get("/api/ps").json() == {"models": []}
    generate(client, prompt="")
    (model,) = client.get("/api/ps").json()["models"]
    assert (model["name"], model["context_length"]) == ("plain:latest", 512)
    manager.for_ever = True
    assert client.get("/api/ps").json()["models"][0]["expires_at"].startswith("9999-")


def test_show(client: TestClient) -> None:
    shown = client.post("/api/show", json={"model": "DEMO"}).json()
    assert shown["capabilities"] == ["completion"]
    assert "<|assistant|>" in shown["template"]
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["tokenizer.ggml.tokens"] is None
    assert shown["hidden_states"]["level"] == "all"
    verbose = client.post("/api/show", json={"name": "demo", "verbose": True}).json()
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) == 1024
    assert {"name": "token_embd.weight", "type": "F16", "shape": [128, 1024]} in verbose["tensors"]
    assert client.post("/api/show", json={"model": "bert"}).json()["capabilities"] == ["embedding"]


# -- generate and chat ------------------------------------------------------------------------------------------


def test_generate_streams(client: TestClient, runner: FakeRunner, manager: FakeManager) -> None:
    *told, last = lines(generate(client))
    assert [line["response"] for line in told] == ["One", " fox", " é", "."]
    assert all(line["model"] == "plain" and line["done"] is False for line in told)
    assert (last["done"], last["done_reason"], last["response"]) == (True, "stop", "")
    assert last["context"] == [7, 8, 9, 50, 51, 52, 53, 54]
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 5)
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (250_000_000, 500_000_000)
    assert last["total_duration"] > 0
    assert manager.in_use == 0
    assert runner.closed == 1


def test_generate_in_one(client: TestClient) -> None:
    answer = generate(client, stream=False)
    assert answer.headers["content-type"].startswith("application/json")
    told = answer.json()
    assert (told["response"], told["done"], told["done_reason"], told["eval_count"]) == ("One fox é.", True, "stop", 5)


def test_chat(client: TestClient) -> None:
    *told, last = lines(chat(client))
    assert [line["message"] for line in told] == [
        {"role": "assistant", "content": text} for text in ("One", " fox", " é", ".")
    ]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["done"] is True
    assert "context" not in last
    assert "response" not in last
    assert chat(client, stream=False).json()["message"] == {"role": "assistant", "content": "One fox é."}


def test_prompts(client: TestClient, runner: FakeRunner) -> None:
    generate(client, system="Be kind.")
    generate(client, model="demo", system="Be kind.")
    generate(client, model="demo", raw=True)
    generate(client, template="{{ messages[0].content }}")
    tools = [{"type": "function", "function": {"name": "look"}}]
    call = {"function": {"name": "look", "arguments": {}}}
    chat(client, tools=tools, messages=[
        {"role": "assistant", "tool_calls": [call], "thinking": "hm"},
        {"role": "tool", "content": "5", "tool_name": "look"},
    ])  # fmt: skip
    user = {"role": "user", "content": "hi"}
    assert [request.prompt for request in runner.requests] == [
        TextPrompt("Be kind.\n\nhi"),
        ChatPrompt([{"role": "system", "content": "Be kind."}, user]),
        TextPrompt("hi"),
        ChatPrompt([user], template="{{ messages[0].content }}"),
        ChatPrompt(
            [
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", **call}],
                 "reasoning_content": "hm"},
                {"role": "tool", "content": "5", "name": "look"},
            ],
            tools=tools,
        ),
    ]  # fmt: skip


def test_options(client: TestClient, runner: FakeRunner, manager: FakeManager, caplog: Any) -> None:
    generate(client)
    given = {
        "seed": 3, "num_predict": 7, "temperature": 1, "top_k": -1, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.7,
        "repeat_last_n": -1, "repeat_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.2, "stop": "x",
        "num_ctx": 100.0, "num_gpu": 2, "num_thread": 3, "num_batch": 64, "num_keep": 3, "warp": 9, "main_gpu": None,
    }  # fmt: skip
    generate(client, options=given, format="json", top_logprobs=2, keep_alive="1h30m")
    plain, other = runner.requests
    assert (plain.max_tokens, plain.stop, plain.capture) == (None, (), None)
    s = plain.sampling
    assert (s.temperature, s.top_k, s.top_p, s.seed, s.repeat_last_n, s.logprobs) == (0.8, 40, 0.9, None, 64, None)
    assert (other.max_tokens, other.stop, other.sampling.json_schema, other.sampling.logprobs) == (7, ("x",), {}, 2)
    s = other.sampling
    assert (s.seed, s.temperature, s.top_k, s.top_p, s.min_p, s.typical_p) == (3, 1, 0, 0.5, 0.1, 0.7)
    assert (s.repeat_last_n, s.repeat_penalty, s.presence_penalty, s.frequency_penalty) == (-1, 1.2, 0.1, 0.2)
    (first, keep), (second, longer) = manager.uses
    assert (first.n_ctx, first.n_gpu_layers, first.n_threads, first.n_ubatch) == (512, -1, None, 512)  # the model's
    assert (second.n_ctx, second.n_gpu_layers, second.n_threads, second.n_ubatch) == (100, 2, 3, 64)
    assert (keep, longer) == (None, 5400)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "the option 'warp' is not known and has no effect"
    ]


def test_options_that_llama_cpp_would_not_take(client: TestClient, runner: FakeRunner, manager: FakeManager) -> None:
    assert generate(client, options={"seed": 1_790_000_000_000, "num_batch": 1}).status_code == 200
    assert runner.requests[0].sampling.seed == 1_790_000_000_000 % (2**32 - 1)
    assert manager.uses[0][0].n_ubatch == 4
    refused = generate(client, options={"num_thread": 513})
    assert (refused.status_code, "num_thread" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(10, 10), (-1, -1), ("5m", 300), ("1.5s", 1.5), ("-1m", -60), ("90", 90), ("100ms", 0.1), (0.5, 0.5)],
)
def test_keep_alive(client: TestClient, manager: FakeManager, value: Any, seconds: float) -> None:
    generate(client, keep_alive=value)
    assert manager.uses[0][1] == pytest.approx(seconds)


def test_load_and_unload(client: TestClient, manager: FakeManager) -> None:
    loaded = generate(client, prompt="").json()
    assert (loaded["response"], loaded["done"], loaded["done_reason"]) == ("", True, "load")
    assert len(manager.uses) == 1
    unloaded = chat(client, messages=[], keep_alive=0).json()
    assert (unloaded["message"]["content"], unloaded["done_reason"]) == ("", "unload")
    assert [path.name for path in manager.unloaded] == ["demo.gguf"]
    assert len(manager.uses) == 1


def test_logprobs(client: TestClient) -> None:
    told = lines(generate(client, model="demo", logprobs=True, top_logprobs=2))
    assert [line["response"] for line in told] == ["One", " fox", "", " é", ".", ""]
    (first,) = told[0]["logprobs"]
    assert (first["logprob"], len(first["top_logprobs"])) == (-0.5, 2)
    assert bytes(first["bytes"]).decode() == first["token"]
    assert first["top_logprobs"][0]["token"] == first["token"]
    whole = generate(client, model="demo", logprobs=True, stream=False).json()
    assert len(whole["logprobs"]) == 5
    assert "top_logprobs" not in whole["logprobs"][0]


def test_thoughts(client: TestClient, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    from loom_gguf.server.models import Facts

    monkeypatch.setattr(Facts, "template", property(lambda facts: "{% if enable_thinking %}<think>{% endif %}"))
    runner.texts = ["<thi", "nk>\nLet me", " see.\n</", "think>\n\nYes", "."]
    *told, last = lines(chat(client, think=True))
    assert "".join(line["message"].get("thinking", "") for line in told) == "Let me see."
    assert "".join(line["message"]["content"] for line in told) == "Yes."
    assert last["done"]
    assert runner.requests[-1].prompt.variables == {"enable_thinking": True}
    whole = generate(client, stream=False).json()
    assert (whole["thinking"], whole["response"]) == ("Let me see.", "Yes.")
    assert runner.requests[-1].prompt.variables == {}
    assert "<think>" in generate(client, stream=False, think=False).json()["response"]
    runner.prompt_text, runner.texts = "<assistant><think>\n", ["So", ".</think>", "No"]
    whole = chat(client, stream=False).json()["message"]
    assert (whole["thinking"], whole["content"]) == ("So.", "No")


def test_tool_calls(client: TestClient, runner: FakeRunner) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    runner.texts = ["Well. ", "<tool_", 'call>{"name": "look", "arguments": {"at": 1}}', "</tool_call>"]
    message = chat(client, stream=False, tools=tools).json()["message"]
    assert message["content"] == "Well. "
    assert message["tool_calls"] == [{"function": {"name": "look", "arguments": {"at": 1}}}]
    runner.texts = ['{"name": "look",', ' "parameters": {}}']
    told = lines(chat(client, tools=tools))
    assert told[0]["message"] == {
        "role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}],
    }  # fmt: skip
    assert chat(client, stream=False).json()["message"]["content"] == '{"name": "look", "parameters": {}}'


# -- embeddings -------------------------------------------------------------------------------------------------


def test_embed(client: TestClient, runner: FakeRunner) -> None:
    told = client.post("/api/embed", json={"model": "bert", "input": ["a", "b", "c"]}).json()
    assert [len(vector) for vector in told["embeddings"]] == [8, 8, 8]
    assert sum(x * x for x in told["embeddings"][0]) == pytest.approx(1)
    assert told["prompt_eval_count"] == 9
    assert all(e.normalize and e.truncate and e.pooling == "mean" for e in runner.embeds)
    assert [e.prompt.text for e in runner.embeds] == ["a", "b", "c"]
    short = client.post("/api/embed", json={"model": "plain", "input": "a", "dimensions": 3, "truncate": False}).json()
    assert len(short["embeddings"][0]) == 3
    assert sum(x * x for x in short["embeddings"][0]) == pytest.approx(1)
    assert (runner.embeds[-1].pooling, runner.embeds[-1].truncate) == ("last_token", False)
    for nothing in ("", [], None):
        assert client.post("/api/embed", json={"model": "bert", "input": nothing}).json()["embeddings"] == []


def test_embeddings(client: TestClient) -> None:
    assert client.post("/api/embeddings", json={"model": "bert", "prompt": "a"}).json() == {
        "embedding": [1, 2, 3, 4, 5, 6, 7, 8]
    }
    assert client.post("/api/embeddings", json={"model": "bert", "prompt": ""}).json() == {"embedding": []}


def test_the_log_tells_of_a_request(client: TestClient, caplog: Any) -> None:
    generate(client, expose_hidden={})
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("loom_gguf")]
    assert line.startswith("/api/generate plain: done: 3 prompt tokens, 5 generated (10.0 tok/s), 0.00 MB captured, ")


def test_shutdown_closes_the_manager(make_client: Any, manager: FakeManager) -> None:
    with make_client() as client:
        assert client.get("/").status_code == 200
        assert not manager.closed
    assert manager.closed


def test_reason_length_is_told(client: TestClient, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def events(request: Any) -> Any:
        yield Finished("length", 3, 0, 0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(runner, "generate", events)
    (last,) = lines(generate(client))
    assert last["done_reason"] == "length"
    assert "eval_count" not in last  # zeros are left out
