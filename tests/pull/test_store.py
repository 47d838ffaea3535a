"""Our own store: names, blobs that several of them need, and processes that end in the middle of something."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from stand_ins import FIDELITY, Pull, StandIn, content_of
from stores import OllamaStore

from loom_gguf.errors import ManifestError, ModelNotFoundError, NotOwnModelError, StoreError
from loom_gguf.library import Library, parse_name
from loom_gguf.pull import OwnStore, managing


def blobs(store: OwnStore) -> set[str]:
    return {path.name for path in (store.root / "blobs").iterdir()}


@pytest.fixture
def mine(do_pull: Pull, server: StandIn, llama: bytes) -> str:
    server.add_model("me/mine", llama, system="Be brief.")
    do_pull(f"{server.host}/me/mine")
    return f"{server.host}/me/mine"


def test_copy_and_remove(mine: str, library: Library, store: OwnStore, llama: bytes) -> None:
    before = blobs(store)
    managing.copy(library, mine.upper(), "second")
    assert library.find("Second:latest").path == library.find(mine).path
    assert library.extras(library.find("second")).system == "Be brief."
    entry, freed = managing.remove(library, mine)
    assert (entry.name, freed) == (mine, 0)
    assert blobs(store) == before
    assert library.find("second").path.read_bytes() == llama
    assert not (store.root / "manifests" / mine.partition("/")[0]).exists()
    _, freed = managing.remove(library, "SECOND")
    assert freed > len(llama)
    assert blobs(store) == set()
    with pytest.raises(ModelNotFoundError):
        managing.remove(library, "second")


def test_copy_over_another_model(mine: str, do_pull: Pull, server: StandIn, library: Library, store: OwnStore) -> None:
    other = (FIDELITY / "llama-f16.gguf").read_bytes()
    server.add_model("me/other", other)
    do_pull(f"{server.host}/me/other")
    managing.copy(library, mine, f"{server.host}/me/other")
    assert not store.blob(hashlib.sha256(other).hexdigest()).exists()
    managing.copy(library, mine, mine.upper())  # the same name: nothing happens
    assert [entry.name for entry in library.entries() if entry.place == "own"] == [mine, f"{server.host}/me/other"]


@pytest.mark.parametrize("name", ["demo", "Demo:latest", "registry.ollama.ai/library/demo"])
def test_the_name_demo_is_taken(mine: str, library: Library, name: str) -> None:
    with pytest.raises(StoreError, match="comes with the package"):
        managing.copy(library, mine, name)


def test_other_places_are_never_changed(library: Library, tmp_path: Path, mine: str) -> None:
    theirs = OllamaStore(tmp_path / "ollama")
    theirs.add("llama3.2")
    before = content_of(theirs.root)
    for name, owner in (("llama3.2", "Ollama's"), ("demo", "comes with the package")):
        with pytest.raises(NotOwnModelError, match=owner):
            managing.remove(library, name)
        with pytest.raises(NotOwnModelError, match=owner):
            managing.copy(library, name, "x")
    # A name of ours that hides one of theirs: ours goes, theirs stays.
    managing.copy(library, mine, "llama3.2")
    assert library.find("llama3.2").place == "own"
    managing.remove(library, "llama3.2")
    assert library.find("llama3.2").place == "ollama"
    assert content_of(theirs.root) == before


def test_a_damaged_manifest_keeps_all_blobs(mine: str, library: Library, store: OwnStore) -> None:
    before = blobs(store)
    managing.copy(library, mine, "damaged")
    (store.root / "manifests/registry.ollama.ai/library/damaged/latest").write_bytes(b"{")
    managing.remove(library, mine)
    assert blobs(store) == before  # nobody knows what the damaged one needs
    with pytest.raises(ManifestError):
        managing.copy(library, "damaged", "x")
    managing.remove(library, "damaged")  # and it can be removed itself
    assert [entry.name for entry in library.entries() if entry.place == "own"] == []


def test_removal_while_a_pull_runs(
    mine: str, do_pull: Pull, server: StandIn, library: Library, store: OwnStore, llama: bytes
) -> None:
    """The pull needs weights that are there when it begins, and gone when it ends: it fetches them after all."""
    server.add_model("me/second", llama, system="x" * 50_000)
    server.rate = 200_000
    thread = threading.Thread(target=do_pull, args=(f"{server.host}/me/second",))
    thread.start()
    digest = hashlib.sha256(b"x" * 50_000).hexdigest()
    until((store.partial / f"sha256-{digest}").exists)
    managing.remove(library, mine)
    server.rate = 0
    thread.join()
    assert library.find(f"{server.host}/me/second").path.read_bytes() == llama


def test_two_pulls_of_one_model(do_pull: Pull, server: StandIn, store: OwnStore, llama: bytes) -> None:
    """As two processes would do it: each file has a lock, so it comes once."""
    server.add_repository("a/b", {"b.gguf": llama})
    server.rate = 2 * 10**6
    threads = [threading.Thread(target=do_pull, args=("hf.co/a/b",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.ranges()) == 1
    assert store.blob(hashlib.sha256(llama).hexdigest()).read_bytes() == llama
    assert not list(store.partial.iterdir())


def test_unfinished_downloads_are_removed(store: OwnStore, do_pull: Pull, server: StandIn, llama: bytes) -> None:
    (store.partial / ("sha256-" + "0" * 64)).write_bytes(b"12345")
    held = store.partial / ("sha256-" + "1" * 64)
    from loom_gguf.pull.locks import locked_file

    with locked_file(held) as descriptor:
        os.write(descriptor, b"123")
        assert store.remove_partial() == 5
        assert held.exists()
    assert store.remove_partial() == 3


CHILD = """
import sys, threading
from pathlib import Path
from loom_gguf.pull import OwnStore, Watcher, pull
watcher = Watcher(lambda line: print(line.completed or 0, flush=True), threading.Event())
pull(sys.argv[1], OwnStore(Path(sys.argv[2])), watcher, environ={"HF_ENDPOINT": sys.argv[3]})
"""


@pytest.mark.parametrize("where", ["ollama", "hf"])
def test_a_pull_that_is_killed(
    do_pull: Pull, server: StandIn, store: OwnStore, library: Library, llama: bytes, where: str
) -> None:
    server.add_repository("a/b", {"b.gguf": llama})
    server.add_model("a/b", llama)
    server.rate = 400_000
    name = "hf.co/a/b" if where == "hf" else f"{server.host}/a/b"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, name, str(store.root), server.url], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) > 50_000:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert [entry for entry in library.entries() if entry.place == "own"] == []
    left = (store.partial / f"sha256-{hashlib.sha256(llama).hexdigest()}").stat().st_size
    assert 50_000 < left < len(llama)
    server.rate = 0
    do_pull(name)
    assert server.ranges()[-1] == f"bytes={left}-"
    assert store.blob(hashlib.sha256(llama).hexdigest()).read_bytes() == llama


def test_no_room_on_a_small_disk(do_pull: Pull, server: StandIn, store: OwnStore, llama: bytes, tmp_path: Path) -> None:
    """A real disk that is too small, where tests may mount one."""
    store.root.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(store.root)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount")
    from loom_gguf.errors import NoSpaceError
    from loom_gguf.pull import space

    try:
        server.add_repository("a/b", {"b.gguf": llama})
        with pytest.raises(NoSpaceError, match="make room"):
            do_pull("hf.co/a/b")
        assert server.ranges() == []
        with pytest.MonkeyPatch.context() as patch:  # as if somebody filled the disk after it was looked at
            patch.setattr(space.shutil, "disk_usage", lambda _: (0, 0, 2**60))
            patch.setattr("loom_gguf.pull.check_space", lambda *_: None)
            patch.setattr("loom_gguf.pull.download.check_space", lambda *_: None)
            with pytest.raises(NoSpaceError, match="became full"):
                do_pull("hf.co/a/b")
    finally:
        subprocess.run(["umount", str(store.root)], check=True)


def test_names_in_another_case_are_the_same(mine: str, library: Library, store: OwnStore) -> None:
    managing.copy(library, mine, "Mixed:Case")
    managing.copy(library, mine, "mIXED:cASE")
    assert [path.name for path in (store.root / "manifests/registry.ollama.ai/library").iterdir()] == ["Mixed"]
    assert store.read(parse_name("MIXED:case")).digest


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
