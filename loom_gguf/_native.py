"""The one place where the native libraries are imported: in the right order, of the right version, and quiet.

llama_cpp comes first, so that the extension finds the copies of ggml that llama_cpp loaded; a second copy of a
library in one process would have state of its own.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from importlib import metadata

from .errors import EngineVersionError

LLAMA_CPP_PYTHON_VERSION = "0.3.36"

logger = logging.getLogger("loom_gguf.llama_cpp")


def _check_version(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise EngineVersionError(
            f"loom_gguf was built for {what} {wanted}, but {found} is installed. ggml promises no binary "
            f"interface between versions. Run: pip install 'llama-cpp-python=={LLAMA_CPP_PYTHON_VERSION}', or "
            f"install loom_gguf again."
        )


try:
    _check_version("llama-cpp-python", metadata.version("llama_cpp_python"), LLAMA_CPP_PYTHON_VERSION)
except metadata.PackageNotFoundError:
    raise EngineVersionError(
        f"llama-cpp-python is not installed. Run: pip install 'llama-cpp-python=={LLAMA_CPP_PYTHON_VERSION}'"
    ) from None

from llama_cpp import llama_cpp as lib  # noqa: E402

from . import _core  # noqa: E402

_check_version("llama-cpp-python", _core.LLAMA_CPP_PYTHON_VERSION, LLAMA_CPP_PYTHON_VERSION)
_check_version("ggml", _core.ggml_version(), _core.GGML_VERSION_BUILT_WITH)

# ggml_log_level
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED = 5

# llama.cpp tells in its log, and nowhere else, why a file was refused. The last complaints are kept for the text
# of our own errors; everything goes on to Python's logging, where it is silent unless somebody listens.
_complaints: deque[str] = deque(maxlen=8)


class _Log:
    level = logging.DEBUG


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    if level != _CONTINUED:
        _Log.level = _LEVELS.get(level, logging.DEBUG)
    line = text.decode("utf-8", "replace").rstrip("\n")
    if not line.strip(". "):
        return
    if _Log.level >= logging.ERROR:
        _complaints.append(line)
    # At most INFO: what matters to the user comes as an error of ours, and llama.cpp also complains of what we try.
    logger.log(min(_Log.level, logging.INFO), "%s", line)


lib.llama_log_set(_on_log, ctypes.c_void_p(0))
lib.llama_backend_init()


def forget_complaints() -> None:
    """Call before an operation whose failure is to be explained by `complaints`."""
    _complaints.clear()


def complaints() -> str:
    """What llama.cpp logged as errors since `forget_complaints`, in one line; empty where it said nothing."""
    return "; ".join(_complaints)


__all__ = ["LLAMA_CPP_PYTHON_VERSION", "_core", "complaints", "forget_complaints", "lib"]
