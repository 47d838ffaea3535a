"""Models in processes of their own: what arrives, what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import fidelity_file, open_model, random_tokens, relative_error

from loom_gguf import (
    Capture,
    CaptureError,
    ChatTemplateError,
    EmptyPromptError,
    EngineBusyError,
    GrammarError,
    LayerRangeError,
    ModelClosedError,
    ModelNotFoundError,
    NotGenerativeError,
    NotGGUFError,
    PromptError,
    PromptTooLongError,
    RunnerDiedError,
    SamplingError,
    States,
    StatesError,
    TokenError,
    errors,
)
from loom_gguf.jobs import Finished, PromptRows, Token
from loom_gguf.manager import Manager
from loom_gguf.requests import (
    ChatPrompt,
    EmbedRequest,
    GenerateRequest,
    LoadParams,
    Started,
    TextPrompt,
    TokensPrompt,
)
from loom_gguf.runner import Runner, _Inbox
from loom_gguf.sampling import Sampling
from loom_gguf.wire import WINDOW_BYTES, WINDOW_EVENTS
from loom_gguf.worker_request import Window

MUCH = Capture.names(["*_norm-*", "*ffn*", "*cur-*", "*_out-*"])
HANGS = 60  # seconds; only against waiting for ever


def params(name: str = "llama", **settings: Any) -> LoadParams:
    return LoadParams(fidelity_file(name), **({"n_ctx": 512, "n_threads": 1, "precision": "exact"} | settings))


def asking(prompt: Any, **settings: Any) -> GenerateRequest:
    return GenerateRequest(TokensPrompt(tuple(prompt)), **settings)


def go(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), HANGS))


@asynccontextmanager
async def running(name: str = "llama", **settings: Any) -> AsyncIterator[Runner]:
    runner = await Runner.start(params(name, **settings))
    try:
        yield runner
    finally:
        await runner.close()
        assert not exists(runner.pid)


async def all_of(runner: Runner, request: GenerateRequest) -> list[Any]:
    return [event async for event in runner.generate(request)]


def tokens_of(events: list[Any]) -> list[Token]:
    return [event for event in events if isinstance(event, Token)]


def exists(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return sys.platform != "linux"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def memory(pid: int | str = "self") -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_threads(pid: int) -> int:
    """Threads of a process; 0 where the system does not tell."""
    return len(list(Path(f"/proc/{pid}/task").glob("*")))


def endless(**settings: Any) -> GenerateRequest:
    """Goes on until the context is full: no token is special, so none ends it."""
    return asking(random_tokens(4), max_tokens=None, sampling=Sampling(temperature=0), **settings)


# -- what arrives -----------------------------------------------------------------------------------------------


def test_the_same_bits_as_in_this_process():
    capture = Capture.all_layers(embedding=True, final=True)
    prompt = random_tokens(40)

    async def scenario() -> None:
        async with running(n_ubatch=32) as runner:
            events = await all_of(runner, asking(prompt, capture=capture, prompt_rows=True, max_tokens=12))
        assert events[0] == Started(tuple(prompt), None)
        with open_model("llama", n_ctx=512, n_ubatch=32) as model:
            steps = list(model.generate(prompt, capture=capture, prompt_states=True, max_tokens=12))
        before = steps[0].prompt_states
        rows = [event.states for event in events if isinstance(event, PromptRows)]
        assert [p for r in rows for p in r.positions] == before.positions == list(range(39))
        assert all(np.array_equal(np.concatenate([r[key] for r in rows]), before[key]) for key in before)
        tokens = tokens_of(events)
        assert [t.token_id for t in tokens] == [s.token_id for s in steps]
        for token, step in zip(tokens, steps, strict=True):
            assert (token.text, token.index, token.position) == (step.text, step.index, step.position)
            assert set(token.states) == set(step.states)
            assert all(np.array_equal(token.states[key], step.states[key]) for key in step.states)
        last = events[-1]
        assert (last.reason, last.n_prompt, last.n_generated) == (steps[-1].finish_reason, 40, len(tokens))

    go(scenario)


def test_eight_at_once_each_get_their_own_rows(shared):
    async def scenario() -> None:
        requests = []
        for i in range(8):
            capture = (Capture.layers([i % 3]), Capture.all_layers(final=True), Capture.names(["ffn_out-*"]))[i % 3]
            kind = (None, "float16", "int8")[i % 3]
            prompt = random_tokens(5 + 11 * i, seed=i)
            requests.append(asking(prompt, capture=capture, prompt_rows=i % 2 == 0, compression=kind, max_tokens=12))
        async with running(n_parallel=4, n_ubatch=32) as runner:
            answers = await asyncio.gather(*(all_of(runner, request) for request in requests))
        for request, (started, *events, last) in zip(requests, answers, strict=True):
            assert started.tokens == request.prompt.tokens
            assert isinstance(last, Finished)
            read = [*started.tokens, *(t.token_id for t in tokens_of(events)[:-1])]
            alone = shared("llama").forward(read, request.capture)
            bound = {None: 1e-5, "float16": 1e-3, "int8": 1e-2}[request.compression]
            seen = []
            for event in events:
                states = event.states if isinstance(event.states, States) else event.states.decompress()
                assert set(states) == set(alone)
                seen += states.positions
                for key in states:
                    rows = states[key] if isinstance(event, PromptRows) else states[key][None]
                    assert relative_error(rows, alone[key][states.positions]) <= bound
            first = 0 if request.prompt_rows else len(started.tokens) - 1
            assert seen == list(range(first, len(read)))

    go(scenario)


def test_what_is_told_of_the_model(shared):
    async def scenario() -> None:
        async with running(n_ctx=100_000) as runner:
            info, model = runner.info, shared("llama")
            assert (info.arch, info.n_layer, info.n_embd) == (model.arch, model.n_layer, model.n_embd)
            assert (info.n_vocab, info.quantization) == (model.n_vocab, "F32")
            assert info.n_ctx < 100_000  # never more than the model's own
            assert info.has_text
            assert not info.encoder
            assert info.metadata["general.architecture"] == "llama"
            assert "tokenizer.ggml.tokens" not in info.metadata
            assert len(pickle.dumps(info)) < 20_000
            assert info.load_seconds > 0
            assert runner.alive
            assert runner.pid != os.getpid()
        assert not runner.alive

    go(scenario)


def test_text_and_conversations(shared):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"

    async def scenario() -> None:
        async with running() as runner:
            text = await all_of(runner, GenerateRequest(TextPrompt("Hello"), max_tokens=3))
            assert text[0] == Started(tuple(shared("llama").tokenize("Hello")), None)
            messages = [{"role": "user", "content": "Hi"}]
            chat = await all_of(runner, GenerateRequest(ChatPrompt(messages, template=template), max_tokens=3))
            assert chat[0].text == "<user>Hi"
            assert list(chat[0].tokens) == shared("llama").tokenize("<user>Hi")
            expected = [step.token_id for step in shared("llama").generate("<user>Hi", max_tokens=3)]
            assert [t.token_id for t in tokens_of(chat)] == expected
            named = ChatPrompt(messages, template="{{ mood }}{{ messages|length }}", variables={"mood": "calm"})
            assert (await all_of(runner, GenerateRequest(named, max_tokens=1)))[0].text == "calm1"

    go(scenario)


@pytest.mark.parametrize("pooling", ["mean", "last_token", "first_token", "max"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_embeddings(name: str, pooling: Any, shared):
    text = "The quick brown fox"

    async def scenario() -> None:
        async with running(name) as runner:
            for layer, normalize in (("final", True), ("embedding", False), (-1, True)):
                request = EmbedRequest(TextPrompt(text), pooling, normalize, layer)
                answer = await runner.embed(request)
                expected = shared(name).embed(text, pooling, normalize, layer)
                assert answer.vector.dtype == np.float32
                assert relative_error(answer.vector, expected) <= 1e-6
                assert answer.n_prompt == len(shared(name).tokenize(text))

    go(scenario)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_text_that_is_too_long_is_cut_where_that_is_asked_for(name: str, shared):
    async def scenario() -> None:
        async with running(name, n_ctx=16) as runner:
            n_ctx, text = runner.info.n_ctx, "one two three four five " * 20
            with pytest.raises(PromptTooLongError):
                await runner.embed(EmbedRequest(TextPrompt(text)))
            answer = await runner.embed(EmbedRequest(TextPrompt(text), truncate=True))
            assert answer.n_prompt == n_ctx
            whole = shared(name).tokenize(text)
            # BERT's text ends with [SEP], also where it is cut.
            cut = whole[:n_ctx] if name == "llama" else [*whole[: n_ctx - 1], whole[-1]]
            assert relative_error(answer.vector, shared(name).embed(cut)) <= 1e-6

    go(scenario)


def test_only_reading_a_prompt(shared):
    async def scenario() -> None:
        async with running("bert") as runner:
            request = GenerateRequest(TextPrompt("a b c"), max_tokens=0, capture=Capture.all_layers(), prompt_rows=True)
            _, rows, last = await all_of(runner, request)
            assert rows.states.tokens == shared("bert").tokenize("a b c")
            assert (last.reason, last.n_generated) == ("stop", 0)

    go(scenario)


def test_a_recurrent_model_has_one_sequence_for_all():
    async def scenario() -> None:
        async with running("mamba", n_parallel=4) as runner:
            requests = [asking(random_tokens(5, seed=i), max_tokens=5) for i in range(3)]
            answers = await asyncio.gather(*(all_of(runner, request) for request in requests))
            with open_model("mamba") as model:
                for request, events in zip(requests, answers, strict=True):
                    expected = [step.token_id for step in model.generate(request.prompt.tokens, max_tokens=5)]
                    assert [t.token_id for t in tokens_of(events)] == expected

    go(scenario)


# -- what is wrong ------------------------------------------------------------------------------------------------


def test_every_error_survives_the_pipe():
    for name in errors.__all__:
        error = getattr(errors, name)("what is wrong: 'it'", *())
        again = pickle.loads(pickle.dumps(error, protocol=5))
        assert type(again) is type(error)
        assert str(again) == "what is wrong: 'it'"


WRONG = {
    "empty": (asking([]), EmptyPromptError, "empty"),
    "too long": (asking([1] * 513), PromptTooLongError, "513 tokens"),
    "no token": (asking([1, 99_999]), TokenError, "99999"),
    "no layer": (asking([1], capture=Capture.layers([77])), LayerRangeError, "77"),
    "no grammar": (asking([1], sampling=Sampling(grammar="root := nonsense")), GrammarError, "gramm"),
    "negative": (asking([1], max_tokens=-1), SamplingError, "max_tokens"),
    "rows of nothing": (asking([1], prompt_rows=True), CaptureError, "which nodes"),
    "compression": (asking([1], compression="zip"), StatesError, "zip"),
    "stop": (asking([1], stop=("",)), SamplingError, "stop"),
    "no template": (GenerateRequest(ChatPrompt([{"role": "user", "content": ""}])), ChatTemplateError, "template"),
}


def nested(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"a": made}
    return made


def test_what_is_wrong_with_a_request_arrives_as_itself():
    async def scenario() -> None:
        async with running() as runner:
            for request, kind, text in WRONG.values():
                with pytest.raises(kind, match=text) as caught:
                    await all_of(runner, request)
                assert type(caught.value) is kind
            with pytest.raises(PromptError, match="pooling"):
                await runner.embed(EmbedRequest(TextPrompt("x"), pooling="median"))  # type: ignore[arg-type]
            with pytest.raises(CaptureError, match="layer"):
                await runner.embed(EmbedRequest(TextPrompt("x"), layer="middle"))  # type: ignore[arg-type]
            with pytest.raises(errors.LoomError, match="unexpected"):  # not foreseen, and told all the same
                await all_of(runner, GenerateRequest(None))  # type: ignore[arg-type]
            with pytest.raises(PromptError, match="nested too deep"):
                await all_of(runner, GenerateRequest(ChatPrompt([{"role": "user"}], tools=[nested(1000)])))
            assert runner.n_requests == 0
            assert isinstance((await all_of(runner, asking([1], max_tokens=2)))[-1], Finished)
        async with running("bert") as runner:
            with pytest.raises(NotGenerativeError, match="encoder"):
                await all_of(runner, asking([5]))

    go(scenario)


def test_a_file_that_cannot_be_loaded(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"PK\x03\x04 and more")

    async def scenario() -> None:
        with pytest.raises(NotGGUFError, match="convert_hf_to_gguf"):
            await Runner.start(LoadParams(bad))
        with pytest.raises(ModelNotFoundError, match="check the path"):
            await Runner.start(LoadParams(tmp_path / "none.gguf"))

    go(scenario)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_a_load_that_fails_leaves_no_open_file(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"PK\x03\x04 and more")

    async def scenario() -> None:
        kept = []  # as whoever reports an error may
        for _ in range(2):  # the first one starts multiprocessing's helper, which stays
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(NotGGUFError) as error:
                await Runner.start(LoadParams(bad))
            kept.append(error.value)
        assert len(os.listdir("/proc/self/fd")) == before

    go(scenario)


def test_too_many_wait():
    async def scenario() -> None:
        async with running(n_parallel=1, max_waiting=2) as runner:
            async with aclosing(runner.generate(endless())) as first:
                assert isinstance(await anext(first), Started)
                assert isinstance(await anext(first), Token)
                waiting = [aclosing(runner.generate(asking([1], max_tokens=1))) for _ in range(2)]
                others = [await stack.__aenter__() for stack in waiting]
                for other in others:
                    assert isinstance(await anext(other), Started)
                with pytest.raises(EngineBusyError, match="2 requests"):
                    await all_of(runner, asking([1]))
                assert runner.n_requests == 3
            for other in others:
                assert [type(e) async for e in other] == [Token, Finished]

    go(scenario)


# -- readers that are slow, or leave -------------------------------------------------------------------------------


def test_a_reader_that_leaves_frees_its_sequence():
    async def scenario() -> None:
        async with running(n_parallel=1) as runner:
            for n in (1, 3, 60):  # at once, early, and behind a full window
                async with aclosing(runner.generate(endless())) as events:
                    for _ in range(n):
                        await anext(events)
                assert runner.n_requests == 0
                assert isinstance((await all_of(runner, asking([1], max_tokens=2)))[-1], Finished)
            task = asyncio.create_task(runner.embed(EmbedRequest(TextPrompt("x"))))
            await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert runner.n_requests == 0
            assert isinstance((await all_of(runner, asking([1], max_tokens=2)))[-1], Finished)

    go(scenario)


async def leave_at_once(runner: Runner) -> None:
    async with aclosing(runner.generate(endless())) as events:
        assert isinstance(await anext(events), Started)


def test_a_request_that_waits_for_a_sequence_can_be_given_up():
    async def scenario() -> None:
        async with running(n_parallel=1, max_waiting=1) as runner:
            n_threads = count_threads(runner.pid)
            async with aclosing(runner.generate(endless())) as working:  # and stalled: nothing else moves the engine
                await anext(working)
                await anext(working)
                for _ in range(3):
                    await leave_at_once(runner)
            await all_of(runner, asking([1], max_tokens=2))
            await until(lambda: count_threads(runner.pid) <= n_threads)

    go(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_readers_that_stand_still_cost_no_memory_and_nobody_time():
    n = 12

    async def scenario() -> None:
        async with running(n_parallel=n + 1) as runner:
            one = (await all_of(runner, asking([1], capture=MUCH, max_tokens=1)))[1]
            size = len(pickle.dumps(one, protocol=5))
            n_threads = count_threads(runner.pid)
            before = memory(), memory(runner.pid)
            stalled = [runner.generate(endless(capture=MUCH)) for _ in range(n)]
            for events in stalled:
                assert isinstance(await anext(events), Started)
                assert isinstance(await anext(events), Token)
            for seed in range(4):
                events = await all_of(runner, asking(random_tokens(5, seed=seed), max_tokens=100))
                assert isinstance(events[-1], Finished)
            assert all(len(inbox) <= WINDOW_EVENTS for inbox in runner._inboxes.values())
            grown = max(memory() - before[0], memory(runner.pid) - before[1])
            # Their 500 tokens' rows, unread, would take three times what is allowed here.
            assert grown < n * 500 * size / 3
            # They have lost nothing.
            async with aclosing(stalled.pop()) as events:
                rest = [event async for event in events]
            assert [t.index for t in tokens_of(rest)] == list(range(1, len(tokens_of(rest)) + 1))
            assert len(tokens_of(rest)) > 400
            assert isinstance(rest[-1], Finished)
            for events in stalled:
                await events.aclose()
            await until(lambda: count_threads(runner.pid) <= n_threads)

    go(scenario)


def test_a_window_is_of_events_and_of_bytes():
    """The child's window and the parent's acknowledgements never wait for each other, whatever the sizes."""

    async def scenario() -> None:
        window = Window()
        inbox = _Inbox(window.free)
        sizes = [1] * 40 + [WINDOW_BYTES // 2] * 5 + [3 * WINDOW_BYTES] * 3 + [1, WINDOW_BYTES - 1] * 10 + [1] * 40
        sent: list[int] = []

        def send() -> None:
            for size in sizes:
                assert window.wait_for_room(size)
                sent.append(size)
                loop.call_soon_threadsafe(inbox.put, Started((), None), size)

        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(asyncio.to_thread(send))
        taken = 0
        for i in range(len(sizes)):
            await inbox.take()
            taken += sizes[i]
            assert len(sent) <= i + 1 + WINDOW_EVENTS
            assert sum(sent) - taken < WINDOW_BYTES + max(sizes)
        await sending
        # Nobody takes any more: a full window stays full, until it is closed.
        full = asyncio.create_task(asyncio.to_thread(window.wait_for_room, WINDOW_BYTES))
        assert await full
        waiting = asyncio.create_task(asyncio.to_thread(window.wait_for_room, 1))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        window.close()
        assert not await waiting

    go(scenario)


# -- how it ends ------------------------------------------------------------------------------------------------


async def drain(events: AsyncIterator[Any]) -> None:
    async for _ in events:
        pass


async def killed(request: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(RunnerDiedError, match=r"llama\.gguf ended \(SIGKILL.*next request loads it again"):
        await request


def test_killed_in_mid_stream_each_request_gets_one_error_and_the_next_loads_again():
    exits = []

    async def load(wanted: LoadParams) -> Runner:
        return await Runner.start(wanted, on_exit=exits.append)

    async def scenario() -> None:
        manager = Manager(load)
        other = params("llama-f16")
        async with manager.use(other) as bystander:
            beside = asyncio.create_task(all_of(bystander, endless()))
            async with manager.use(params(n_parallel=2)) as runner:
                streams = [runner.generate(endless()) for _ in range(2)]
                for events in streams:
                    for _ in range(3):
                        await anext(events)
                queued = asyncio.create_task(all_of(runner, endless()))
                await until(lambda: runner.n_requests == 3)
                os.kill(runner.pid, signal.SIGKILL)
                for events in streams:
                    await killed(drain(events))
                    with pytest.raises(StopAsyncIteration):
                        await anext(events)
                await killed(queued)
                await killed(all_of(runner, asking([1])))
                assert not runner.alive
            assert exits == [runner]
            async with manager.use(params(n_parallel=2)) as again:
                assert again.pid != runner.pid
                assert isinstance((await all_of(again, asking([1], max_tokens=2)))[-1], Finished)
            assert isinstance((await beside)[-1], Finished)
        await manager.close()
        assert not exists(bystander.pid)
        assert len(exits) == 3

    go(scenario)


def test_killed_while_it_reads_a_prompt():
    async def scenario() -> None:
        runner = await Runner.start(params(n_ubatch=4))
        # Over a hundred pieces, of which a reader that stands still lets only a window's be computed.
        prompt = random_tokens(500)
        events = runner.generate(asking(prompt, max_tokens=1, capture=MUCH, prompt_rows=True))
        assert isinstance(await anext(events), Started)
        assert isinstance(await anext(events), PromptRows)
        os.kill(runner.pid, signal.SIGKILL)
        await killed(drain(events))
        await runner.close()

    go(scenario)


def test_killed_while_it_loads(monkeypatch):
    started, exits = [], []
    begin = Runner._start_process

    def kill_at_once(self: Runner) -> Any:
        connection = begin(self)
        os.kill(self.pid, signal.SIGKILL)
        started.append(self.pid)
        return connection

    async def scenario() -> None:
        manager = Manager(lambda wanted: Runner.start(wanted, on_exit=exits.append))
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "_start_process", kill_at_once)
            found = await asyncio.gather(*(use(manager) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in found] == [RunnerDiedError] * 3
        assert "while it loaded" in str(found[0])
        assert len(started) == 1
        assert exits == []
        await use(manager)
        await manager.close()

    async def use(manager: Manager) -> None:
        async with manager.use(params()) as runner:
            assert isinstance((await all_of(runner, asking([1], max_tokens=1)))[-1], Finished)

    go(scenario)


def test_closing_with_requests_under_way():
    async def scenario() -> None:
        runner = await Runner.start(params(n_parallel=1))
        tasks = [asyncio.create_task(all_of(runner, endless())) for _ in range(3)]
        await until(lambda: runner.n_requests == 3)
        await asyncio.gather(runner.close(), runner.close())
        for task in tasks:
            with pytest.raises(ModelClosedError, match="unloaded"):
                await task
        with pytest.raises(ModelClosedError):
            await all_of(runner, asking([1]))
        await runner.close()
        assert not runner.alive
        assert not exists(runner.pid)

    go(scenario)


def test_a_process_that_does_not_listen_is_killed():
    async def scenario() -> None:
        runner = await Runner.start(params())
        os.kill(runner.pid, signal.SIGSTOP)
        request = asyncio.create_task(all_of(runner, asking([1])))
        await until(lambda: runner.n_requests == 1)
        await runner.close(timeout=0.05)
        assert not exists(runner.pid)
        with pytest.raises(ModelClosedError):
            await request

    go(scenario)


def test_ctrl_c_is_for_the_parent():
    async def scenario() -> None:
        async with running() as runner:
            os.kill(runner.pid, signal.SIGINT)
            assert isinstance((await all_of(runner, asking([1], max_tokens=2)))[-1], Finished)

    go(scenario)


def test_who_gives_up_during_a_load_leaves_no_process(monkeypatch):
    runners = []
    begin = Runner._start_process

    def note(self: Runner) -> Any:
        runners.append(self)
        return begin(self)

    monkeypatch.setattr(Runner, "_start_process", note)

    async def scenario() -> None:
        task = asyncio.create_task(Runner.start(params()))
        await until(lambda: bool(runners) and hasattr(runners[0], "pid"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not exists(runners[0].pid)

    go(scenario)


PARENT = """
import asyncio, sys
from pathlib import Path
from loom_gguf.requests import GenerateRequest, LoadParams, TokensPrompt
from loom_gguf.runner import Runner, _Inbox

async def main():
    runner = await Runner.start(LoadParams(Path(sys.argv[1]), n_ctx=512, n_threads=1))
    events = runner.generate(GenerateRequest(TokensPrompt((1, 2, 3))))
    await anext(events), await anext(events)
    print(runner.pid, flush=True)
    await asyncio.sleep(3600)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_child_ends_with_its_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(fidelity_file("llama"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        line = parent.stdout.readline()
        parent.kill()
        assert parent.stdout.read() == ""
    pid, deadline = int(line), time.monotonic() + HANGS
    while exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
