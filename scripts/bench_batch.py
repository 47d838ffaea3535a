"""What /generate/batch saves: 16 prompts in one request against 16 requests one after the other.

    python scripts/bench_batch.py --write docs/benchmarks.md

The model is a random one of a real model's shape (see random_model.py), whose greedy text never ends by itself. Each
round measures both, the second round in the other order. Prompts are random and begin differently, so that no request
finds its beginning in the cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_client import Server
from bench_tools import command_line, machine, table, write_section
from random_model import DEFAULT_DIR, SHAPES, TYPES, Shape, characters, random_model

from loom_gguf.context import _default_threads

N_PROMPTS, PROMPT, GENERATED = 16, 16, 64  # prompts, and tokens of each
N_CTX = 1024  # of a sequence
AIM = 0.70


@dataclass(frozen=True)
class Asked:
    """One way to have N_PROMPTS continued."""

    seconds: float
    each: tuple[float, ...] = ()  # of every request, where there are several


def prompts(shape: Shape) -> Iterator[str]:
    """Random texts of PROMPT tokens, the first one of each different."""
    texts, rng = characters(shape), np.random.default_rng(0)
    for begin in rng.permutation(len(texts)).tolist():
        yield "".join(texts[i] for i in [begin, *rng.integers(0, len(texts), PROMPT - 1).tolist()])


def singly(server: Server, model: str, texts: list[str], max_tokens: int) -> Asked:
    """One request after the other."""
    times = [time.perf_counter()]
    for text in texts:
        body = _body(model, max_tokens) | {"prompt": text, "return_hidden_states": False}
        _check(server.ask([body], "/generate")[0].last, max_tokens)
        times.append(time.perf_counter())
    return Asked(times[-1] - times[0], tuple(np.diff(times).tolist()))


def together(server: Server, model: str, texts: list[str], max_tokens: int) -> Asked:
    """All in one request."""
    began = time.perf_counter()
    told = server.ask([_body(model, max_tokens) | {"prompts": texts}], "/generate/batch")[0].last
    seconds = time.perf_counter() - began
    assert told["prompts_processed"] == len(texts)
    for result in told["results"]:
        _check(result, max_tokens)
    return Asked(seconds)


def _body(model: str, max_tokens: int) -> dict[str, Any]:
    return {"model": model, "max_tokens": max_tokens, "temperature": 0}


def _check(result: Mapping[str, Any], max_tokens: int) -> None:
    told = result["metadata"]["input_tokens"], result["token_count"], result["metadata"]["finish_reason"]
    assert told == (PROMPT, max_tokens, "length"), told


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a batch of prompts against single requests.")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama")
    parser.add_argument("--type", choices=TYPES, default="Q4_0")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="8 tokens and one round, to see that everything runs")
    parser.add_argument("--models", type=Path, default=DEFAULT_DIR, help="folder for the random model")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this Markdown file")
    options = parser.parse_args()
    max_tokens, rounds = (8, 1) if options.quick else (GENERATED, options.rounds)
    shape = SHAPES[options.shape]
    path = random_model(options.shape, options.type, options.models, text=True)
    made = prompts(shape)
    ways = {"single requests": singly, "one batch": together}
    found: dict[str, list[Asked]] = {name: [] for name in ways}
    server = Server(["--models-dir", str(path.parent), "--parallel", str(N_PROMPTS), "--ctx", str(N_CTX)])
    try:
        for way in ways.values():  # the first time loads the model, and does not count
            way(server, path.stem, [next(made) for _ in range(2)], 4)
        for i in range(rounds):
            for name in list(ways) if i % 2 == 0 else reversed(ways):
                texts = [next(made) for _ in range(N_PROMPTS)]
                found[name].append(ways[name](server, path.stem, texts, max_tokens))
    finally:
        server.close()
    text = report(options, found, max_tokens, AIM if options.shape != "tiny" and not options.quick else None)
    print(text, flush=True)
    if options.write:
        write_section(options.write, f"batch {options.shape}", text)


def report(options: argparse.Namespace, found: Mapping[str, list[Asked]], max_tokens: int, aim: float | None) -> str:
    """Medians of the rounds, and the ratio of each round."""
    single, batch = (np.array([asked.seconds for asked in runs]) for runs in found.values())
    ratios = batch / single
    each = np.array([seconds for asked in found["single requests"] for seconds in asked.each])
    n_tokens = N_PROMPTS * max_tokens
    verdict = "" if aim is None else f"<= {aim:.2f} {'met' if np.median(ratios) <= aim else 'missed'}"
    rounds = f"{len(ratios)} rounds" if len(ratios) > 1 else "1 round"
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    rows = [
        ["single requests", f"{np.median(single):.2f}", f"{n_tokens / np.median(single):.1f}", "1", "", ""],
        ["one batch", f"{np.median(batch):.2f}", f"{n_tokens / np.median(batch):.1f}", f"{np.median(ratios):.3f}",
         shown, verdict],
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"## `/generate/batch`, shape {options.shape}, {options.type}",
            f"`{command_line()}`: {machine(_default_threads()).rstrip('.')}; the server with `--parallel {N_PROMPTS}`. "
            f"{N_PROMPTS} prompts of {PROMPT} tokens, {max_tokens} generated for each, greedy; seconds for all of "
            f"them, medians of {rounds}. One single request took {np.median(each):.2f} s "
            f"({each.min():.2f} to {each.max():.2f}).",
            table(["", "seconds", "tokens/s", "ratio", "of each round", "aim"], rows),
        ]
    )


if __name__ == "__main__":
    main()
