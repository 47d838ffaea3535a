"""What another process does while a test writes; in a module that it can import."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

from loom_gguf.library import Library, LibrarySettings


def read_again_and_again(rounds: int, connection: Connection) -> None:
    """Send what was seen of the model that stays."""
    library = Library(LibrarySettings.read(os.environ))
    seen = set()
    for _ in range(rounds):
        for entry in library.entries():
            if entry.name == "stays":
                seen.add((entry.digest, str(entry.problem)))
            library.where(entry.name)
    connection.send(seen)
