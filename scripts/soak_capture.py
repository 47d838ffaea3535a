"""Whether memory grows over many captures: models opened, used and closed, and one model that decodes on and on.

    python scripts/soak_capture.py --write docs/benchmarks.md

What llama.cpp itself keeps when a model is opened and closed without loom_gguf is measured beside it.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bench_tools import Plain, Setting, command_line, machine, table, write_section

from loom_gguf import Capture, Model
from loom_gguf.weights import Weights

FIDELITY = Path(__file__).parent.parent / "tests" / "fidelity"
SAMPLES = 20
_N_CTX, _N_UBATCH = 512, 64
_PROMPT = np.arange(1, 25).tolist()


def resident_kb() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1024


def cycle(path: Path, i: int) -> None:
    """Open, capture in one of several ways, close."""
    captures = (Capture.all_layers(embedding=True, final=True), Capture.everything(), Capture.layers([1]))
    with Model(path, n_ctx=_N_CTX, n_ubatch=_N_UBATCH, n_threads=1) as model:
        capture = captures[i % len(captures)]
        model.forward(_PROMPT, capture)
        for _ in model.generate(_PROMPT[:4], capture=capture, max_tokens=2):
            pass


def plain_cycle(path: Path, _i: int) -> None:
    """The same with llama.cpp alone."""
    weights = Weights(path)
    plain = Plain(weights, Setting(n_threads=1, n_ctx=_N_CTX, n_ubatch=_N_UBATCH))
    plain.decode(np.array(_PROMPT, np.int32), 0)
    plain.close()
    weights.close()


def decodes(path: Path) -> Iterator[None]:
    """Decodes without end, of one model: prompts and tokens, captured in changing ways and not at all."""
    captures = (Capture.all_layers(), None, Capture.everything(), Capture.layers([0]), Capture.names(["*_norm-*"]))
    with Model(path, n_ctx=_N_CTX, n_ubatch=_N_UBATCH, n_threads=1) as model:
        i = 0
        while True:
            capture = captures[i % len(captures)]
            i += 1
            for _ in model.generate(_PROMPT[: 4 + i % 20], capture=capture, max_tokens=48):
                yield  # one decode each


def watched(title: str, n: int, do: Callable[[int], object]) -> list[str]:
    """RSS over n calls, as a row of the table; prints the growth.

    The first fifth is left out of the growth: allocators take their working size then.
    """
    began = time.perf_counter()
    points = np.unique(np.linspace(0, n, SAMPLES + 1).astype(int))
    sizes, done = [], 0
    for point in points:
        for i in range(done, point):
            do(i)
        done = int(point)
        gc.collect()
        sizes.append(resident_kb())
    seconds = time.perf_counter() - began
    steady = points >= n / 5
    slope = np.polyfit(points[steady], np.array(sizes)[steady], 1)[0] if steady.sum() > 2 else 0.0
    shown = [f"{sizes[i] / 1024:.1f}" for i in np.linspace(0, len(points) - 1, 6).astype(int)]
    print(f"growth per 1,000 {title}: {slope * 1000:.1f} kB ({n:,} in {seconds:.0f} s)", flush=True)
    return [title, f"{n:,}", *shown, f"{slope * 1000:.1f} kB", f"{seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch memory over many captures.")
    parser.add_argument("--cycles", type=int, default=10_000, help="of opening, capturing, closing")
    parser.add_argument("--decodes", type=int, default=100_000)
    parser.add_argument("--model", type=Path, default=FIDELITY / "llama.gguf", help="a small one")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this Markdown file")
    options = parser.parse_args()

    endless = decodes(options.model)
    rows = []
    for title, n, do in (
        ("decodes", options.decodes, lambda _: next(endless)),
        ("cycles", options.cycles, lambda i: cycle(options.model, i)),
        ("cycles of llama.cpp alone", options.cycles, lambda i: plain_cycle(options.model, i)),
    ):
        rows.append(watched(title, n, do))
    head = ["", "number", *(f"RSS at {share} %, MiB" for share in range(0, 101, 20)), "growth per 1,000", "seconds"]
    text = "\n\n".join(
        [
            "## Memory over time",
            f"`{command_line()}`: {machine(1)}",
            "A cycle opens a tiny model, captures a prompt and two generated tokens (all layers, everything, one "
            "layer, in turns), and closes it. Decodes are those of one open model, with captures that change. The "
            "growth is a line fitted to all but the first fifth.",
            table(head, rows),
        ]
    )
    print(text)
    if options.write:
        write_section(options.write, "soak", text)


if __name__ == "__main__":
    main()
