"""Every way of failing has its own class here, and its text says what to do.

LoomError
├── EngineVersionError          another llama-cpp-python than the one this build was made for
├── ModelNotFoundError          no such model file or name
├── ModelNameError              a text that no model can have as its name
├── ModelLoadError              the file is there, but it cannot be run
│   ├── NotGGUFError            it is something else than GGUF
│   ├── CorruptGGUFError        its header contradicts itself
│   ├── TruncatedGGUFError      it ends before its tensors do
│   ├── MissingPartError        a part of a split model is not there, or is another model's
│   ├── ManifestError           what a store of models says of it is damaged, or leads out of the store
│   └── UnsupportedModelError   it is whole, but in a form that is not run here: adapters, safetensors
│       └── ForeignEngineError  a GGUF file written for Ollama's own engine
├── ModelClosedError            used after close()
├── ServerError                 a server refused what its client asked
├── ServerUnreachableError      no server answers
├── SettingsError               a server's setting that cannot be followed
├── DeviceNotFoundError         no such device on this machine or in this build
├── ContextError                a context cannot be made with these settings
├── PromptError
│   ├── EmptyPromptError        nothing to compute
│   ├── PromptTooLongError      more tokens than the context holds
│   ├── TokenError              a token id outside the vocabulary
│   ├── NoVocabularyError       text given to a model that has no tokenizer
│   └── ChatTemplateError       messages that cannot be made into a prompt
├── NotGenerativeError          an encoder was asked to generate
├── ContextFullError            other sequences hold the cells or sequence slots that this one needs
├── EngineBusyError             too many requests wait for this model
├── RunnerDiedError             the process that had the model ended by itself
├── DecodeError                 llama.cpp refused a batch
├── SamplingError               sampling parameters out of range
│   └── GrammarError            a grammar or JSON schema that cannot be followed
├── CaptureError
│   ├── LayerRangeError         no such layer
│   ├── UnknownNodeError        no such node in the graph
│   ├── CaptureUnsupportedError this model or node cannot be captured so
│   ├── CaptureMemoryError      no memory for the captured rows
│   └── RowMismatchError        the graph did not give one row per token: nothing is returned
├── LensUnsupportedError        how this model makes its logits is not understood, so no lens
├── ComparisonError             two sides that cannot be compared
│   ├── DifferentTokensError    other token ids, or other vocabularies
│   └── DifferentModelsError    other widths or numbers of layers
└── StatesError
    ├── NotCapturedError        states do not hold what is asked of them
    ├── MeasureError            numbers that a measure is not defined for
    └── StatesFileError         a file of states cannot be written or read
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "CaptureMemoryError",
    "CaptureUnsupportedError",
    "ChatTemplateError",
    "ComparisonError",
    "ContextError",
    "ContextFullError",
    "CorruptGGUFError",
    "DecodeError",
    "DeviceNotFoundError",
    "DifferentModelsError",
    "DifferentTokensError",
    "EmptyPromptError",
    "EngineBusyError",
    "EngineVersionError",
    "ForeignEngineError",
    "GrammarError",
    "LayerRangeError",
    "LensUnsupportedError",
    "LoomError",
    "ManifestError",
    "MeasureError",
    "MissingPartError",
    "ModelClosedError",
    "ModelLoadError",
    "ModelNameError",
    "ModelNotFoundError",
    "NoVocabularyError",
    "NotCapturedError",
    "NotGGUFError",
    "NotGenerativeError",
    "PromptError",
    "PromptTooLongError",
    "RowMismatchError",
    "RunnerDiedError",
    "SamplingError",
    "ServerError",
    "ServerUnreachableError",
    "SettingsError",
    "StatesError",
    "StatesFileError",
    "TokenError",
    "TruncatedGGUFError",
    "UnknownNodeError",
    "UnsupportedModelError",
]


class LoomError(Exception):
    """Base of every error that loom_gguf raises on purpose."""


class EngineVersionError(LoomError, ImportError):
    """The installed llama-cpp-python is not the one this build was made for."""


class ModelNotFoundError(LoomError, FileNotFoundError):
    """No model file has this path or name."""


class ModelNameError(LoomError, ValueError):
    """No model can have this name."""


class ModelLoadError(LoomError):
    """The model file exists, but llama.cpp cannot run it."""


class NotGGUFError(ModelLoadError):
    """The file is not GGUF."""


class CorruptGGUFError(ModelLoadError):
    """The file's header cannot be read, or contradicts itself."""


class TruncatedGGUFError(ModelLoadError):
    """The file ends before the tensors that its header announces."""


class MissingPartError(ModelLoadError):
    """A part of a model that is split into several files is missing, or belongs to another model."""


class ManifestError(ModelLoadError):
    """A manifest, or a file that it names, is damaged or lies outside of its store."""


class UnsupportedModelError(ModelLoadError):
    """The model is whole, but it is not stored in a form that can be run here."""


class ForeignEngineError(UnsupportedModelError):
    """The GGUF file was written for Ollama's own engine: llama.cpp cannot load it, or would compute other numbers."""


class ModelClosedError(LoomError):
    """The model was closed."""


class ServerError(LoomError):
    """A server refused what its client asked."""

    def __init__(self, text: str, status: int | None = None) -> None:
        """`status`: HTTP's; None where the answer had begun."""
        super().__init__(text)
        self.status = status


class ServerUnreachableError(LoomError):
    """No server answers, or no longer."""


class SettingsError(LoomError):
    """A server's setting that cannot be followed."""


class DeviceNotFoundError(LoomError):
    """No such device on this machine, or in this build of llama.cpp."""


class ContextError(LoomError):
    """llama.cpp cannot make a context with these settings."""


class PromptError(LoomError, ValueError):
    """The prompt cannot be used."""


class EmptyPromptError(PromptError):
    """The prompt has no tokens."""


class PromptTooLongError(PromptError):
    """The prompt has more tokens than the context holds."""


class TokenError(PromptError):
    """A token id lies outside the vocabulary."""


class NoVocabularyError(PromptError):
    """The model file carries no tokenizer, so text cannot become tokens or tokens text."""


class ChatTemplateError(PromptError):
    """The chat template is missing or broken, or refuses these messages."""


class NotGenerativeError(LoomError):
    """The model is an encoder: it reads text, it does not go on with it."""


class ContextFullError(LoomError):
    """The context has no free sequence or no free cells: other sequences hold them."""


class EngineBusyError(LoomError):
    """Too many requests wait for this model already."""


class RunnerDiedError(LoomError):
    """The process that had the model ended without being asked to; the next request starts another one."""


class DecodeError(LoomError):
    """llama.cpp refused to compute a batch."""


class SamplingError(LoomError, ValueError):
    """A sampling parameter is out of its range."""


class GrammarError(SamplingError):
    """A grammar or JSON schema cannot be read, or not be followed with this vocabulary."""


class CaptureError(LoomError):
    """Base of what can go wrong with a capture."""


class LayerRangeError(CaptureError, IndexError):
    """A layer index is outside of the model's layers."""


class UnknownNodeError(CaptureError, KeyError):
    """The graph has no node of this name."""

    def __str__(self) -> str:
        """The text itself; KeyError would show it quoted."""
        return str(self.args[0])


class CaptureUnsupportedError(CaptureError):
    """This model, or this node, cannot be captured in the way that was asked for."""


class CaptureMemoryError(CaptureError, MemoryError):
    """Memory for the captured rows could not be had."""


class RowMismatchError(CaptureError):
    """The graph did not give exactly one row per token and node; no row is returned rather than a wrong one."""


class LensUnsupportedError(LoomError):
    """How this model turns its last layer into logits is not understood, so other layers cannot be read that way."""


class ComparisonError(LoomError, ValueError):
    """Two models or captures cannot be compared."""


class DifferentTokensError(ComparisonError):
    """The two sides read other tokens, or mean other texts by the same ids."""


class DifferentModelsError(ComparisonError):
    """The two sides have other widths or numbers of layers."""


class StatesError(LoomError):
    """Base of what can go wrong with captured states."""


class NotCapturedError(StatesError, KeyError):
    """The states do not hold this node, or not in this form."""

    def __str__(self) -> str:
        """The text itself; KeyError would show it quoted."""
        return str(self.args[0])


class MeasureError(StatesError, ValueError):
    """A measure is not defined for an array of this shape or type."""


class StatesFileError(StatesError):
    """A file of states cannot be written or read."""
