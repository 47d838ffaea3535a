"""Errors as HTTP tells them: `{"error": text}` with a status, in one table."""

from __future__ import annotations

import logging
from typing import Any

from .. import errors
from ..errors import LoomError

logger = logging.getLogger(__name__)

INVALID_HIDDEN = "Invalid hidden state configuration"
BUSY = "server busy, please try again.  maximum pending requests exceeded"  # as Ollama says it, to the letter
TOO_LONG = "the input length exceeds the context length"
# One context cannot be both quick for many and tell attention weights: whoever starts the server decides.
NO_ATTENTION = (
    "attention weights (kq-*, kq_*) can be had only of a server started with --parallel 1 --precision exact; elsewhere "
    "no name or glob in `nodes` may mean them"
)


class RequestError(Exception):
    """A request that is refused by the server itself."""

    def __init__(self, status: int, text: str) -> None:
        """The status and the text for the client."""
        super().__init__(text)
        self.status = status


class HiddenConfigError(RequestError):
    """An `expose_hidden` that cannot be followed."""

    def __init__(self, reason: str) -> None:
        """`reason`: what is wrong with it."""
        super().__init__(400, f"{INVALID_HIDDEN}: {reason}")


# The first class that fits counts: subclasses stand before their bases. {} is the error's own text; where the text
# of a row has none, that goes into a second key, "detail".
_TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (errors.ModelNotFoundError, 404, "{}"),
    (errors.ModelLoadError, 500, "{}"),
    (errors.ModelClosedError, 503, "{}"),
    (errors.EngineBusyError, 503, BUSY),
    (errors.ContextFullError, 503, "{}"),
    (errors.PromptTooLongError, 400, TOO_LONG),
    (errors.PromptError, 400, "{}"),
    (errors.SamplingError, 400, "{}"),
    (errors.NotGenerativeError, 400, "{}"),
    (errors.LayerRangeError, 400, INVALID_HIDDEN + ": {}"),
    (errors.UnknownNodeError, 400, INVALID_HIDDEN + ": {}"),
    (errors.AttentionUnsupportedError, 400, INVALID_HIDDEN + ": " + NO_ATTENTION),
    (errors.CaptureUnsupportedError, 400, "Hidden state capture not supported for this model type"),
    (errors.CaptureMemoryError, 500, "Failed to allocate memory for hidden state capture"),
    (errors.RowMismatchError, 500, "{}"),
    (errors.CaptureError, 400, INVALID_HIDDEN + ": {}"),
    (errors.StatesError, 400, INVALID_HIDDEN + ": {}"),
    (LoomError, 500, "{}"),
)


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body for an error."""
    if isinstance(error, RequestError):
        return error.status, {"error": str(error)}
    for kind, status, text in _TABLE:
        if isinstance(error, kind):
            body = {"error": text.replace("{}", str(error))}
            if "{}" not in text:
                body["detail"] = str(error)
            return status, body
    logger.error("unexpected error", exc_info=error)
    return 500, {"error": f"internal server error: {type(error).__name__}; the server's log tells more"}
