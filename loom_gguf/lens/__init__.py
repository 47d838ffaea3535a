"""The logit lens: what every layer would say if the model ended there.

>>> from loom_gguf import Model
>>> from loom_gguf.lens import lens
>>> with Model("demo") as model:
...     result = lens(model, "One morning a fox")
...     result.rank_of_final.shape
(10, 4)
"""

from .reading import lens
from .result import LensResult

__all__ = ["LensResult", "lens"]
