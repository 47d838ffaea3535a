"""Requests of all kinds, drawn at random: request i of a seed is always the same one.

A new route is one line in KINDS; `posted` and `fetched` make the simple ones.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import numpy as np
import soak_answers as answers
from soak_answers import Asked, require
from soak_client import Answer, Manner
from soak_reference import NODE, TEXTS, References, Subject

_ERA = 60  # requests after which others of the models are the popular ones
_POPULAR = 2
_LOYAL = 0.95  # share of requests to the popular ones
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "owl"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Ask:
    """A request and what may come of it."""

    method: str
    path: str
    body: bytes | None = None
    check: Callable[[Answer], None] = lambda _: None  # of an answer with the status 200; raises Wrong
    statuses: frozenset[int] = frozenset({200})
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """What requests are made of, for one request."""

    references: References
    subject: Subject  # the model to ask
    generative: Subject  # it, or one that generates
    chatting: Subject | None  # one that has a chat template, where that may be asked


Make = Callable[[Random, World], Ask]


@dataclass(frozen=True)
class Kind:
    name: str
    weight: float
    make: Make
    chats: bool = False  # asks a model that has a chat template


@dataclass(frozen=True)
class Plan:
    """A request, how the client behaves, and what else happens then."""

    number: int
    kind: str
    ask: Ask
    manner: Manner
    pause: float  # seconds before it
    kill: float | None  # seconds after its beginning at which a model's process is killed

    def __str__(self) -> str:
        body = (self.ask.body or b"").decode("utf-8", "replace")
        kill = "" if self.kill is None else f", a kill after {self.kill:.2f} s"
        return f"#{self.number} {self.kind}: {self.ask.method} {self.ask.path} {body:.1500} {self.manner}{kill}"


def post(path: str, body: Any, check: Callable[[Answer], None], **fields: Any) -> Ask:
    return Ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), check, **fields)


def posted(path: str, make_body: Callable[[Random, World], Any], *keys: str) -> Make:
    """Requests whose answer is an object with these keys."""
    return lambda random, world: post(path, make_body(random, world), answers.keys(*keys))


def fetched(path: str, *keys: str, method: str = "GET") -> Make:
    """The same of a route that takes no body."""
    check = answers.keys(*keys) if keys else lambda _: None
    return lambda random, world: Ask(method, path.replace("MODEL", world.subject.name), None, check)


# -- Ollama -------------------------------------------------------------------------------------------------------


def generate(random: Random, world: World) -> Ask:
    subject, text = world.generative, random.choice(TEXTS)
    raw = not subject.chats or random.random() < 0.7
    asked, body = _generation(random, world, subject, text, "generate", "text" if raw else "chat")
    return post("/api/generate", body | {"prompt": text, "raw": raw}, partial(answers.generation, asked))


def chat(random: Random, world: World) -> Ask:
    assert world.chatting is not None
    text = random.choice(TEXTS)
    asked, body = _generation(random, world, world.chatting, text, "chat", "chat")
    messages = [{"role": "user", "content": text}]
    return post("/api/chat", body | {"messages": messages}, partial(answers.generation, asked))


def _generation(
    random: Random, world: World, subject: Subject, text: str, way: str, how: Any
) -> tuple[Asked, dict[str, Any]]:
    """What /api/generate and /api/chat have in common."""
    greedy = random.random() < 0.7
    n_predict = random.choice([0, 1, 2, 5, 8, 12, 16, 20]) if random.random() < 0.95 else 180
    options: dict[str, Any] = {"num_predict": n_predict}
    options |= {"temperature": 0} if greedy else {"temperature": 0.9, "seed": random.randrange(1000)}
    if random.random() < 0.01:
        options["num_ctx"] = random.choice([224, 240])  # loads the model anew
    body: dict[str, Any] = {"model": subject.name, "stream": random.random() < 0.6}
    schema = _SCHEMA if random.random() < 0.06 else None
    if schema:
        body["format"] = schema
    stop = ["e"] if random.random() < 0.08 else []
    if stop:
        options["stop"] = stop
    logprobs = random.choice([0, 3]) if random.random() < 0.15 else None
    if logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": logprobs}
    hidden = _hidden(random, subject) if random.random() < 0.55 else None
    if hidden is not None:
        body["expose_hidden"] = hidden
    if (keep_alive := _keep_alive(random)) is not None:
        body["keep_alive"] = keep_alive
    asked = Asked(
        subject.name,
        way,
        body["stream"],
        n_predict,
        world.references.answer(subject.name, how, text),
        greedy=greedy,
        hidden=hidden,
        wanted=frozenset() if hidden is None else answers.nodes_wanted(hidden, subject.n_layer),
        logprobs=logprobs,
        schema=schema,
        stop=stop,
    )
    return asked, body | {"options": options}


def _hidden(random: Random, subject: Subject) -> dict[str, Any]:
    """`expose_hidden`: of all sorts, always with something in it."""
    layers = random.choice([None, None, [0], [subject.n_layer - 1, 0], []])
    hidden: dict[str, Any] = {} if layers is None else {"layers": layers}
    if random.random() < 0.15:
        hidden["last_layer_only"] = True
    for name in ("embedding", "final", "prompt"):
        if random.random() < 0.4 or (name == "final" and layers == []):
            hidden[name] = True
    if random.random() < 0.25:
        hidden["nodes"] = [NODE]
    if random.random() < 0.5:
        hidden["compression"] = random.choice(["none", "float16", "int8"])
        if hidden["compression"] == "int8" and random.random() < 0.5:
            hidden["scale_block"] = 32
    if random.random() < 0.5:
        hidden["encoding"] = random.choice(["json", "base64"])
    return hidden


def _keep_alive(random: Random) -> Any:
    return random.choice([0, -1, "300ms", "5m", 1]) if random.random() < 0.12 else None


def load_or_unload(random: Random, world: World) -> Ask:
    keep_alive = random.choice([0, 0, -1, "1s"])
    reason = "unload" if keep_alive == 0 else "load"

    def check(answer: Answer) -> None:
        told = answers.parsed(answer.body)
        require(told.get("done_reason") == reason, f"done_reason {told.get('done_reason')}")

    return post("/api/generate", {"model": world.subject.name, "keep_alive": keep_alive}, check)


def embed(random: Random, world: World) -> Ask:
    name, texts = world.subject.name, random.choices(TEXTS, k=random.choice([0, 1, 2, 5]))
    dims = random.choice([0, 0, 16])

    def check(answer: Answer) -> None:
        told = answers.parsed(answer.body)
        answers.vectors(world.references, name, texts, dims, True, told.get("embeddings", ()))

    body: dict[str, Any] = {"model": name, "input": texts[0] if len(texts) == 1 else texts, "dimensions": dims}
    return post("/api/embed", body | {"keep_alive": _keep_alive(random)}, check)


def embeddings(random: Random, world: World) -> Ask:
    name, text = world.subject.name, random.choice(TEXTS)

    def check(answer: Answer) -> None:
        answers.vectors(world.references, name, [text], 0, False, [answers.parsed(answer.body).get("embedding")])

    return post("/api/embeddings", {"model": name, "prompt": text}, check)


def show(random: Random, world: World) -> Ask:
    body = {"model": world.subject.name, "verbose": random.random() < 0.3}
    return post("/api/show", body, answers.keys("details", "model_info", "capabilities"))


# -- OpenAI -------------------------------------------------------------------------------------------------------


def completions(random: Random, world: World) -> Ask:
    subject, texts = world.generative, random.choices(TEXTS, k=random.choice([1, 1, 3]))
    same = len(texts) == 1
    greedy, n, stream = random.random() < 0.6, random.choice([1, 6, 16]), random.random() < 0.5
    reference = world.references.answer(subject.name, "text", texts[0]) if same else None
    asked = Asked(subject.name, "completions", stream, n, reference, greedy=greedy)
    body: dict[str, Any] = {"model": subject.name, "prompt": texts[0] if same else texts, "max_tokens": n}
    body |= {"stream": stream, "temperature": 0 if greedy else 1, "seed": random.randrange(1000)}
    if random.random() < 0.2:
        body["logprobs"] = 2
    return post("/v1/completions", body, partial(answers.completion, asked, len(texts), "text"))


def chat_completions(random: Random, world: World) -> Ask:
    subject = world.chatting
    assert subject is not None
    text, greedy, n, stream = random.choice(TEXTS), random.random() < 0.6, random.choice([1, 6, 16]), _coin(random)
    hidden = {} if random.random() < 0.4 else None
    reference = world.references.answer(subject.name, "chat", text)
    asked = Asked(subject.name, "chat/completions", stream, n, reference, greedy=greedy, hidden=hidden)
    body: dict[str, Any] = {"model": subject.name, "messages": [{"role": "user", "content": text}], "max_tokens": n}
    body |= {"stream": stream, "temperature": 0 if greedy else 1, "return_hidden_states": hidden is not None}
    if stream and random.random() < 0.5 and hidden is None:
        body["stream_options"] = {"include_usage": True}
    return post("/v1/chat/completions", body, partial(answers.completion, asked, 1, "content"))


def openai_embeddings(random: Random, world: World) -> Ask:
    name, texts = world.subject.name, random.choices(TEXTS, k=random.choice([1, 2, 4]))
    as_text = _coin(random)

    def check(answer: Answer) -> None:
        found = [each["embedding"] for each in answers.parsed(answer.body)["data"]]
        if as_text:
            found = [np.frombuffer(base64.b64decode(each), "<f4") for each in found]
        answers.vectors(world.references, name, texts, 0, True, found)

    body = {"model": name, "input": texts, "encoding_format": "base64" if as_text else "float"}
    return post("/v1/embeddings", body, check)


# -- what must be refused -----------------------------------------------------------------------------------------


def _refusals(world: World) -> Sequence[tuple[int, str, Any]]:
    """Status, path, body."""
    model = world.generative.name
    one: dict[str, Any] = {"model": model, "prompt": "x", "raw": True}
    reading = {"model": model, "prompt": "x", "options": {"num_predict": 1}}
    return (
        (400, "/api/generate", b""),
        (400, "/api/generate", b"{"),
        (400, "/api/generate", b"\xff\xfe\x00"),
        (400, "/api/generate", b"[" * 2000),
        (400, "/api/chat", b"[1]"),
        (400, "/api/generate", {"prompt": "x"}),
        (404, "/api/generate", one | {"model": "nosuch"}),
        (404, "/api/embed", {"model": "../../etc/passwd", "input": "x"}),
        (404, "/api/show", {"model": "nosuch:latest"}),
        (404, "/v1/chat/completions", {"model": "nosuch", "messages": [{"role": "user", "content": "x"}]}),
        (400, "/api/generate", one | {"prompt": 5}),
        (400, "/api/generate", one | {"options": {"temperature": "hot"}}),
        (400, "/api/generate", one | {"options": {"temperature": -1}}),
        (400, "/api/generate", one | {"keep_alive": "soon"}),
        (400, "/api/generate", one | {"top_logprobs": 21}),
        (400, "/api/generate", one | {"format": "xml"}),
        (400, "/api/generate", reading | {"format": {"type": "nosuch"}}),
        (400, "/api/generate", one | {"system": "You are a fox"}),
        (400, "/api/generate", one | {"images": ["x"]}),
        (400, "/api/generate", one | {"suffix": "x"}),
        (400, "/api/generate", one | {"prompt": "x " * 600}),
        (400, "/api/generate", one | {"expose_hidden": {"layers": [-1]}}),
        (400, "/api/generate", one | {"expose_hidden": {"layers": [99]}}),
        (400, "/api/generate", one | {"expose_hidden": {"nodes": ["nosuch"]}}),
        (400, "/api/generate", one | {"expose_hidden": {"compression": "zip"}}),
        (400, "/api/generate", one | {"expose_hidden": {"scale_block": 32}}),
        (400, "/api/generate", one | {"expose_hidden": {"laeyrs": [0]}}),
        (400, "/api/generate", one | {"expose_hidden": 5}),
        (400, "/api/generate", one | {"think": True}),
        (400, "/api/generate", reading | {"template": "{{ raise_exception('no') }}"}),
        (400, "/api/chat", {"model": "llama", "messages": [{"role": "user", "content": "x"}]}),
        (400, "/api/chat", {"model": "demo", "messages": [{"content": "x"}]}),
        (400, "/api/generate", {"model": "bert", "prompt": "x"}),
        (400, "/api/embed", {"model": model, "input": [5]}),
        (400, "/api/embed", {"model": model, "input": "x", "dimensions": -1}),
        (400, "/api/embed", {"model": model, "input": "x " * 600, "truncate": False}),
        (400, "/v1/completions", {"model": model, "prompt": "x", "n": 2}),
        (400, "/v1/completions", {"model": model, "prompt": [10**6]}),
        (400, "/v1/completions", {"model": model, "prompt": []}),
        (400, "/v1/completions", {"model": model, "prompt": "x", "logit_bias": {"1": 1}}),
        (400, "/v1/embeddings", {"model": model, "input": [10**6]}),
        (404, "/api/nosuch", {}),
        (404, "/v1/nosuch", {}),
        (501, "/api/push", {"model": model}),
    )


def refused(random: Random, world: World) -> Ask:
    status, path, body = random.choice(_refusals(world))
    return post(path, body, lambda _: None, statuses=frozenset({status}))


def refused_by_guards(random: Random, world: World) -> Ask:
    status, method, headers = random.choice([
        (403, "GET", {"Host": "evil.example"}),
        (403, "GET", {"Origin": "https://evil.example"}),
        (405, "POST", {}),
    ])  # fmt: skip
    return Ask(method, "/api/tags", None, headers=headers, statuses=frozenset({status}))


def _coin(random: Random) -> bool:
    return random.random() < 0.5


KINDS = (
    Kind("/api/generate", 34, generate),
    Kind("/api/chat", 16, chat, chats=True),
    Kind("/api/embed", 7, embed),
    Kind("/api/embeddings", 3, embeddings),
    Kind("load, unload", 3, load_or_unload),
    Kind("/v1/chat/completions", 12, chat_completions, chats=True),
    Kind("/v1/completions", 8, completions),
    Kind("/v1/embeddings", 4, openai_embeddings),
    Kind("/v1/models", 1, fetched("/v1/models", "object", "data")),
    Kind("/v1/models/M", 1, fetched("/v1/models/MODEL", "id", "object")),
    Kind("/api/tags", 2, fetched("/api/tags", "models")),
    Kind("/api/ps", 2, fetched("/api/ps", "models")),
    Kind("/api/show", 2, show),
    Kind("/api/version", 1, fetched("/api/version", "version")),
    Kind("HEAD /", 1, fetched("/", method="HEAD")),
    Kind("/openapi.json", 0.5, fetched("/openapi.json", "openapi", "paths")),
    Kind("to be refused", 12, refused),
    Kind("refused by guards", 1, refused_by_guards),
)


def plans(references: References, seed: int, numbers: range, *, chaos: bool = True) -> list[Plan]:
    """Requests of these numbers. chaos: clients leave and read slowly, processes are killed."""
    return [_plan(references, seed, number, chaos) for number in numbers]


def _plan(references: References, seed: int, number: int, chaos: bool) -> Plan:
    random = Random(f"{seed} {number}")
    world = _world(references, random, Random(f"era {seed} {number // _ERA}"))
    kinds = [kind for kind in KINDS if world.chatting or not kind.chats]
    kind = random.choices(kinds, [kind.weight for kind in kinds])[0]
    ask = kind.make(random, world)
    manner, pause, kill = Manner(), 0.0, None
    if chaos:
        manner = _manner(random)
        pause = random.choice([0.02, 0.1, 0.5]) if random.random() < 0.1 else 1.5 if random.random() < 0.003 else 0.0
        kill = random.random() * 0.3 if random.random() < 0.015 else None
    return Plan(number, kind.name, ask, manner, pause, kill)


def _world(references: References, random: Random, era: Random) -> World:
    subjects = references.subjects
    popular = era.sample(subjects, min(_POPULAR, len(subjects)))
    pool = popular if random.random() < _LOYAL else subjects
    generating = [subject for subject in pool if subject.generates] or [s for s in subjects if s.generates]
    chatting = [subject for subject in pool if subject.chats]
    if not chatting and random.random() > _LOYAL:
        chatting = [subject for subject in subjects if subject.chats]
    return World(references, random.choice(pool), random.choice(generating), chatting[0] if chatting else None)


def _manner(random: Random) -> Manner:
    drawn = random.random()
    reset = _coin(random)
    if drawn < 0.02:
        return Manner("while sending", reset=reset)
    if drawn < 0.08:
        return Manner("while waiting", after=random.choice([0.0, 0.005, 0.05, 0.3]), reset=reset)
    if drawn < 0.16:
        return Manner("while reading", after=random.choice([1, 100, 5000, 50_000]), reset=reset, piece=2048)
    if drawn < 0.22:
        return Manner(slow=random.choice([0.1, 0.5, 1.5]), piece=random.choice([16, 256, 2048]))
    return Manner()
