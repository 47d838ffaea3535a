"""What the server listens on."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from loom_gguf.errors import SettingsError
from loom_gguf.server.sockets import addresses, listening
from loom_gguf.settings import ServerSettings


def unix(path: Path, transport: str = "unix") -> ServerSettings:
    return ServerSettings(transport=transport, unix_socket=path, port=0)  # type: ignore[arg-type]


def test_both_at_once_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(unix(path, "both")) as sockets:
        tcp, local = addresses(sockets)
        assert tcp.startswith("http://127.0.0.1:")
        assert local == f"unix://{path}"
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


def test_a_stale_socket_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(unix(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_taken_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(unix(path)):
        with pytest.raises(SettingsError, match="listens on"), listening(unix(path)):
            pass
        assert path.exists()


def test_a_file_in_the_way_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(SettingsError, match="is no socket"), listening(unix(path)):
        pass
    assert path.read_text() == "precious"


def test_another_servers_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(unix(path)):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


@pytest.mark.parametrize("name", ["nosuch/s", "x" * 200])
def test_a_path_that_cannot_be_bound(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--unix-socket: cannot listen"), listening(unix(tmp_path / name)):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SettingsError, match="Permission denied"), listening(unix(tmp_path / "s")):
        pass
    tmp_path.chmod(0o700)
