"""How close captured hidden states are to PyTorch's, architecture by architecture.

Runs the tiny seeded models of tests/fidelity and compares with the values that PyTorch gave (each lies beside its
model). Prints a Markdown table; `--write` puts it into docs/fidelity.md, `--check` fails where that file lacks a row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from loom_gguf import Capture, LoomError, Model

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "fidelity"
PAGE = ROOT / "docs" / "fidelity.md"

KINDS = {
    "llama": "decoder",
    "qwen3": "decoder, norms on Q and K",
    "olmo2": "decoder, norms behind the blocks",
    "gemma2": "decoder, sliding window, soft caps",
    "gpt2": "decoder, learned positions",
    "cohere": "decoder, parallel branches, logit scale",
    "phi2": "decoder, partial rotary positions, biases",
    "mixtral": "mixture of experts",
    "qwen2moe": "mixture of experts, shared expert",
    "mamba": "recurrent",
    "lfm2": "hybrid: convolutions and attention",
    "bert": "encoder, norms behind the blocks",
    "nomic-bert": "encoder, rotary positions",
    "modern-bert": "encoder, norms before the blocks",
}
REFUSED = {"t5": "encoder-decoder"}

HEAD = """# How close to PyTorch

Tiny seeded random models, one per architecture, made by `tests/fidelity/make_fidelity.py` together with the values
that PyTorch computes in float32 (transformers, eager attention). `python scripts/fidelity_table.py --write` runs each
GGUF file and compares. An error is max |a - b| / max |b| over all tokens, the worst of all layers where there are
several. *exact* and *fast* are the two values of `precision`; weights are F32, on the CPU.

"""

FOOT = """
What to expect: about 1e-6 where llama.cpp computes in float32 throughout. GPT-2, Gemma-2, Phi-2, BERT and ModernBERT
use GELU, which ggml's CPU code looks up in a float16 table, and stay near 1e-3. *fast* is flash attention with a
float16 cache. Embeddings are the first hidden states, *final* is the state behind the final norm.
"""


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def row(arch: str) -> list[str]:
    """One line of the table."""
    truth = load_file(MODELS / f"{arch}.safetensors")
    tokens = truth["tokens"].tolist()
    capture = Capture.all_layers(embedding=True, final=True)
    cells = [arch, KINDS[arch]]
    with Model(MODELS / f"{arch}.gguf", precision="exact") as model:
        states = model.forward(tokens, capture)
        layers = max(error(states.layer(il), truth["block_outputs"][il]) for il in range(model.n_layer))
        cells += [_text(error(states.embedding, truth["hidden_states"][0])), _text(layers)]
        cells.append(_text(error(states.final, truth["hidden_states"][-1])))
        if "logits" in truth:
            logits = model.forward(tokens, Capture.names(["result_output"]))["result_output"]
            cells.append(_text(error(logits, truth["logits"])))
        else:
            cells.append("–")
        cells.append(_attention(model, tokens, truth))
    with Model(MODELS / f"{arch}.gguf") as model:
        states = model.forward(tokens, capture)
        layers = max(error(states.layer(il), truth["block_outputs"][il]) for il in range(model.n_layer))
        cells.append(_text(layers))
    return cells


def _attention(model: Model, tokens: list[int], truth: dict[str, np.ndarray]) -> str:
    if "attentions" not in truth:
        return "–"
    layers = truth.get("attention_layers", np.arange(model.n_layer))
    states = model.forward(tokens, Capture.names([f"kq_soft_max-{il}" for il in layers]))
    # Rows come token first; PyTorch has the head first.
    ours = [states[f"kq_soft_max-{il}"].transpose(1, 0, 2) for il in layers]
    return _text(max(error(mine, theirs) for mine, theirs in zip(ours, truth["attentions"], strict=True)))


def _text(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def table() -> str:
    """The whole table, as Markdown."""
    lines = [
        "| architecture | kind | embedding | layers | final | logits | attention | layers, fast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(row(arch)) + " |" for arch in KINDS]
    for arch, kind in REFUSED.items():
        try:
            Model(MODELS / f"{arch}.gguf").close()
        except LoomError as refusal:
            reason = str(refusal).split(": ", 1)[-1]
            lines.append(f"| {arch} | {kind} | refused: {reason} | | | | | |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print, write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--check", action="store_true", help="fail where the page lacks one of the models")
    args = parser.parse_args()
    if args.check:
        page = PAGE.read_text()
        missing = [arch for arch in [*KINDS, *REFUSED] if f"\n| {arch} |" not in page]
        if missing:
            print(f"{PAGE} lacks {', '.join(missing)}: run python scripts/fidelity_table.py --write", file=sys.stderr)
        return 1 if missing else 0
    text = table()
    print(text)
    if args.write:
        PAGE.write_text(HEAD + text + FOOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
