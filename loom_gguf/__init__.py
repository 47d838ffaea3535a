"""Hidden states of any GGUF model: every layer, every token, while it generates.

>>> from loom_gguf import Capture, Model
>>> with Model("demo") as model:
...     for step in model.generate("Once", capture=Capture.all_layers(), max_tokens=8):
...         print(step.text, step.states.layer(-1).shape)
"""

from ._native import LLAMA_CPP_PYTHON_VERSION as LLAMA_CPP_PYTHON_VERSION
from .capture import Capture
from .catalog import Node
from .errors import *  # noqa: F403
from .errors import __all__ as _errors
from .model import Model, Step
from .states import States

__version__ = "0.1.0"

__all__ = ["Capture", "Model", "Node", "States", "Step", *_errors]
