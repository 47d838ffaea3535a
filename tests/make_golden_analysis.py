"""Write tests/golden/analysis_demo.json: the numbers of an analysis of the built-in model.

python tests/make_golden_analysis.py
"""

from __future__ import annotations

import json
from pathlib import Path

from loom_gguf import Model
from loom_gguf.analysis import MEASURES, Analysis, analyze

TARGET = Path(__file__).parent / "golden" / "analysis_demo.json"
PROMPTS = ["One morning a fox went out to the river.", "Tom was sad. He had lost his red ball."]


def run() -> Analysis:
    with Model("demo", n_threads=1, precision="exact") as model:
        return analyze(model, PROMPTS)


def main() -> None:
    analysis = run()
    lines = ",\n".join(
        f"  {json.dumps(layer.label)}: " + json.dumps({name: float(f"{layer.value(name):.6g}") for name in MEASURES})
        for layer in analysis.layers
    )
    TARGET.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
