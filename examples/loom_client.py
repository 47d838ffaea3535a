"""Hidden states with LoomClient: of one prompt, of a stream, and of several prompts that are computed together.

loom-gguf serve &
python loom_client.py [http://localhost:11434 | unix:///path.sock]
"""

import sys

import numpy as np

from loom_gguf import LoomError
from loom_gguf.client import LoomClient, StreamingToken, as_array


def main(address: str) -> None:
    """Print what three of the methods give."""
    with LoomClient(address) as client:
        # -1 is the final state, 0 the embedding: indices are Hugging Face's.
        told = client.generate(
            "demo",
            "One morning a fox",
            max_tokens=8,
            temperature=0,
            hidden_state_layers=[0, -1],
            hidden_state_format="base64",
            return_full_sequence=True,
        )
        print("One morning a fox" + told["text"])
        for index, state in told["sequence_hidden_states"].items():
            rows = as_array(state)  # float32 (tokens, n_embd)
            lengths = ", ".join(f"{length:.2f}" for length in np.linalg.norm(rows, axis=1))
            print(f"hidden state {index:>2}: {rows.shape[0]} tokens of {rows.shape[1]} values; lengths {lengths}")

        for part in client.generate_stream("demo", "Then", max_tokens=8, temperature=0):
            if isinstance(part, StreamingToken):
                print(part.token, end="|", flush=True)
            else:
                print(f" {part.token_count} tokens, {part.metadata['tokens_per_second']:.0f} a second")

        prompts = ["The fox", "A wolf", "An owl"]
        batch = client.generate_batch("demo", prompts, max_tokens=4, temperature=0, return_hidden_states=True)
        last = np.stack([as_array(result["hidden_states"]["-1"])[0] for result in batch["results"]])
        last /= np.linalg.norm(last, axis=1, keepdims=True)
        print("cosines of the final states after four more tokens:")
        for prompt, result, cosines in zip(prompts, batch["results"], last @ last.T, strict=True):
            print(f"  {prompt + result['text']:30.30} {' '.join(f'{cosine:5.2f}' for cosine in cosines)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:11434")
    except LoomError as error:
        sys.exit(str(error))
