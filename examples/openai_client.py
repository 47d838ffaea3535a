"""A chat with OpenAI's own client, with the final state of the last token beside the answer.

pip install openai
loom-gguf serve &
python openai_client.py [http://localhost:11434]
"""

import sys

import numpy as np
from openai import OpenAI


def main(address: str) -> None:
    """Print a chat, whole and streamed, and a cosine of two texts."""
    client = OpenAI(base_url=f"{address}/v1", api_key="none")  # or the key that the server was started with
    messages = [{"role": "user", "content": "Tell me a calm story."}]
    told = client.chat.completions.create(
        model="demo",
        messages=messages,
        temperature=0,
        max_tokens=16,
        # What OpenAI's API does not have goes into extra_body.
        extra_body={"return_hidden_states": True},
    )
    print(told.choices[0].message.content)
    print(f"{told.usage.prompt_tokens} tokens read, {told.usage.completion_tokens} written")
    final = np.array(told.hidden_state["final"], np.float32)  # (1, n_embd)
    print(f"final state of the last token: {final.shape[1]} values, length {np.linalg.norm(final):.2f}")

    with client.chat.completions.create(
        model="demo", messages=messages, temperature=0, max_tokens=16, stream=True
    ) as stream:
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="|", flush=True)
    print()

    vectors = [item.embedding for item in client.embeddings.create(model="demo", input=["a fox", "foxes"]).data]
    print(f"cosine of `a fox` and `foxes`: {np.dot(*vectors):.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:11434")
