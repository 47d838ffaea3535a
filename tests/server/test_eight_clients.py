"""Eight clients at once, each with wishes of its own: everybody gets exactly their own rows.

Records are decoded here by the words of the wire format alone, not by code of the server's.
"""

from __future__ import annotations

import base64
import os
import signal
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import FIDELITY
from serving import Real, real_server, until

from loom_gguf import Capture, Model, NotCapturedError
from loom_gguf.compression import compress_rows
from loom_gguf.library import demo_path
from loom_gguf.states import States

N_TOKENS = 24
N_UBATCH = 32  # of the longer prompts several pieces, beside other clients' tokens
N_CTX = 256
TEXTS = (
    "One morning a fox",
    "The old bear was sad because the honey was gone, and so he went to the river and to the hill and to the wood, "
    "and asked everybody whom he met.",
    "Who",
    "It rained. " * 6,
    "A bird sang in the garden of the king.",
    "One morning a fox was hungry",  # begins like the first one
    "0123456789",
    "In the deep wood there lived a family of mice who loved to read.",
)


@dataclass
class Client:
    """What one client sends."""

    number: int
    wanted: dict[str, Any] | None  # expose_hidden
    stream: bool = True
    chat: bool = False
    key: str = "expose_hidden"  # how it is spelt

    @property
    def path(self) -> str:
        return "/api/chat" if self.chat else "/api/generate"

    def body(self, model: str) -> dict[str, Any]:
        options = {"temperature": 0, "num_predict": N_TOKENS, "num_thread": 1, "num_batch": N_UBATCH}
        text = TEXTS[self.number]
        body: dict[str, Any] = {"model": model, "stream": self.stream, "options": options}
        body |= {"messages": [{"role": "user", "content": text}]} if self.chat else {"prompt": text, "raw": True}
        return body if self.wanted is None else body | {self.key: self.wanted}

    @property
    def capture(self) -> Capture:
        """The same wish in the library's words."""
        wanted = self.wanted or {"layers": []}
        layers = [-1] if wanted.get("last_layer_only") else wanted.get("layers")
        ends = {"embedding": wanted.get("embedding", False), "final": wanted.get("final", False)}
        capture = Capture.all_layers(**ends) if layers is None else Capture.layers(layers, **ends)
        return capture | Capture.names(wanted["nodes"]) if wanted.get("nodes") else capture


CLIENTS = (
    Client(0, {"prompt": True}),
    Client(1, {"layers": [0, 2], "compression": "float16", "encoding": "base64", "prompt": True}, chat=True),
    Client(2, {"layers": [1], "compression": "int8", "prompt": True, "final": True}, stream=False),
    Client(3, {"compression": "int8", "scale_block": 24, "encoding": "base64", "embedding": True}, chat=True),
    Client(4, {"layers": [], "nodes": ["ffn_out-*", "l_out-1"], "encoding": "base64"}, stream=False, chat=True),
    Client(5, {"last_layer_only": True, "compression": "float16"}),
    Client(6, None),
    Client(7, {"embedding": True, "final": True, "prompt": True, "compression": "int8", "scale_block": 10},
           stream=False, key="hidden_states"),
)  # fmt: skip


def clients_of(name: str) -> list[Client]:
    """All of them; a model without a chat template has prompts only."""
    return [Client(c.number, c.wanted, c.stream, c.chat and name == "demo", c.key) for c in CLIENTS]


# -- the wire format ----------------------------------------------------------------------------------------------


def values(record: dict[str, Any]) -> np.ndarray:
    """The rows of a record as float32 (rows, ...)."""
    n, data = int(np.prod(record["shape"])), record["data"]
    if record.get("encoding", "json") == "base64":
        code = {"none": "f", "float16": "e", "int8": "b"}[record["compression"]]
        data = struct.unpack(f"<{n}{code}", base64.b64decode(data, validate=True))
    assert len(data) == n
    batch, n_rows, *row = record["shape"]
    assert batch == 1
    found = np.array(data, np.float32).reshape(n_rows, -1)
    if record["compression"] == "int8":
        assert all(float(value).is_integer() and abs(value) <= 127 for value in data)
        scales = np.array(record["scale"], np.float32).reshape(n_rows, -1)
        block = record.get("scale_block", found.shape[1])
        assert scales.shape[1] == -(-found.shape[1] // block)
        for r in range(n_rows):
            for k in range(scales.shape[1]):
                found[r, k * block : (k + 1) * block] *= scales[r, k]
    elif record["compression"] == "float16":
        assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    return found.reshape(n_rows, *row)


@dataclass
class Told:
    """What one client was told, put together."""

    text: str
    token_ids: list[int] = field(default_factory=list)  # generated
    rows: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)  # by node and position
    read: dict[int, int] = field(default_factory=dict)  # token by position


def put_together(client: Client, lines: list[dict[str, Any]]) -> Told:
    """Check what every record says of itself, and sort its rows."""
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) > 1 or not client.stream
    last = lines[-1]
    said = [line["message"]["content"] if client.chat else line["response"] for line in lines]
    told = Told("".join(said))
    n_prompt = last["prompt_eval_count"]
    made: dict[int, int] = {}
    for line in lines:
        for record in line.get("hidden_states", ()):
            rows, position = values(record), record["position"]
            assert len(record["token_ids"]) == len(rows) == record["shape"][1]
            of_layer = record["node"].startswith("l_out-")
            assert record["layer"] == (int(record["node"][len("l_out-") :]) if of_layer else None)
            if record["phase"] == "prompt":
                assert record["token_index"] is None
                assert "next_token_id" not in record
                assert position + len(rows) < n_prompt
            else:
                assert record["phase"] == "generate"
                assert len(rows) == 1
                assert position == n_prompt - 1 + record["token_index"]
                assert made.setdefault(record["token_index"], record["next_token_id"]) == record["next_token_id"]
            for r, row in enumerate(rows):
                assert told.read.setdefault(position + r, record["token_ids"][r]) == record["token_ids"][r]
                of_node = told.rows.setdefault(record["node"], {})
                assert position + r not in of_node  # each position once
                of_node[position + r] = row
    assert list(made) == list(range(len(made)))  # in order
    told.token_ids = list(made.values())
    assert len(made) == (0 if client.wanted is None else last["eval_count"])
    first = 0 if client.wanted and client.wanted.get("prompt") else n_prompt - 1
    for of_node in told.rows.values():
        assert list(of_node) == list(range(first, n_prompt - 1 + last["eval_count"]))
    return told


# -- the library's answer -------------------------------------------------------------------------------------------


@dataclass
class Expected:
    """What Model.generate gives for a client's prompt."""

    text: str
    token_ids: list[int]
    prompt: list[int]  # empty where no rows of it are wanted
    rows: dict[str, np.ndarray]  # by the name on the wire: (positions, ...), of the prompt and what was generated


@cache
def expected(name: str, number: int, *, as_asked: bool = False) -> Expected:
    """What comes for the prompt in a context of its own: all rows of everything that any client wants, or, `as_asked`,
    of what this one does. (The last block computes no rows that nobody wants, which is another schedule.)
    """
    client = clients_of(name)[number]
    capture = Capture.all_layers(embedding=True, final=True) | Capture.names(["ffn_out-*"])
    wishes: dict[str, Any] = {"capture": capture, "max_tokens": N_TOKENS, "prompt_states": True}
    if as_asked:
        wishes |= {"capture": client.capture, "prompt_states": (client.wanted or {}).get("prompt", False)}
    with Model(path(name), n_ctx=N_CTX, n_ubatch=N_UBATCH, n_threads=1, precision="exact") as model:
        message = {"role": "user", "content": TEXTS[number]}
        steps = list(model.chat([message], **wishes) if client.chat else model.generate(TEXTS[number], **wishes))
    rows: dict[str, np.ndarray] = {}
    first, before = steps[0].states, steps[0].prompt_states
    assert first is not None
    for key in first:
        generated = np.stack([step.states[key] for step in steps])
        unknown = np.full((steps[0].position, generated.shape[1]), np.nan, np.float32)
        rows[wire_name(first, key)] = np.concatenate([unknown if before is None else before[key], generated])
    prompt = [] if before is None else [*before.tokens, *first.tokens]
    return Expected("".join(step.text for step in steps), [step.token_id for step in steps], prompt, rows)


def wire_name(states: States, key: str) -> str:
    """What a record calls a node."""
    for role in ("embedding", "final"):
        with suppress(NotCapturedError):
            if np.shares_memory(states[key], getattr(states, role)):
                return role
    return key


def path(name: str) -> Any:
    return demo_path() if name == "demo" else FIDELITY / f"{name}.gguf"


# Largest difference over largest value. llama has F32 weights. demo's are F16, by which ggml multiplies activations
# that it rounds to F16 too; other tokens in the batch can turn a rounding.
BOUNDS = {
    "llama": {"none": 1e-5, "float16": 1e-3, "int8": 5e-3},
    "demo": {"none": 2e-3, "float16": 2e-3, "int8": 7e-3},
}

# -- the tests ------------------------------------------------------------------------------------------------------


def ask(real: Real, client: Client, name: str) -> Told:
    with real.stream(client.path, client.body(name)) as stream:
        assert stream.status == 200
        assert ("ndjson" in stream.content_type) == client.stream
        return put_together(client, list(stream))


def check(client: Client, told: Told, truth: Expected, bounds: dict[str, float]) -> None:
    """Texts, tokens and rows are the library's."""
    assert told.text == truth.text
    if client.wanted is None:
        assert told.rows == {}
        return
    assert told.token_ids == truth.token_ids
    if truth.prompt:
        assert all(told.read[position] == token for position, token in enumerate(truth.prompt) if position in told.read)
    n_prompt = max(told.read) + 2 - len(truth.token_ids)
    assert [told.read[n_prompt + i] for i in range(len(truth.token_ids) - 1)] == truth.token_ids[:-1]
    compression = client.wanted.get("compression", "none")
    for node, of_node in told.rows.items():
        for position, row in of_node.items():
            exact = truth.rows[node][position]
            assert np.abs(row - exact).max() <= bounds[compression] * np.abs(exact).max(), (client, node, position)


def wanted_nodes(client: Client, n_layer: int) -> set[str]:
    wanted = client.wanted
    if wanted is None:
        return set()
    layers = wanted.get("layers")
    names = {f"l_out-{il}" for il in (range(n_layer) if layers is None else layers)}
    if wanted.get("last_layer_only"):
        names = {f"l_out-{n_layer - 1}"}
    names |= {which for which in ("embedding", "final") if wanted.get(which)}
    if "nodes" in wanted:
        names |= {f"ffn_out-{il}" for il in range(n_layer)} | {"l_out-1"}
    return names


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGSTOP")
@pytest.mark.parametrize("name", ["llama", "demo"])
def test_eight_at_once(name: str) -> None:
    clients = clients_of(name)
    with real_server(FIDELITY, parallel=8, ctx=N_CTX) as real, ThreadPoolExecutor(8) as pool:
        ask(real, Client(6, None), name)
        (runner,) = real.runners
        os.kill(runner.pid, signal.SIGSTOP)  # until all of them are there: none is done before the others have come
        try:
            answers = [pool.submit(ask, real, client, name) for client in clients]
            until(lambda: runner.n_requests == 8)
        finally:
            os.kill(runner.pid, signal.SIGCONT)
        told = [answer.result() for answer in answers]
    truths = [expected(name, client.number) for client in clients]
    n_layer = sum(key.startswith("l_out-") for key in truths[0].rows)
    for client, mine, truth in zip(clients, told, truths, strict=True):
        assert set(mine.rows) == wanted_nodes(client, n_layer)
        check(client, mine, truth, BOUNDS[name])
    every_row_is_nearest_to_its_own(told, truths)


def every_row_is_nearest_to_its_own(told: list[Told], truths: list[Expected]) -> None:
    """Among all rows of all clients, nodes and positions."""
    names = [(c, node, p) for c, t in enumerate(truths) for node, rows in t.rows.items() for p in range(len(rows))]
    rows = np.concatenate([rows for truth in truths for rows in truth.rows.values()]).astype(np.float64)
    squares = (rows**2).sum(axis=1)
    number = {name: i for i, name in enumerate(names)}
    n_checked = 0
    for c, mine in enumerate(told):
        for node, of_node in mine.rows.items():
            own = np.array([number[c, node, position] for position in of_node])
            received = np.stack(list(of_node.values())).astype(np.float64)
            to_all = squares + (received**2).sum(axis=1)[:, None] - 2 * received @ rows.T
            to_own = ((received - rows[own]) ** 2).sum(axis=1)
            # Some rows are there more than once: of prompts that begin alike, of the same token's embedding.
            twins = squares + squares[own][:, None] - 2 * rows[own] @ rows.T < 1e-9 * squares[own][:, None]
            assert twins[np.arange(len(own)), own].all()
            assert twins.mean() < 0.05
            others = np.where(twins, np.inf, to_all).min(axis=1)
            assert (others > 4 * to_own).all(), (c, node)
            n_checked += len(own)
    assert n_checked > 900


def test_one_after_the_other_is_the_same_bit_for_bit() -> None:
    """In the schedule of Model.generate: a model that has read nothing yet, one request."""
    with real_server(FIDELITY, parallel=1, ctx=N_CTX) as real:
        for client in clients_of("llama"):
            if client.wanted is None:
                continue
            told, truth = ask(real, client, "llama"), expected("llama", client.number, as_asked=True)
            assert set(told.rows) == wanted_nodes(client, 3)
            assert (told.text, told.token_ids) == (truth.text, truth.token_ids)
            for node, of_node in told.rows.items():
                exact = truth.rows[node][list(of_node)]
                if (kind := client.wanted.get("compression")) is not None:
                    exact = compress_rows(exact, kind, client.wanted.get("scale_block", 0)).decompress()
                assert np.array_equal(np.stack(list(of_node.values())), exact), (client, node)
            real.post("/api/generate", {"model": "llama", "keep_alive": 0})
