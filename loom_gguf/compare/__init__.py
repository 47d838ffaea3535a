"""The same tokens through two models, or two captures of them: where and how far they part.

>>> from loom_gguf.compare import compare
>>> compare("model-f16.gguf", "model-q4_k_m.gguf").save("report.html")
"""

from .result import THRESHOLD, Comparison, SideFacts
from .run import compare
from .texts import DEFAULT_PROMPTS

__all__ = ["DEFAULT_PROMPTS", "THRESHOLD", "Comparison", "SideFacts", "compare"]
