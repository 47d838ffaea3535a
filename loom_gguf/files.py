"""Where results may be written, asked before a long computation, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import StatesFileError

StrPath = str | os.PathLike[str]


def check_target(path: StrPath, suffixes: Sequence[str]) -> Path:
    """The path, if a file with one of these suffixes (in capitals too) may be written there."""
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        known = " or ".join([", ".join(suffixes[:-1]), *suffixes[-1:]] if len(suffixes) > 1 else suffixes)
        raise StatesFileError(f"cannot tell the format of {target}: its name must end in {known}")
    if target.is_dir():
        raise StatesFileError(f"{target} is a folder: name a file")
    if not target.parent.is_dir():
        raise StatesFileError(f"there is no folder {target.parent}: make it first, or choose another path")
    _check_writable(target.parent)
    return target


def check_folder(folder: StrPath) -> Path:
    """The folder, made if need be, if files may be written there."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StatesFileError(
            f"the folder {path} cannot be made: {error.strerror or error}. Choose another one"
        ) from None
    _check_writable(path)
    return path


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StatesFileError(f"the folder {folder} cannot be written to: choose another one")


@contextlib.contextmanager
def replacing(target: Path, what: str) -> Iterator[Path]:
    """A path beside `target` to write to, which takes its place at the end if all went well."""
    from safetensors import SafetensorError

    real = Path(os.path.realpath(target))  # a link stays a link
    temporary = real.with_name(f".{real.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)  # what this user's new files get
        yield temporary
        temporary.chmod(mode)  # safetensors makes a private file
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(real)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StatesFileError(
            f"{what} cannot be written to {target}: {reason}. Free some space, or choose another path"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
