"""Text that comes out of tokens piece by piece: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .errors import SamplingError


class TextStream:
    """Turns pieces of UTF-8 into text that may be shown.

    Tokens end where they like: in the middle of a character, in the middle of a stop string. What is not yet certain
    is held back until it is.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """`stop`: strings that end the text; they are not part of it."""
        if isinstance(stop, str):
            stop = (stop,)
        if any(not isinstance(s, str) or not s for s in stop):
            raise SamplingError("stop strings must be non-empty strings")
        self._stop = tuple(stop)
        # Bytes that are no UTF-8 at all become U+FFFD, as soon as it is certain that they are none.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False  # a stop string was met; nothing more will come

    def feed(self, piece: bytes) -> str:
        """The text that is certain after this piece."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back, when no more pieces will come."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        # The one that is complete first, whatever the pieces: then generating can end without waiting for another.
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            out, self._held = self._held[: min(found)[1]], ""
            self.stopped = True
            return out
        keep = self._possible_stop()
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        for length in range(max((len(s) for s in self._stop), default=0) - 1, 0, -1):
            if length <= len(self._held) and any(s.startswith(self._held[-length:]) for s in self._stop):
                return length
        return 0
