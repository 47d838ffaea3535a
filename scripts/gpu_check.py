"""Whether captured rows are right on this machine's GPU, and what capturing costs there.

    CMAKE_ARGS="-DGGML_CUDA=on" pip install '.[dev]'
    python scripts/gpu_check.py --write docs/benchmarks.md

Takes what is installed and builds nothing. Without a GPU it says so and ends well. Otherwise it compares, on tiny
models of many architectures: nodes left in place in the GPU's memory with nodes copied out of a cut graph (rows and
logits must be the same bits), and the GPU's rows with the CPU's (within a tolerance). Then it measures.

`--backend cpu` does the same comparisons with the CPU in the GPU's place, and `--self-test` makes sure that
differences are noticed.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_tools import Plain, Setting, command_line, machine, n_vocab, overhead, random_tokens, table, write_section
from random_model import DEFAULT_DIR, TYPES, random_model

from loom_gguf import Capture, LoomError
from loom_gguf._native import lib
from loom_gguf.batch import Batch
from loom_gguf.context import Context, ContextParams, InPlace, Precision, _default_threads
from loom_gguf.placement import Placement
from loom_gguf.weights import Weights

Array = npt.NDArray[Any]

FIDELITY = Path(__file__).parent.parent / "tests" / "fidelity"
PROMPTS = (21, 300)  # below and above what GPUs take the trouble to compute for weights that lie on the CPU


def gpus() -> list[str]:
    """What llama.cpp calls the devices that are no CPU; empty where it can offload nothing."""
    if not lib.llama_supports_gpu_offload():
        return []
    ggml = lib._lib  # symbols of the libraries that libllama needs are found through it
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    devices = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    accelerators = [device for device in devices if ggml.ggml_backend_dev_type(device) in (1, 2)]  # GPU, IGPU
    return [ggml.ggml_backend_dev_description(device).decode() for device in accelerators]


# -- what is run --------------------------------------------------------------------------------------------------


def kinds_of_tap(context: Context, other: Context) -> dict[str, Capture]:
    """Captures by the kind of node, of nodes that both contexts have in batches of any length."""
    graph = context.catalog.several
    shared = set.intersection(
        *(
            {(n.name, n.occurrence) for n in c.catalog.topology(size).nodes if n.computed and not n.memory}
            for c in (context, other)
            for size in (1, PROMPTS[0])
        )
    )
    names: dict[str, list[str]] = {"row nodes": [], "views": [], "whole nodes": []}
    for node, native in zip(graph.nodes, graph.graph.nodes, strict=True):
        if (node.name, node.occurrence) in shared:
            kind = "views" if native.view else "whole nodes" if node.token_axis is None else "row nodes"
            names[kind].append(f"{node.name}#{node.occurrence}")
    found = {kind: Capture.names(keys) for kind, keys in names.items() if keys}
    return {"hidden states": Capture.all_layers(final=True), **found, "everything": Capture.everything()}


@dataclass(frozen=True)
class Decoded:
    """What came of one decode."""

    what: str
    rows: dict[str, Array]
    logits: Array  # (n_outputs, n_vocab)


def schedule(n_vocab: int, capture: Capture) -> Iterator[tuple[str, Array, int, bool, Capture | None, int]]:
    """Decodes as (what, tokens, position, all are outputs, capture, rows wanted from the end)."""
    few = Capture.layers([0, -1])
    for n in PROMPTS:
        tokens = random_tokens(n + 12, n_vocab, seed=n)
        yield f"prompt of {n}", tokens[:n], 0, True, capture, n
        # The same graph again and again, with captures switched on, off and over.
        wanted = [capture, capture, few, None, capture, None, few, capture, None, None, few, capture]
        for i, one in enumerate(wanted):
            yield f"token {i} after {n}", tokens[n + i : n + i + 1], n + i, True, one, 1
    yield "a prompt's last 2 rows", random_tokens(PROMPTS[0], n_vocab), 0, False, capture, 2


def captured(context: Context, vocabulary: int, capture: Capture) -> list[Decoded]:
    """Run the schedule through loom_gguf."""
    done, sequence = [], context.open_sequence()
    for what, tokens, start, all_outputs, wanted, n_rows in schedule(vocabulary, capture):
        if start == 0:
            context.close_sequence(sequence)
            sequence = context.open_sequence()
        batch = Batch.of_one(tokens, start, sequence)
        batch.outputs[-len(tokens) if all_outputs else -n_rows :] = True
        rows: dict[str, Array] = {}
        if wanted is None:
            context.decode(batch)
        else:
            got = context.decode_capturing(batch, wanted, np.arange(len(tokens) - n_rows, len(tokens)))
            rows = {key: values.array for key, values in got.states().values_by_key.items()}
        done.append(Decoded(what, rows, logits(context.handle, np.flatnonzero(batch.outputs), vocabulary)))
    context.close_sequence(sequence)
    return done


def plainly(plain: Plain, vocabulary: int) -> list[Decoded]:
    """Run the schedule without a callback, for its logits. The last part is left out: other rows are outputs."""
    done = []
    for what, tokens, start, all_outputs, _, _ in schedule(vocabulary, Capture()):
        if start == 0:
            plain.forget(0)
        if all_outputs:
            plain.decode(tokens, start, all_outputs=True)
            done.append(Decoded(what, {}, logits(plain.handle, np.arange(len(tokens)), vocabulary)))
    return done


def logits(handle: Any, tokens: Array, vocabulary: int) -> Array:
    found = [np.ctypeslib.as_array(lib.llama_get_logits_ith(handle, int(i)), (vocabulary,)) for i in tokens]
    return np.array(found)


# -- how it is compared -------------------------------------------------------------------------------------------


def different_bits(a: Sequence[Decoded], b: Sequence[Decoded], *, rows: bool = True) -> str:
    """Where two runs first differ in a bit; empty where they do not."""
    for one, two in zip(a, b, strict=True):
        if rows and one.rows.keys() != two.rows.keys():
            return f"{one.what}: other nodes, {sorted(one.rows.keys() ^ two.rows.keys())[:3]}"
        pairs = {"the logits": (one.logits, two.logits)}
        if rows:
            pairs |= {key: (one.rows[key], two.rows[key]) for key in one.rows}
        for name, (x, y) in pairs.items():
            if x.shape != y.shape or x.dtype != y.dtype or x.tobytes() != y.tobytes():
                return f"{one.what}: {name} ({relative_error(x, y):.1e})"
    return ""


def relative_error(a: Array, b: Array) -> float:
    """Largest difference over largest value; infinite where shapes differ, or what is finite in one only."""
    finite = np.isfinite(b)
    if a.shape != b.shape or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    error = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) if (a != b).any() else 0.0
    return error if np.isfinite(error) else float("inf")


def worst_error(a: Sequence[Decoded], b: Sequence[Decoded]) -> tuple[float, str]:
    """Largest relative error of any float node that both have, or of the logits, and where it is."""
    worst = (0.0, "")
    for one, two in zip(a, b, strict=True):
        nodes = [key for key in one.rows if key in two.rows and one.rows[key].dtype == np.float32]
        for name, x, y in [(key, one.rows[key], two.rows[key]) for key in nodes] + [("logits", one.logits, two.logits)]:
            error = relative_error(x, y)
            if error > worst[0]:
                worst = (error, f"{name}, {one.what}")
    return worst


def notices_differences() -> None:
    """The comparisons themselves: each kind of damage must be seen."""
    rng = np.random.default_rng(0)
    rows = {"l_out-0#0": rng.standard_normal((3, 8)).astype(np.float32), "mask#0": np.array([0, -np.inf], np.float32)}
    good = [Decoded("prompt", rows, rng.standard_normal((3, 5)).astype(np.float32))]
    assert different_bits(good, good) == ""
    assert worst_error(good, good)[0] == 0
    one_bit = rows["l_out-0#0"].copy()
    one_bit.view(np.uint32)[2, 7] ^= 1
    shifted = np.roll(rows["l_out-0#0"], 1, axis=0)
    lost = np.where(np.arange(8) == 3, np.nan, rows["l_out-0#0"]).astype(np.float32)
    for damaged, at_least in ((one_bit, 0.0), (shifted, 0.1), (lost, 1e9)):
        bad = [Decoded("prompt", rows | {"l_out-0#0": damaged}, good[0].logits)]
        assert "l_out-0" in different_bits(bad, good)
        assert worst_error(bad, good)[0] > at_least
    assert "other nodes" in different_bits([Decoded("prompt", {}, good[0].logits)], good)
    assert "logits" in different_bits([Decoded("prompt", rows, good[0].logits + 1)], good)


# -- the check ----------------------------------------------------------------------------------------------------


def check(path: Path, precision: Precision, device_layers: int, tolerance: float, threads: int) -> Iterator[list[str]]:
    """Rows of the table for one model; the last column begins with FAILED where something is wrong."""
    device, host = Weights(path, Placement(n_gpu_layers=device_layers)), Weights(path, Placement("cpu"))
    setting = Setting(threads, n_ctx=512, precision=precision)

    def context(weights: Weights, in_place: InPlace) -> Context:
        return Context(weights, ContextParams(n_ctx=512, n_threads=threads, precision=precision, in_place=in_place))

    placed, copied, mixed = (context(device, mode) for mode in ("always", "never", "host"))  # type: ignore[arg-type]
    reference, plain = context(host, "never"), Plain(device, setting)
    vocabulary = n_vocab(device)
    bare = plainly(plain, vocabulary)
    for kind, capture in kinds_of_tap(placed, reference).items():
        runs = [captured(c, vocabulary, capture) for c in (placed, copied, mixed, reference)]
        bits = different_bits(runs[0], runs[1]) or different_bits(runs[2], runs[1])
        to_plain = different_bits(runs[0][:-1], bare, rows=False)
        error, where = worst_error(runs[0], runs[3])
        n_nodes = max(len(decoded.rows) for decoded in runs[0])
        failed = [f"in place is not copied: {bits}"] if bits else []
        failed += [f"far from the CPU: {where}"] if error > tolerance else []
        yield [
            f"{path.stem}, {precision}",
            kind,
            str(n_nodes),
            "no" if bits else "yes",
            to_plain or "same bits",
            f"{error:.1e}" + (f" ({where})" if error else ""),
            "FAILED: " + "; ".join(failed) if failed else "ok",
        ]
    for opened in (placed, copied, mixed, reference, plain, device, host):
        opened.close()


def models(folder: Path, quick: bool) -> list[Path]:
    """The fidelity models that llama.cpp generates with, and random ones."""
    encoders = ("t5", "bert", "nomic-bert", "modern-bert")
    found = [path for path in sorted(FIDELITY.glob("*.gguf")) if path.stem not in encoders]
    if quick:
        found = [path for path in found if path.stem in ("llama", "mixtral", "llama-q4_0")]
    return found + [random_model("tiny", kind, folder) for kind in (["Q4_0"] if quick else TYPES)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Check captured rows on a GPU, and measure what they cost.")
    parser.add_argument("--backend", choices=("gpu", "cpu"), default="gpu", help="cpu: in the GPU's place")
    parser.add_argument("--self-test", action="store_true", help="first check that differences would be noticed")
    parser.add_argument("--tolerance", type=float, default=0.02, help="relative, between GPU and CPU")
    parser.add_argument("--quantized-tolerance", type=float, default=0.15, help="the same for quantized models")
    parser.add_argument("--shape", action="append", help="of the overhead tables (default: tinyllama and llama-8b)")
    parser.add_argument("--rounds", type=int, default=45)
    parser.add_argument("--threads", type=int, default=_default_threads())
    parser.add_argument("--quick", action="store_true", help="few models, no overhead tables")
    parser.add_argument("--models", type=Path, default=DEFAULT_DIR, help="folder for the random models")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    options = parser.parse_args()
    if options.self_test:
        notices_differences()
        print("The comparison notices differences.")
    on_gpu = options.backend == "gpu"
    found = gpus()
    if on_gpu and not found:
        print("No GPU: the installed llama.cpp has none to offload to. Nothing was checked.")
        return 0

    device_layers = -1 if on_gpu else 0
    rows: list[list[str]] = []
    for path in models(options.models, options.quick):
        quantized = "q4" in path.stem or "q8" in path.stem
        tolerance = options.quantized_tolerance if quantized else options.tolerance
        for precision in ("exact", "fast"):
            n_before = len(rows)
            try:
                rows += check(path, precision, device_layers, tolerance, options.threads)  # type: ignore[arg-type]
            except LoomError as error:
                rows.append([path.stem, precision, "", "", "", "", f"FAILED: {type(error).__name__}: {error}"])
            print(*(" | ".join(row) for row in rows[n_before:]), sep="\n", flush=True)
    failures = [row for row in rows if row[-1].startswith("FAILED")]
    head = [
        "model",
        "captured",
        "nodes",
        "in place = copied",
        "logits, to no callback",
        "largest difference to the CPU",
        "",
    ]
    what = ", ".join(found) if on_gpu else "the CPU in its place"
    parts = [
        f"## On a GPU: {what}",
        f"`{command_line()}`: {machine(options.threads)}",
        f"{len(rows) - len(failures)} of {len(rows)} comparisons passed.",
        table(head, rows),
    ]
    if not options.quick and on_gpu:
        for shape in options.shape or ["tinyllama", "llama-8b"]:
            weights = Weights(random_model(shape, "Q4_0", options.models), Placement(n_gpu_layers=device_layers))
            parts += [f"### Shape {shape}, Q4_0"]
            parts += overhead(weights, Setting(options.threads), options.rounds, placed="always")
            weights.close()
    text = "\n\n".join(parts)
    print(text)
    if options.write:
        write_section(options.write, "gpu", text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
