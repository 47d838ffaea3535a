"""The server under test as the system sees it: processes, threads, file handles, memory. Linux only (/proc)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_PAGE = os.sysconf("SC_PAGESIZE")
_SHARED = Path("/dev/shm")
_OUR_SHARED = ("loom", "psm_", "sem.mp-", "pym-")  # names that this package and multiprocessing give

# What must not be in the log of a server that does its work.
_WORRYING = re.compile(r"Traceback|unexpected error|internal server error|never retrieved|CRITICAL|Exception in ASGI")
_ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE)  # its first line begins with a date


@dataclass(frozen=True)
class Process:
    """A child of the server that has a model, or is about to."""

    pid: int
    name: str  # "loom llama" once it has got so far
    threads: int
    files: int


@dataclass(frozen=True)
class Counts:
    """What a server holds."""

    models: int  # processes
    threads: int
    files: int  # open file handles
    rss_mib: float
    left_files: int  # in its temporary folder and in shared memory


@dataclass
class Server:
    """`loom-gguf serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    address: str
    folder: Path  # of its log and temporary files
    kills: list[float] = field(default_factory=list)  # time.monotonic() of every SIGKILL

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[Process]:
        """Processes of models, zombies too; without multiprocessing's own helper, which stays."""
        found = []
        for pid in _children(self.pid):
            with suppress(OSError):  # it has just ended
                if b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                threads = len(os.listdir(f"/proc/{pid}/task"))
                found.append(Process(pid, name, threads, _files(pid)))
        return found

    def counts(self) -> Counts:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return Counts(
            len(self.children()),
            len(os.listdir(f"/proc/{self.pid}/task")),
            _files(self.pid),
            pages * _PAGE / 2**20,
            len(self.left_files()),
        )

    def open_files(self) -> list[str]:
        """What the server's file handles are, for a person."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(entry))
        return sorted(found)

    def left_files(self) -> list[str]:
        temporary = [str(path) for path in (self.folder / "tmp").rglob("*")]
        return temporary + [name for name in _shared() if name not in self.shared_before]

    shared_before: frozenset[str] = frozenset()

    def kill_one(self, random: Random) -> str | None:
        """SIGKILL to any model's process, whatever it is doing; its name, or None where there is none."""
        children = self.children()
        if not children:
            return None
        child = random.choice(children)
        self.kills.append(time.monotonic())
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        return child.name

    def worries(self) -> list[str]:
        """Entries of the log, and of what else it printed, that a server should not write."""
        text = "".join((self.folder / name).read_text(errors="replace") for name in ("log", "stderr"))
        return [entry.rstrip() for entry in _ENTRY.split(text) if _WORRYING.search(entry)]


@contextmanager
def serving(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Start `loom-gguf serve` at a free port, and end it; raises RuntimeError where it does not end as it should."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "log").touch()
    command = [sys.executable, "-m", "loom_gguf", "serve", "--port", "0", "--log-file", str(folder / "log")]
    shared = frozenset(_shared())
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            cwd=folder,
            env={**os.environ, **environment, "TMPDIR": str(folder / "tmp")},
        )
    try:
        address = _address(process, folder / "stderr")
        server = Server(process, address, folder)
        server.shared_before = shared
        yield server
        process.send_signal(signal.SIGTERM)
        if (status := process.wait(_STOP_SECONDS)) != 0:
            raise RuntimeError(f"the server ended with exit status {status}")
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for something; false where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _address(process: subprocess.Popen[bytes], stderr: Path) -> str:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if found := re.search(r" at (http://[\w.:]+)", stderr.read_text(errors="replace")):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {stderr.read_text(errors='replace')[-2000:]}")


def _children(parent: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                # pid (name, which may hold anything) state ppid ...
                fields = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.append(int(entry))
    return found


def _files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _shared() -> list[str]:
    if not _SHARED.is_dir():
        return []
    return [str(path) for path in _SHARED.iterdir() if path.name.startswith(_OUR_SHARED)]
