"""A client for The Loom's routes of a server, over HTTP or a Unix socket; methods are those of The Loom's own client.

>>> with LoomClient("http://localhost:8080") as client:
...     told = client.generate("demo", "Once upon a time", max_tokens=8, hidden_state_layers=[-1, 0])
...     row = as_array(told["hidden_states"]["-1"])  # float32 (1, n_embd)
"""

from .answers import Batch, Embedded, EmbeddedBatch, Generated, HiddenState, StreamingResult, StreamingToken, as_array
from .client import LoomClient, connect

__all__ = [
    "Batch",
    "Embedded",
    "EmbeddedBatch",
    "Generated",
    "HiddenState",
    "LoomClient",
    "StreamingResult",
    "StreamingToken",
    "as_array",
    "connect",
]
