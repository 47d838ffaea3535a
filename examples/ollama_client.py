"""Hidden states of every token with Ollama's own client, as numpy arrays.

pip install ollama
loom-gguf serve &
python ollama_client.py [http://localhost:11434]
"""

import base64
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from ollama import Client, GenerateResponse

TYPES = {"none": "<f4", "float16": "<f2"}  # int8 has a `scale` besides


class Generated(GenerateResponse):
    """Ollama's answer, and what `expose_hidden` adds to it."""

    hidden_states: Sequence[dict[str, Any]] = ()


def row(record: dict[str, Any]) -> np.ndarray:
    """float32 (n_embd,): the numbers of one layer at one token."""
    values = np.frombuffer(base64.b64decode(record["data"]), TYPES[record["compression"]])
    return values.astype(np.float32).reshape(record["shape"])[0, 0]


def main(address: str) -> None:
    """Print a text, and how far each layer's states move from token to token."""
    client = Client(address)
    print("models:", ", ".join(model.model for model in client.list().models))
    body = {
        "model": "demo",
        "prompt": "One morning a fox",
        "raw": True,  # to be gone on with as it is, without the chat template
        "options": {"temperature": 0, "num_predict": 8},
        "expose_hidden": {"layers": [0, 7], "final": True, "compression": "float16", "encoding": "base64"},
    }
    # Client.generate() sends no fields but Ollama's own; what it calls does.
    parts = client._request(Generated, "POST", "/api/generate", json=body, stream=True)
    text, rows = "", defaultdict(list)
    for part in parts:
        text += part.response
        for record in part.hidden_states:
            rows[record["node"]].append(row(record))
    print(body["prompt"] + text)
    for node, each in rows.items():
        states = np.stack(each)  # float32 (tokens, n_embd)
        steps = np.linalg.norm(np.diff(states, axis=0), axis=1)
        print(f"{node:>8}: {states.shape[0]} tokens of {states.shape[1]} values; from token to token", steps.round(2))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:11434")
