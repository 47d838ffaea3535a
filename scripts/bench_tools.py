"""What the benchmarks share: decodes with and without capture, interleaved timing, tables, sections of a document."""

from __future__ import annotations

import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loom_gguf import Capture
from loom_gguf._native import _core, lib
from loom_gguf.batch import Batch
from loom_gguf.context import Context, ContextParams, InPlace, Precision
from loom_gguf.weights import Weights

Array = npt.NDArray[Any]

PROMPT = 128  # tokens
BASE = "no callback"


@dataclass(frozen=True)
class Setting:
    """What the contexts that are compared have in common."""

    n_threads: int
    n_ctx: int = 1024
    n_ubatch: int = 512
    precision: Precision = "fast"
    clock: Callable[[], float] = time.perf_counter  # thread_time: where one thread does all the work


# -- decodes ------------------------------------------------------------------------------------------------------


class Plain:
    """A llama_context without a callback, made as loom_gguf makes its own but for that."""

    def __init__(self, weights: Weights, setting: Setting) -> None:
        c = lib.llama_context_default_params()
        c.n_ctx, c.n_seq_max = setting.n_ctx, 1 if weights.recurrent else ContextParams.n_seq_max
        c.n_batch = c.n_ubatch = setting.n_ubatch
        c.kv_unified = c.swa_full = True
        c.n_threads = c.n_threads_batch = setting.n_threads
        if setting.precision == "exact":
            c.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            c.type_k = c.type_v = lib.GGML_TYPE_F32
        self.handle: Any = lib.llama_init_from_model(weights.llama_model, c)
        assert self.handle, "llama.cpp made no context"
        self._batch = lib.llama_batch_init(setting.n_ubatch, 0, 1)
        self._clock = setting.clock

    def decode(self, tokens: Array, start: int, *, all_outputs: bool = False) -> float:
        """Compute tokens from this position on; the seconds it took. The last one is an output, or every one."""
        batch = fill_batch(self._batch, tokens, start, all_outputs)
        began = self._clock()
        status = lib.llama_decode(self.handle, batch)
        lib.llama_synchronize(self.handle)
        seconds = self._clock() - began
        assert status == 0, f"llama_decode: {status}"
        return seconds

    def forget(self, start: int) -> None:
        """Take the cells from this position on away."""
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.handle), 0, start, -1)

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self.handle)


class Captured:
    """A Context of loom_gguf that captures what `capture` wants; None: a callback that wants nothing.

    `bare` leaves Python's part out of the time: the tapper is armed, llama_decode runs, the arrays are fetched.
    """

    def __init__(
        self, weights: Weights, setting: Setting, capture: Capture | None, in_place: InPlace, *, bare: bool = False
    ) -> None:
        self.context = Context(
            weights,
            ContextParams(
                n_ctx=setting.n_ctx,
                n_ubatch=setting.n_ubatch,
                n_threads=setting.n_threads,
                precision=setting.precision,
                in_place=in_place,
            ),
        )
        self.capture = capture
        self._bare = bare
        self._sequence = self.context.open_sequence()
        self._batch = lib.llama_batch_init(setting.n_ubatch, 0, 1)
        self._clock = setting.clock

    def decode(self, tokens: Array, start: int, *, all_outputs: bool = False) -> float:
        """As Plain.decode, with the rows of every token where all are outputs, else of the last one."""
        n = len(tokens)
        kept = np.arange(n) if all_outputs else np.array([n - 1])
        if self._bare:
            return self._decode_bare(tokens, start, kept)
        began = self._clock()
        batch = Batch.of_one(tokens, start, self._sequence)
        batch.outputs[kept] = True
        if self.capture is None:
            self.context.decode(batch)
        else:
            self.context.decode_capturing(batch, self.capture, kept).states()
        lib.llama_synchronize(self.context.handle)
        return self._clock() - began

    def _decode_bare(self, tokens: Array, start: int, kept: Array) -> float:
        batch = fill_batch(self._batch, tokens, start, len(kept) == len(tokens))
        tapper, plan, rows = self.context.tapper, None, kept.tolist()
        if self.capture is not None:
            plan = self.context.catalog.topology(len(tokens)).select(self.capture).plan
        began = self._clock()
        if plan is not None:
            tapper.tap(plan, len(tokens), len(rows), rows, list(range(len(rows))), False, _core.Compression.NONE, 0)
        status = lib.llama_decode(self.context.handle, batch)
        lib.llama_synchronize(self.context.handle)
        told = tapper.finish() if plan is not None else (_core.Status.OK, "", [])
        seconds = self._clock() - began
        assert status == 0, f"llama_decode: {status}"
        assert told[0] is _core.Status.OK, f"capture: {told[1]}"
        return seconds

    def forget(self, start: int) -> None:
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context.handle), self._sequence, start, -1)

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        self.context.close()


def fill_batch(batch: Any, tokens: Array, start: int, all_outputs: bool) -> Any:
    """A llama_batch of one sequence, number 0."""
    batch.n_tokens = n = len(tokens)
    for i, token in enumerate(tokens.tolist()):
        batch.token[i], batch.pos[i] = token, start + i
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.logits[i] = all_outputs or i == n - 1
    return batch


Subject = Plain | Captured


def subjects(
    weights: Weights, setting: Setting, *, copied: InPlace = "never", placed: InPlace = "host"
) -> dict[str, Subject]:
    """Everything whose decodes are compared, by what the tables call it. A context each: graphs stay cached."""
    n = weights.n_layer
    every = Capture.all_layers()
    made: dict[str, Subject] = {BASE: Plain(weights, setting)}

    def add(name: str, capture: Capture | None, in_place: InPlace, bare: bool = False) -> None:
        made[name] = Captured(weights, setting, capture, in_place, bare=bare)

    made["no callback, another context"] = Plain(weights, setting)
    add("nothing wanted, llama_decode alone", None, placed, True)
    add("nothing wanted", None, placed)
    add("1 layer in place", Capture.layers([n // 2]), placed)
    if n > 4:
        add("4 layers in place", Capture.layers(np.linspace(0, n - 1, 4).astype(int).tolist()), placed)
    add(f"all {n} layers in place", every, placed)
    add(f"all {n} layers in place, without Python's part", every, placed, True)
    add(f"all {n} layers copied", every, copied)
    if n <= 4:
        add("everything in place", Capture.everything(), placed)
        add("everything copied", Capture.everything(), copied)
    return made


def random_tokens(n: int, n_vocab: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, n_vocab, n).astype(np.int32)


def n_vocab(weights: Weights) -> int:
    return int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(weights.llama_model)))


def decodes(
    made: Mapping[str, Subject], tokens: Array, n_cells: int, *, prefill: bool
) -> dict[str, Callable[[], float]]:
    """One timed decode of each subject, always from the same state: `n_cells` in the cache and one token more, or a
    whole prompt, every token an output."""

    def one(subject: Subject) -> Callable[[], float]:
        subject.forget(0)
        if not prefill:
            subject.decode(tokens[:n_cells], 0)
        part = tokens if prefill else tokens[n_cells : n_cells + 1]
        start = 0 if prefill else n_cells

        def timed() -> float:
            seconds = subject.decode(part, start, all_outputs=prefill)
            subject.forget(start)
            return seconds

        return timed

    return {name: one(subject) for name, subject in made.items()}


# -- timing -------------------------------------------------------------------------------------------------------


def interleaved(timed: Mapping[str, Callable[[], float]], rounds: int, *, at_least: float = 0.03) -> dict[str, Array]:
    """Seconds of every subject in every round; a round measures each once, in an order drawn anew.

    What changes slowly (other programs, the clock) then meets all of them alike. A measurement of something short is
    the mean of as many runs as fill `at_least` seconds.
    """
    first = {name: run() for name, run in timed.items()}
    repeats = max(1, min(200, round(at_least / min(first.values()))))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    rng = np.random.default_rng(0)
    names = list(timed)
    for _ in range(rounds):
        for i in rng.permutation(len(names)):
            run = timed[names[i]]
            if repeats > 1:
                run()  # the last subject's data are in the processor's caches
            seconds[names[i]].append(sum(run() for _ in range(repeats)) / repeats)
    return {name: np.array(values) for name, values in seconds.items()}


def median_interval(values: Array) -> tuple[float, float]:
    """Interval that holds the median with a probability of at least 95 % (where there are 6 values or more), whatever
    the distribution: order statistics."""
    ordered, n = np.sort(values), len(values)
    below, k = 0.5**n, 0
    while k + 1 <= (n - 1) // 2 and below + math.comb(n, k + 1) * 0.5**n <= 0.025:
        k += 1
        below += math.comb(n, k) * 0.5**n
    return float(ordered[k]), float(ordered[n - 1 - k])


def overhead(
    weights: Weights, setting: Setting, rounds: int, *, placed: InPlace = "host", aim: float | None = None
) -> list[str]:
    """Tables of single tokens and of prompts, capturing more and more; a third as many rounds of prompts."""
    made = subjects(weights, setting, placed=placed)
    tokens = random_tokens(PROMPT + 1, n_vocab(weights))
    aims = {name: aim for name in made if aim and name.startswith("all") and name.endswith("in place")}
    single = interleaved(decodes(made, tokens, PROMPT, prefill=False), rounds)
    prompt = interleaved(decodes(made, tokens[:PROMPT], 0, prefill=True), max(3, rounds // 3))
    for subject in made.values():
        subject.close()
    return [
        f"### One token, {PROMPT} tokens in the cache",
        ratio_table(single, aims=aims),
        f"### A prompt of {PROMPT} tokens, the logits and rows of all",
        ratio_table(prompt, aims=aims),
    ]


# -- text ---------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(seconds: Array) -> str:
    """Milliseconds: median, and quartiles in brackets."""
    low, middle, high = np.quantile(seconds * 1e3, [0.25, 0.5, 0.75])
    digits = 3 if middle < 10 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio_table(seconds: Mapping[str, Array], base: str = BASE, aims: Mapping[str, float] | None = None) -> str:
    """Each subject's time, and its ratio to `base` in the same round: median and 95 % interval."""
    rows = []
    for name, values in seconds.items():
        ratios = values / seconds[base]
        low, high = median_interval(ratios)
        aim = (aims or {}).get(name)
        verdict = "" if aim is None else f"<= {aim} {judged(low, high, aim)}"
        shown = ["1", ""] if name == base else [f"{np.median(ratios):.3f}", f"{low:.3f} to {high:.3f}"]
        rows.append([name, spread(values), *shown, verdict])
    return table(["", "ms (quartiles)", "ratio", "95 % interval", "aim"], rows)


def judged(low: float, high: float, aim: float) -> str:
    """Whether a ratio of this interval is at most `aim`."""
    return "met" if high <= aim else "undecided" if low <= aim else "missed"


def machine(n_threads: int) -> str:
    """What was measured with, in one line."""
    processor = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = found[1].strip() if found else processor
    except OSError:
        pass
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("llama_cpp_python", "numpy"))
    return (
        f"{processor}, {os.cpu_count()} logical processors ({platform.machine()}, {platform.system()}), "
        f"{n_threads} threads; Python {platform.python_version()}, {packages}, ggml {_core.ggml_version()}."
    )


def command_line() -> str:
    """The command that is running, without where its output is written."""
    words = [f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    for i, word in enumerate(words):
        if word == "--write":
            del words[i : i + 2]
            break
    return "python " + " ".join(words)


def write_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers called `name` in a document, in place of what was there; at its end if new."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    document = path.read_text(encoding="utf-8") if path.exists() else ""
    section = f"{begin}\n\n{text.strip()}\n\n{end}"
    if begin in document:
        before, _, rest = document.partition(begin)
        document = before + section + rest.partition(end)[2]
    else:
        document = f"{document.rstrip()}\n\n{section}\n".lstrip()
    path.write_text(document, encoding="utf-8")
