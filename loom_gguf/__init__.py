"""Hidden states of any GGUF model: every layer, every token, while it generates.

>>> from loom_gguf import Capture, Model
>>> with Model("demo") as model:
...     for step in model.generate("Once", capture=Capture.all_layers(), max_tokens=8):
...         print(step.text, step.states.layer(-1).shape)
"""

from .capture import Capture
from .catalog import Node
from .errors import (
    CaptureError,
    CaptureMemoryError,
    CaptureUnsupportedError,
    ChatTemplateError,
    ContextError,
    ContextFullError,
    CorruptGGUFError,
    DecodeError,
    EmptyPromptError,
    EngineBusyError,
    EngineVersionError,
    GrammarError,
    LabelledFileError,
    LabelsError,
    LayerRangeError,
    LoomError,
    MissingPackageError,
    ModelClosedError,
    ModelLoadError,
    ModelNotFoundError,
    NotCapturedError,
    NotGenerativeError,
    NotGGUFError,
    NoVocabularyError,
    ProbeError,
    PromptError,
    PromptTooLongError,
    RowMismatchError,
    RunnerDiedError,
    SamplingError,
    StatesError,
    StatesFileError,
    TokenError,
    TruncatedGGUFError,
    UnknownNodeError,
)
from .model import Model, Step
from .states import States

__version__ = "0.1.0"

__all__ = [
    "Capture",
    "CaptureError",
    "CaptureMemoryError",
    "CaptureUnsupportedError",
    "ChatTemplateError",
    "ContextError",
    "ContextFullError",
    "CorruptGGUFError",
    "DecodeError",
    "EmptyPromptError",
    "EngineBusyError",
    "EngineVersionError",
    "GrammarError",
    "LabelledFileError",
    "LabelsError",
    "LayerRangeError",
    "LoomError",
    "MissingPackageError",
    "Model",
    "ModelClosedError",
    "ModelLoadError",
    "ModelNotFoundError",
    "NoVocabularyError",
    "Node",
    "NotCapturedError",
    "NotGGUFError",
    "NotGenerativeError",
    "ProbeError",
    "PromptError",
    "PromptTooLongError",
    "RowMismatchError",
    "RunnerDiedError",
    "SamplingError",
    "States",
    "StatesError",
    "StatesFileError",
    "Step",
    "TokenError",
    "TruncatedGGUFError",
    "UnknownNodeError",
]
