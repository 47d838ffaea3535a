"""Errors as HTTP tells them: a status and a text, in one table, and the body that each of the APIs puts them in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

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


class BodyError(RequestError):
    """A request body that does not have the form it must have."""

    def __init__(self, text: str, problems: Sequence[dict[str, Any]]) -> None:
        """`text`: the first problem in one sentence. `problems`: all of them, as {loc, msg, type}."""
        super().__init__(400, text)
        self.problems = list(problems)


class HiddenConfigError(RequestError):
    """An `expose_hidden` that cannot be followed."""

    def __init__(self, reason: str) -> None:
        """`reason`: what is wrong with it."""
        super().__init__(400, f"{INVALID_HIDDEN}: {reason}")


# The first class that fits counts: subclasses stand before their bases. {} is the error's own text; where the text
# of a row has none, that goes into a second key, "detail".
_TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (errors.ModelNotFoundError, 404, "{}"),
    (errors.DeviceNotFoundError, 400, "{}"),
    (errors.ModelNameError, 400, "{}"),
    (errors.UnsupportedModelError, 400, "{}"),
    (errors.ModelLoadError, 500, "{}"),
    (errors.AccessDeniedError, 403, "{}"),
    (errors.UnsafeUrlError, 400, "{}"),
    (errors.PullCancelledError, 503, "{}"),
    (errors.PullError, 502, "{}"),
    (errors.NoSpaceError, 507, "{}"),
    (errors.NotOwnModelError, 403, "{}"),
    (errors.StoreError, 400, "{}"),
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


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a request, in one sentence."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"there is no field {where!r:.80}"
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


@dataclass(frozen=True)
class Problem:
    """An error as a client is told of it."""

    status: int
    text: str
    detail: str | None = None  # what lies behind a text that is fixed


def describe(error: Exception) -> Problem:
    """The status and the texts for an error."""
    if isinstance(error, RequestError):
        return Problem(error.status, str(error))
    for kind, status, text in _TABLE:
        if isinstance(error, kind):
            return Problem(status, text.replace("{}", str(error)), None if "{}" in text else str(error))
    logger.error("unexpected error", exc_info=error)
    return Problem(500, f"internal server error: {type(error).__name__}; the server's log tells more")


# -- one body for each API ----------------------------------------------------------------------------------------

Dialect = Literal["ollama", "loom", "openai"]

_UNPROCESSABLE = 422
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


def dialect_of(path: str) -> Dialect:
    """Whose API a path belongs to: what it is told of an error has that API's form."""
    if path == "/" or path.startswith("/api/"):
        return "ollama"
    return "openai" if path.startswith("/v1/") and path != "/v1/generate" else "loom"


def told(error: Exception, dialect: Dialect) -> tuple[int, dict[str, Any]]:
    """The status and the body for an error."""
    problem = describe(error)
    status, text = problem.status, problem.text
    if dialect == "ollama":
        return status, {"error": text} | ({} if problem.detail is None else {"detail": problem.detail})
    if problem.detail is not None:
        text = f"{text}: {problem.detail}"
    if dialect == "loom":
        if isinstance(error, BodyError):
            return _UNPROCESSABLE, {"detail": error.problems}
        return status, {"detail": text}
    at = [problem["loc"] for problem in error.problems[:1]] if isinstance(error, BodyError) else []
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = ".".join(str(part) for part in at[0] if part != "body") if at else None
    # `detail` is what programs that were written for The Loom read: /v1/chat/completions is theirs too.
    return status, {"error": {"message": text, "type": kind, "param": param or None, "code": None}, "detail": text}
