"""What serving costs: `loom-gguf serve` over HTTP against bare loops of llama.cpp, time to first token, memory.

    python scripts/bench_server.py --write docs/benchmarks.md

The model is a random one of a real model's shape (see random_model.py), whose greedy text never ends by itself. The
server runs as users run it, in processes of its own; the bare loop runs in this one, on the same file, while the server
waits. Prompts are random and begin differently, so that no request finds its beginning in the cache.

Of two processes that load a model, the one that loads it second was faster all its life here, by more than what is to
be measured. So starts come in pairs, in both orders, and a ratio is the geometric mean of two.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from bench_client import Answer, Server
from bench_tools import Plain, Setting, command_line, machine, median_interval, table, write_section
from random_model import DEFAULT_DIR, SHAPES, TYPES, Shape, characters, first_character, random_model

from loom_gguf._native import lib
from loom_gguf.batch import Batch, BatchBuffers
from loom_gguf.context import _default_threads
from loom_gguf.weights import Weights

PROMPT, GENERATED = 16, 64  # tokens
STREAMS = 8
N_CTX = 1024  # of a sequence
MIB = 1024 * 1024
BASE64 = {"compression": "float16", "encoding": "base64"}


@dataclass(frozen=True)
class Run:
    """One measurement, of one stream or several."""

    first: np.ndarray  # seconds to the first token, of each stream
    rate: float  # tokens a second of all streams together, once every one has its first
    whole: float  # tokens a second from the request to the last token
    n_bytes: float = 0.0  # of a token's line

    @classmethod
    def of(cls, began: float, times: list[list[float]], n_bytes: float = 0.0) -> Run:
        """`times`: when each token of each stream was there."""
        flat = np.array(times)
        start, end = flat[:, 0].max(), flat.max()
        rate = float((flat > start).sum() / (end - start))
        return cls(flat[:, 0] - began, rate, flat.size / float(end - began), n_bytes)


# -- what is compared ---------------------------------------------------------------------------------------------


def prompts(shape: Shape, seed: int = 0) -> Iterator[np.ndarray]:
    """Token ids of random prompts, the first one of each different."""
    rng, first, n = np.random.default_rng(seed), first_character(), len(characters(shape))
    for begin in rng.permutation(n).tolist():
        yield np.array([begin, *rng.integers(0, n, PROMPT - 1)], np.int32) + first


def bare_loop(plain: Plain, many: list[np.ndarray]) -> Run:
    """llama_decode and argmax, all prompts in one batch and then a token of each; no callback."""
    n = len(many)
    buffers = BatchBuffers(n * PROMPT)
    n_logits = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(lib.llama_get_model(plain.handle))))
    lib.llama_memory_clear(lib.llama_get_memory(plain.handle), False)
    sequences = np.arange(n, dtype=np.int32)
    batch = Batch(
        np.concatenate(many),
        np.tile(np.arange(PROMPT, dtype=np.int32), n),
        np.repeat(sequences, PROMPT),
        np.tile(np.arange(PROMPT) == PROMPT - 1, n),
    )
    outputs = [(i + 1) * PROMPT - 1 for i in range(n)]
    times = []
    began = time.perf_counter()
    for i in range(GENERATED):
        assert lib.llama_decode(plain.handle, buffers.fill(batch)) == 0
        logits = (np.ctypeslib.as_array(lib.llama_get_logits_ith(plain.handle, at), (n_logits,)) for at in outputs)
        tokens = np.array([row.argmax() for row in logits], np.int32)
        times.append(time.perf_counter())
        batch = Batch(tokens, np.full(n, PROMPT + i, np.int32), sequences, np.ones(n, bool))
        outputs = list(range(n))
    return Run.of(began, [times] * n)


@dataclass(frozen=True)
class Client:
    """Asks for greedy text."""

    server: Server
    model: str
    shape: Shape
    n_threads: int

    def run(self, many: list[np.ndarray], hidden: Mapping[str, Any] | None = None, *, check: bool = False) -> Run:
        """A stream for each prompt. `check`: look into the records."""
        answers = self.server.ask([self._body(prompt, hidden) for prompt in many])
        for answer in answers:
            told = answer.last["prompt_eval_count"], answer.last["eval_count"], answer.last["done_reason"]
            assert told == (PROMPT, GENERATED, "length"), told
            assert len(answer.lines) == GENERATED, f"{len(answer.lines)} lines of {GENERATED} tokens"
            if check:
                _check(answer, hidden, self.shape)
        n_bytes = sum(len(line) + 1 for answer in answers for line in answer.lines) / (len(many) * GENERATED)
        return Run.of(answers[0].began, [answer.times for answer in answers], n_bytes)

    def load(self, **more: Any) -> None:
        """Load the model; with keep_alive=0 let it go."""
        self.server.ask([self._body(np.zeros(0, np.int32), None) | more])

    def _body(self, prompt: np.ndarray, hidden: Mapping[str, Any] | None) -> dict[str, Any]:
        texts, first = characters(self.shape), first_character()
        options = {"temperature": 0, "num_predict": GENERATED, "num_thread": self.n_threads, "num_ctx": N_CTX}
        body = {"model": self.model, "prompt": "".join(texts[i - first] for i in prompt), "options": options}
        return body if hidden is None else body | {"expose_hidden": hidden}


def _check(answer: Answer, hidden: Mapping[str, Any] | None, shape: Shape) -> None:
    """One record for every token and layer, of the right size."""
    for i, line in enumerate(answer.lines):
        records = json.loads(line).get("hidden_states", [])
        layers = [] if hidden is None else list(range(shape.n_layer))
        assert [record["layer"] for record in records] == layers
        for record in records:
            assert record["token_index"] == i
            data = record["data"]
            values = np.frombuffer(base64.b64decode(data), np.float16) if isinstance(data, str) else data
            assert len(values) == shape.n_embd


# -- measuring ----------------------------------------------------------------------------------------------------


def in_turns(timed: Mapping[str, Callable[[bool], Run]], rounds: int, *, warm: bool) -> dict[str, list[Run]]:
    """Every subject once a round, in an order drawn anew. `warm`: a first time before, checked, that does not count."""
    for run in timed.values() if warm else ():
        run(True)
    found: dict[str, list[Run]] = {name: [] for name in timed}
    rng, names = np.random.default_rng(0), list(timed)
    for _ in range(rounds):
        for i in rng.permutation(len(names)):
            found[names[i]].append(timed[names[i]](False))
    return found


def one_stream(plain: Plain, client: Client, made: Iterator[np.ndarray]) -> dict[str, Callable[[bool], Run]]:
    """What is compared of one request at a time; the first one is the base."""

    def asked(hidden: Mapping[str, Any] | None) -> Callable[[bool], Run]:
        return lambda check: client.run([next(made)], hidden, check=check)

    n = client.shape.n_layer
    return {
        "bare loop": lambda _: bare_loop(plain, [next(made)]),
        "over HTTP, text": asked(None),
        f"over HTTP, all {n} layers, float16 base64": asked(BASE64),
        f"over HTTP, all {n} layers, JSON": asked({}),
    }


def several_streams(plain: Plain, client: Client, made: Iterator[np.ndarray]) -> dict[str, Callable[[bool], Run]]:
    """What is compared of several requests at once; the first one is the base."""

    def many() -> list[np.ndarray]:
        return [next(made) for _ in range(STREAMS)]

    return {
        f"bare loop over {STREAMS} sequences": lambda _: bare_loop(plain, many()),
        f"{STREAMS} streams over HTTP, text": lambda check: client.run(many(), check=check),
    }


def memory_table(measured: Mapping[str, Mapping[str, tuple[int, int]]]) -> list[str]:
    """What each process has in memory, at several times."""
    rows = [
        [when, process, f"{resident / MIB:.0f}", f"{own / MIB:.0f}"]
        for when, processes in measured.items()
        for process, (resident, own) in processes.items()
    ]
    head = ["", "process", "RSS, MiB", "of it not of files, MiB"]
    return ["### Memory", table(head, rows)]


def over_pairs(ratios: list[float], n_pairs: int) -> np.ndarray:
    """Geometric means of the same round of both starts of a pair. `ratios`: in the order of measuring."""
    both = np.array(ratios).reshape(n_pairs, 2, -1)
    return np.sqrt(both[:, 0] * both[:, 1]).ravel()


def rate_table(runs: Mapping[str, list[Run]], aims: Sequence[float | None], n_pairs: int) -> str:
    """Each subject's tokens a second, and the ratio to the first one's in the same round: median and 95 % interval."""
    rows = []
    base = next(iter(runs))
    for (name, mine), aim in zip_longest(runs.items(), aims):
        rates = np.array([run.rate for run in mine])
        ratios = over_pairs([a.rate / b.rate for a, b in zip(mine, runs[base], strict=True)], n_pairs)
        whole = np.median(over_pairs([a.whole / b.whole for a, b in zip(mine, runs[base], strict=True)], n_pairs))
        low, high = median_interval(ratios)
        verdict = "met" if aim and low >= aim else "undecided" if aim and high >= aim else "missed"
        quartiles = np.quantile(rates, [0.25, 0.5, 0.75])
        firsts = 1e3 * np.concatenate([run.first for run in mine])
        n_bytes = mine[0].n_bytes
        few = f" (all {len(ratios)})" if len(ratios) < 6 else ""  # then no interval holds the median so surely
        shown = [f"{np.median(ratios):.3f}", f"{low:.3f} to {high:.3f}{few}", f"{whole:.3f}"]
        rows.append(
            [
                name,
                f"{quartiles[1]:.1f} ({quartiles[0]:.1f} to {quartiles[2]:.1f})",
                *(["1", "", ""] if name == base else shown),
                f">= {aim:.2f} {verdict}{few}" if aim else "",
                f"{np.median(firsts):.0f} (at most {firsts.max():.0f})",
                f"{n_bytes:,.0f}" if n_bytes else "",
            ]
        )
    head = ["", "tokens/s (quartiles)", "ratio", "95 % interval", "with the prompt", "aim"]
    return table([*head, "first token, ms", "bytes a token"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what serving a model over HTTP costs.")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama")
    parser.add_argument("--type", choices=TYPES, default="Q4_0")
    parser.add_argument("--rounds", type=int, default=2, help="of one stream, each start; a third as many of several")
    parser.add_argument(
        "--pairs", type=int, default=3, help="of starts of the server, before the bare loop's and after"
    )
    parser.add_argument("--threads", type=int, default=_default_threads())
    parser.add_argument("--only", choices=("one", "several"), help="measure only one stream, or only several")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that everything runs")
    parser.add_argument("--models", type=Path, default=DEFAULT_DIR, help="folder for the random model")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    shape = SHAPES[options.shape]
    path = random_model(options.shape, options.type, options.models, text=True)

    one: dict[str, list[Run]] = {}
    several: dict[str, list[Run]] = {}
    memory: dict[str, Mapping[str, tuple[int, int]]] = {}
    made = prompts(shape)

    def load_here() -> tuple[Weights, Plain]:
        weights = Weights(path)
        return weights, Plain(weights, Setting(n_threads=options.threads, n_ctx=N_CTX * STREAMS))

    for start in range(2 * options.pairs):
        here = load_here() if start % 2 else None
        server = Server(["--models-dir", str(path.parent), "--parallel", str(STREAMS)])
        client = Client(server, path.stem, shape, options.threads)
        try:
            memory.setdefault("before any model", server.resident())
            client.load()
            memory.setdefault("model loaded", server.resident())
            weights, plain = here or load_here()
            if options.only != "several":
                add(one, in_turns(one_stream(plain, client, made), rounds, warm=True))
            if options.only != "one":
                add(several, in_turns(several_streams(plain, client, made), max(1, rounds // 3), warm=start == 0))
            memory.setdefault("after all requests", server.resident())
            client.load(keep_alive=0)
            memory.setdefault("model unloaded", server.resident())
            plain.close()
            weights.close()
        finally:
            server.close()
    aims = shape.n_layer > 4
    what = {"one": ": one stream", "several": f": {STREAMS} streams"}.get(options.only, "")
    parts = [
        f"## The server, shape {options.shape}, {options.type}{what}",
        f"`{command_line()}`: {machine(options.threads)}",
    ]
    if one:
        parts += [f"### One stream, {GENERATED} tokens after a prompt of {PROMPT}"]
        parts += [rate_table(one, [None, 0.95, 0.90, None] if aims else [], options.pairs)]
    if several:
        parts += [f"### {STREAMS} streams at once, {GENERATED} tokens each after a prompt of {PROMPT}"]
        parts += [rate_table(several, [None, 0.90] if aims else [], options.pairs)]
    if options.only != "several":
        parts += memory_table(memory)
    text = "\n\n".join(parts)
    print(text, flush=True)
    if options.write:
        write_section(options.write, " ".join(filter(None, ["server", options.shape, options.only])), text)


def add(to: dict[str, list[Run]], more: Mapping[str, list[Run]]) -> None:
    for name, runs in more.items():
        to.setdefault(name, []).extend(runs)


if __name__ == "__main__":
    main()
