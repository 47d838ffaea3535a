"""What the server listens on: bound before any model is loaded, so that a taken address is known at once."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import SettingsError
from ..settings import ServerSettings

_BACKLOG = 128
_UNIX_MODE = 0o660  # the user's own programs, and those of the group


@contextmanager
def listening(settings: ServerSettings) -> Iterator[list[socket.socket]]:
    """The sockets of the transports that are set; closed, and removed, at the end of the block."""
    with ExitStack() as opened:
        sockets = []
        if settings.transport in ("http", "both"):
            sockets.append(opened.enter_context(_tcp(settings.host, settings.port)))
        if settings.transport in ("unix", "both"):
            sockets.append(opened.enter_context(_unix(settings.unix_socket)))
        yield sockets


def addresses(sockets: list[socket.socket]) -> list[str]:
    """As a client's base URL has them."""
    return [_address(each) for each in sockets]


def _address(listening: socket.socket) -> str:
    name = listening.getsockname()
    if isinstance(name, str):
        return f"unix://{name}"
    host, port = name[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise SettingsError(f"--host {host}: {error.strerror}") from None
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)  # else two servers could bind, and only one of them hear of it later
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} on {host} is taken, likely by Ollama, which uses it too: stop that, or use another one "
                f"with --port"
            ) from None
        raise SettingsError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    return opened


@contextmanager
def _unix(path: Path) -> Iterator[socket.socket]:
    path = path.expanduser().absolute()
    _make_way(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        try:
            before = os.umask(0o777 & ~_UNIX_MODE)  # from its first moment on, nobody else may connect
            try:
                opened.bind(str(path))
            finally:
                os.umask(before)
            opened.listen(_BACKLOG)
        except OSError as error:
            raise SettingsError(
                f"--unix-socket: cannot listen on {path}: {error.strerror or error}; give a path in a folder that "
                f"exists and can be written to"
            ) from None
        own = path.lstat()
        try:
            yield opened
        finally:
            with suppress(OSError):  # only if it is still ours: another server may have taken its place
                if os.path.samestat(path.lstat(), own):
                    path.unlink()


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens on any more; SettingsError for whatever else is there."""
    try:
        there = path.lstat()
    except OSError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise SettingsError(f"--unix-socket: {path} is there, and is no socket: give another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            with suppress(OSError):  # bind() tells what is wrong
                path.unlink()
            return
        except OSError as error:
            raise SettingsError(f"--unix-socket: {path} cannot be used: {error.strerror}") from None
    raise SettingsError(f"--unix-socket: a server listens on {path} already: stop it, or give another path")
