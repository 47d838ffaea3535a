#!/usr/bin/env python3
"""Prints what to expect of a comparison: quantizations of the demo model, and fast against exact.

    python scripts/compare_table.py [--write]

--write puts the tables into docs/compare.md. The quantized files are made by llama.cpp's own quantizer.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from pathlib import Path

from loom_gguf._native import lib
from loom_gguf.compare import Comparison, compare
from loom_gguf.compare.report import number, state_name
from loom_gguf.library import demo_path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "compare.md"
FIDELITY = ROOT / "tests" / "fidelity"
BEGIN, END = "<!-- TABLES -->\n", "<!-- END TABLES -->"
KINDS = ("Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q4_0")
DECODERS = ("llama", "mixtral", "qwen2moe", "qwen3", "olmo2", "gemma2", "gpt2", "lfm2")
ROUNDED = ("llama-f16", "llama-q8_0", "llama-q4_0")
EXACT = {"precision": "exact"}


def quantized(folder: Path, kind: str) -> Path:
    """The demo model in another type."""
    path = folder / f"{kind}.gguf"
    params = lib.llama_model_quantize_default_params()
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if lib.llama_model_quantize(str(demo_path()).encode(), str(path).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot quantize to {kind}")
    return path


def line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def quantization_row(name: str, found: Comparison) -> str:
    kl = found.kl_statistics
    assert kl is not None
    median = found.median_error
    return line(
        name, number(median[0]), number(median[-1]), number(median.max()), number(found.max_error.max()),
        state_name(found.first_parting) if found.first_parting else "never", f"{found.top1_agreement:.1%}",
        number(kl["mean"]), number(kl["p99"]),
    )  # fmt: skip


def tables() -> str:
    """Both tables, as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: quantized(Path(folder), kind) for kind in KINDS}
        rows = [quantization_row(kind, compare("demo", path)) for kind, path in files.items()]
        found = {f"demo, {kind}": compare(path, path, a_options=EXACT) for kind, path in files.items()}
    found = {"demo, F16": compare("demo", "demo", a_options=EXACT)} | found
    for name in (*DECODERS, *ROUNDED):
        path = FIDELITY / f"{name}.gguf"
        found[f"fidelity, {name}"] = compare(path, path, a_options=EXACT)
    lines = [
        "The demo model, F16 (A), against its quantizations (B), both fast, over the package's own texts. Its matrices",
        "are too narrow for the K types: llama.cpp takes finer ones for most of them.",
        "",
        line(
            "B",
            "median error: embedding",
            "final",
            "largest of a state",
            "largest of a row",
            "part at",
            "top-1",
            "mean KL (nats)",
            "99th percentile",
        ),
        "|---" * 9 + "|",
        *rows,
        "",
        "One file in exact mode (A) and in fast mode (B), on the CPU:",
        "",
        line("file", "largest median error of a state", "largest error of a row", "largest KL of a row (nats)"),
        "|---" * 4 + "|",
    ]
    for name, c in found.items():
        assert c.kl is not None
        lines.append(line(name, number(c.median_error.max()), number(c.max_error.max()), number(c.kl.max())))
    return "\n".join(lines) + "\n\n(`python scripts/compare_table.py --write`)\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    text = tables()
    print(text)
    if args.write:
        page = PAGE.read_text()
        head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        PAGE.write_text(head + text + tail)
    return 0


if __name__ == "__main__":
    sys.exit(main())
