"""Pulls from servers that behave, and from servers that do not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import gguf_edit
import pytest
from stand_ins import FIDELITY, IMAGE, Pull, StandIn, content_of

from loom_gguf import Capture, Model
from loom_gguf.errors import (
    AccessDeniedError,
    ChecksumError,
    DownloadError,
    ForeignEngineError,
    LoomError,
    ModelNameError,
    ModelNotFoundError,
    NoSpaceError,
    NotGGUFError,
    PullCancelledError,
    RegistryError,
    StoreError,
    UnsafeUrlError,
    UnsupportedModelError,
)
from loom_gguf.library import Library, parse_name
from loom_gguf.pull import OwnStore, Patience, Progress, download
from loom_gguf.pull import space as space_module

ODD = (1, 4095, 4096, 65_536, 100_001)  # bytes after which connections are cut


def own(library: Library) -> list[Any]:
    return [entry for entry in library.entries() if entry.place == "own"]


def only_blob(store: OwnStore, content: bytes) -> bytes:
    return store.blob(hashlib.sha256(content).hexdigest()).read_bytes()


# -- what is right ----------------------------------------------------------------------------------------------


def test_a_model_of_a_registry(
    do_pull: Pull, server: StandIn, llama: bytes, store: OwnStore, library: Library, said: list[Progress]
) -> None:
    manifest = server.add_model("me/mine", llama, "1b", system="Be brief.", params={"temperature": 0.5})
    do_pull(f"{server.host}/me/mine:1b")
    entry = library.find(f"{server.host}/me/mine:1b")
    assert (entry.place, entry.digest) == ("own", hashlib.sha256(manifest).hexdigest())
    assert entry.path.read_bytes() == llama
    assert library.extras(entry).system == "Be brief."
    assert library.extras(entry).params == {"temperature": 0.5}
    lines = [each.line() for each in said]
    digest = hashlib.sha256(llama).hexdigest()
    weights = [line for line in lines if line["status"] == f"pulling {digest[:12]}"]
    assert weights[0] == {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": len(llama),
                          "completed": 0}  # fmt: skip
    assert weights[-1]["completed"] == len(llama)
    statuses = list(dict.fromkeys(line["status"].partition(" ")[0] for line in lines))
    assert statuses == ["pulling", "verifying", "writing", "success"]
    assert lines[0] == {"status": "pulling manifest"}
    assert not list(store.partial.iterdir())
    with Model(entry.path, n_ctx=64) as model:
        assert len(model.forward([1, 2, 3], Capture.layers([0]))["l_out-0"]) == 3


def test_what_is_there_is_not_fetched_again(do_pull: Pull, server: StandIn, llama: bytes) -> None:
    server.add_model("me/mine", llama)
    server.add_model("me/other", llama, system="New.")
    do_pull(f"{server.host}/me/mine")
    n = len(server.ranges())
    do_pull(f"{server.host}/me/mine")
    assert len(server.ranges()) == n
    do_pull(f"{server.host}/me/other")
    assert len(server.ranges()) == n + 1  # the system prompt; the weights and the configuration are there


def test_a_new_version_frees_the_old_one(
    do_pull: Pull, server: StandIn, llama: bytes, store: OwnStore, library: Library
) -> None:
    server.add_model("me/mine", llama)
    do_pull(f"{server.host}/me/mine")
    new = (FIDELITY / "llama-f16.gguf").read_bytes()
    server.add_model("me/mine", new)
    do_pull(f"{server.host}/me/mine")
    assert library.find(f"{server.host}/me/mine").path.read_bytes() == new
    assert not store.blob(hashlib.sha256(llama).hexdigest()).exists()


REPOSITORY = {"README.md": b"#", "Tiny-Q4_0.gguf": b"q", "Tiny-F32.gguf": b"f", "mmproj-Tiny-F16.gguf": b"p",
              "imatrix.gguf": b"i"}  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "tag"),
    [("", "Q4_0"), (":f32", "F32"), (":Tiny-F32.gguf", "F32"), (":Q4_0", "Q4_0"), (":tiny-q4_0", "Q4_0")],
)
def test_a_repository_of_hugging_face(
    do_pull: Pull, server: StandIn, library: Library, llama: bytes, asked: str, tag: str
) -> None:
    files = REPOSITORY | {"Tiny-F32.gguf": llama, "Tiny-Q4_0.gguf": (FIDELITY / "llama-q4_0.gguf").read_bytes()}
    server.add_repository("Org/Tiny-GGUF", files)
    name = do_pull(f"hf.co/Org/Tiny-GGUF{asked}")
    assert str(name) == f"hf.co/Org/Tiny-GGUF:{tag}"
    for way in (f"hf.co/Org/Tiny-GGUF:{tag}", f"huggingface.co/org/tiny-gguf:{tag}", "hf.co/Org/Tiny-GGUF"):
        entry = library.find(way)
        assert entry.path.read_bytes() == files[f"Tiny-{tag}.gguf"]
        assert entry.quantization == tag
    assert entry.details["model_family"] == "llama"
    assert len(own(library)) == 1


def test_a_split_model_of_hugging_face(
    do_pull: Pull, server: StandIn, library: Library, store: OwnStore, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    paths = gguf_edit.read(FIDELITY / "llama.gguf").split(tmp_path / "made", "Tiny-F32", 3)
    parts = {path.name: path.read_bytes() for path in paths}
    server.add_repository("o/split", {f"sub/{name}": data for name, data in parts.items()})
    do_pull("hf.co/o/split")
    (entry,) = own(library)
    assert entry.problem is None
    assert [part.read_bytes() for part in entry.parts] == list(parts.values())
    with Model(entry.path, n_ctx=64) as model:
        whole = model.forward([1, 2, 3], Capture.layers([0]))["l_out-0"]
    with Model(FIDELITY / "llama.gguf", n_ctx=64) as model:
        assert (model.forward([1, 2, 3], Capture.layers([0]))["l_out-0"] == whole).all()
    store.remove(parse_name(entry.name))
    assert not list((store.root / "blobs").iterdir())
    assert not list((store.root / "split").iterdir())


def test_a_file_that_is_not_in_lfs(do_pull: Pull, server: StandIn, library: Library, llama: bytes) -> None:
    server.add_repository("o/r", {"tiny.gguf": llama}, lfs=False)
    server.faults.append(("cut", 5000))
    assert str(do_pull("hf.co/o/r")) == "hf.co/o/r:tiny"
    assert library.find("hf.co/o/r").path.read_bytes() == llama
    server.add_repository("o/bad", {"tiny.gguf": llama + b"x"}, lfs=False)
    server.faults.append(("wrong bytes",))
    with pytest.raises(ChecksumError, match="damaged"):
        do_pull("hf.co/o/bad")


# -- connections that break ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut", "short", "no ranges, cut"])
@pytest.mark.parametrize("where", ["ollama", "hf"])
def test_connections_that_are_cut(
    do_pull: Pull, server: StandIn, store: OwnStore, llama: bytes, kind: str, where: str
) -> None:
    name = f"{server.host}/a/b"
    if where == "hf":
        server.add_repository("a/b", {"b.gguf": llama})
        name = "hf.co/a/b"
    else:
        server.add_model("a/b", llama)
        server.faults.append(("good",))  # for the configuration
    cuts = ODD if kind != "no ranges, cut" else ODD[:2]
    server.faults.extend((kind, n) for n in cuts)
    do_pull(name)
    assert only_blob(store, llama) == llama
    starts = [None if each is None else int(each.removeprefix("bytes=")[:-1]) for each in server.ranges()][-len(cuts) :]
    done = 0
    if kind != "no ranges, cut":
        for start, n in zip(starts, cuts, strict=True):
            done += n
            assert start == done  # each connection went on where the one before it ended


@pytest.mark.parametrize(
    "faults",
    [
        [("cut", 9000), ("416",)],
        [("cut", 9000), ("wrong range",)],
        [("cut", 9000), ("status", 416)],
        [("cut", 9000), ("no ranges",)],
        [("status", 503), ("cut", 9000), ("status", 429, {"retry-after": "0"})],
        [("cut", 0), ("cut", 0), ("cut", 70_000), ("cut", 0)],
        [("cut", 9000), ("wrong bytes",)],  # the first try then ends with a wrong checksum
    ],
)  # fmt: skip
def test_answers_that_are_odd(
    do_pull: Pull, server: StandIn, store: OwnStore, llama: bytes, faults: list[tuple[Any, ...]]
) -> None:
    server.add_repository("a/b", {"b.gguf": llama})
    server.faults.extend(faults[:-1] if faults[-1] == ("wrong bytes",) else faults)
    if faults[-1] == ("wrong bytes",):
        # What an earlier pull has left is broken: all of it comes again, without a word from the user.
        path = store.partial / f"sha256-{hashlib.sha256(llama).hexdigest()}"
        path.write_bytes(bytes(9000))
        server.faults.clear()
    do_pull("hf.co/a/b")
    assert only_blob(store, llama) == llama
    assert not server.faults


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (("status", 404), ModelNotFoundError, "not there"),
        (("status", 401), AccessDeniedError, "does not give"),
        (("status", 403), AccessDeniedError, "on purpose"),
        (("status", 400), RegistryError, "status 400"),
        (("status", 500), DownloadError, "pull again"),
        (("status", 429, {"retry-after": "0"}), DownloadError, "429"),
        (("cut", 0), DownloadError, "kept"),
        (("wrong bytes",), ChecksumError, "thrown away"),
        (("too long",), ChecksumError, "longer"),
        (("redirect", "ftp://127.0.0.1/x"), UnsafeUrlError, "ftp"),
        (("redirect", "http://192.0.2.1/x"), UnsafeUrlError, "--insecure"),
        (("redirect", "http://[::1"), RegistryError, "no address"),
    ],
)
@pytest.mark.parametrize("where", ["ollama", "hf"])
def test_errors(
    do_pull: Pull, server: StandIn, library: Library, store: OwnStore, llama: bytes,
    where: str, fault: tuple[Any, ...], error: type[LoomError], words: str,
) -> None:  # fmt: skip
    server.add_repository("a/b", {"b.gguf": llama})
    server.add_model("a/b", llama)
    if where == "ollama":
        server.faults.append(("good",))
    server.faults.extend([fault] * 10)
    with pytest.raises(error, match=words):
        do_pull("hf.co/a/b" if where == "hf" else f"{server.host}/a/b")
    assert own(library) == []
    assert "manifests" not in {path.partition("/")[0] for path in content_of(store.root)}
    server.faults.clear()
    do_pull("hf.co/a/b")
    assert only_blob(store, llama) == llama


def test_a_server_that_stalls(do_pull: Pull, server: StandIn, store: OwnStore, llama: bytes, said: Any) -> None:
    server.add_repository("a/b", {"b.gguf": llama})
    server.faults.append(("stall", 50_000))
    do_pull("hf.co/a/b", Patience(connect=5, read=0.3, tries=3, first_wait=0.01))
    assert server.ranges() == [None, "bytes=50000-"]
    assert only_blob(store, llama) == llama
    assert any("nothing comes any more" in each.status for each in said)


def test_nobody_there(do_pull: Pull, store: OwnStore) -> None:
    with pytest.raises(DownloadError, match=r"no connection.*3 times"):
        do_pull("127.0.0.1:1/a/b")


# -- the list of files, the manifest -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, ModelNotFoundError, "HF_TOKEN"),
        (403, AccessDeniedError, "HF_TOKEN"),
        (404, ModelNotFoundError, "Check the name"),
        (418, RegistryError, "418"),
        (500, DownloadError, "500"),
    ],
)
def test_errors_of_the_hub(do_pull: Pull, server: StandIn, status: int, error: type[LoomError], words: str) -> None:
    headers = {"x-error-code": "RepoNotFound"} if status in (401, 404) else {}
    server.text_faults.extend([("status", status, headers)] * 20)
    with pytest.raises(error, match=words):
        do_pull("hf.co/a/b")


def test_a_gated_repository(do_pull: Pull, server: StandIn) -> None:
    server.text_faults.append(("status", 403, {"x-error-code": "GatedRepo"}))
    with pytest.raises(AccessDeniedError, match="agreed to its terms"):
        do_pull("hf.co/a/b")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, AccessDeniedError, "need no login"),
        (404, ModelNotFoundError, "check its name"),
        (502, DownloadError, "502"),
    ],
)
def test_errors_of_a_registry(do_pull: Pull, server: StandIn, status: int, error: type[LoomError], words: str) -> None:
    server.text_faults.extend([("status", status)] * 20)
    with pytest.raises(error, match=words):
        do_pull(f"{server.host}/a/b")


def test_the_hub_is_asked_again(do_pull: Pull, server: StandIn, store: OwnStore, llama: bytes) -> None:
    server.add_repository("a/b", {"b.gguf": llama})
    server.text_faults.extend([("status", 503), ("status", 429)])
    do_pull("hf.co/a/b")
    assert only_blob(store, llama) == llama


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{", b"[]", b"[" * 100_000, b'{"layers": 7}',
     b'{"layers": [{"mediaType": "x", "digest": "sha256:../../x"}]}',
     json.dumps({"layers": [{"mediaType": IMAGE + "model", "digest": "sha256:" + "0" * 64, "size": -1}]}).encode(),
     json.dumps({"layers": [{"mediaType": IMAGE + "model", "digest": "sha256:" + "0" * 64, "size": 2**63}]}).encode(),
     b"x" * (5 * 2**20)],
)  # fmt: skip
def test_manifests_that_are_none(do_pull: Pull, server: StandIn, library: Library, manifest: bytes) -> None:
    server.put_manifest("a/b", "latest", manifest)
    with pytest.raises(RegistryError):
        do_pull(f"{server.host}/a/b")
    assert own(library) == []


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"adapter": b"x"}, UnsupportedModelError, "LoRA"),
        ({"projector": b"x"}, UnsupportedModelError, "text alone"),
        ({"tensor": b"x"}, UnsupportedModelError, "GGUF"),
        ({"config": {"model_format": "safetensors"}}, UnsupportedModelError, "safetensors"),
        ({"config": {"remote_host": "https://example.com"}}, UnsupportedModelError, "other machines"),
    ],
)
def test_models_that_are_refused_before_they_come(
    do_pull: Pull, server: StandIn, llama: bytes, more: dict[str, Any], error: type[LoomError], words: str
) -> None:
    server.add_model("a/b", llama, **more)
    weights = next(path for path in server.files if hashlib.sha256(llama).hexdigest() in path)
    with pytest.raises(error, match=words):
        do_pull(f"{server.host}/a/b")
    assert weights not in [each.path for each in server.asked]


def test_nothing_but_an_adapter(do_pull: Pull, server: StandIn) -> None:
    server.add_model("a/b", None, template="x")
    with pytest.raises(UnsupportedModelError, match="no GGUF file"):
        do_pull(f"{server.host}/a/b")


@pytest.mark.parametrize("where", ["ollama", "hf"])
def test_a_file_that_is_no_model(do_pull: Pull, server: StandIn, store: OwnStore, library: Library, where: str) -> None:
    server.add_repository("a/b", {"b.gguf": b"PK" * 1000})
    server.add_model("a/b", b"PK" * 1000)
    with pytest.raises(NotGGUFError, match="a/b"):
        do_pull("hf.co/a/b" if where == "hf" else f"{server.host}/a/b")
    assert own(library) == []
    assert not list(store.partial.iterdir())


def test_a_model_of_ollamas_engine_is_refused_early(
    do_pull: Pull, server: StandIn, store: OwnStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = gguf_edit.read(FIDELITY / "llama.gguf").as_architecture("gemma3").with_tensor("v.blk.0.norm.weight")
    data = blob.write(tmp_path / "blob").read_bytes()
    server.add_model("a/b", data)
    server.rate = 10**6
    monkeypatch.setattr(download, "_FIRST_LOOK", 60_000)
    with pytest.raises(ForeignEngineError, match="gemma3 file was written for Ollama's own engine"):
        do_pull(f"{server.host}/a/b")
    assert f"sha256-{hashlib.sha256(data).hexdigest()}" not in {path.name for path in store.partial.iterdir()}
    monkeypatch.setattr(download, "_FIRST_LOOK", 10**9)
    with pytest.raises(ForeignEngineError):
        do_pull(f"{server.host}/a/b")


@pytest.mark.parametrize(
    ("files", "tag", "error", "words"),
    [
        ({"a.safetensors": b"x"}, "", UnsupportedModelError, "no GGUF"),
        ({"mmproj-a-f16.gguf": b"x"}, "", UnsupportedModelError, "no GGUF"),
        ({"a-Q4_0.gguf": b"x", "a-Q8_0.gguf": b"x"}, ":Q5_K_M", ModelNotFoundError, "it has Q4_0, Q8_0"),
        ({"a-Q4_0-00001-of-00002.gguf": b"x"}, "", ModelNotFoundError, "lacks parts"),
        ({"../../a-Q4_0.gguf": b"x"}, "", UnsupportedModelError, "no GGUF"),
    ],
)
def test_repositories_without_it(
    do_pull: Pull, server: StandIn, files: dict[str, bytes], tag: str, error: type[LoomError], words: str
) -> None:
    server.add_repository("a/b", files)
    with pytest.raises(error, match=words):
        do_pull(f"hf.co/a/b{tag}")


# -- security -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "../x", "a/../../b", "/etc/passwd", "x:..", "hf.co/a/..", "a\0b", "http://x", "x" * 99]
)
def test_names_that_are_none(do_pull: Pull, store: OwnStore, name: str) -> None:
    with pytest.raises(ModelNameError):
        do_pull(name)
    assert not store.root.exists()


def test_the_name_demo(do_pull: Pull) -> None:
    with pytest.raises(StoreError, match="comes with the package"):
        do_pull("Demo")


@pytest.mark.parametrize("name", ["http://192.0.2.1/a/b", "http://example.com:5000/a/b"])
def test_plain_http(do_pull: Pull, name: str) -> None:
    with pytest.raises(UnsafeUrlError, match="--insecure"):
        do_pull(name)


def test_insecure_falls_back_to_plain_http(
    do_pull: Pull, other: StandIn, store: OwnStore, llama: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loom_gguf.pull import ollama_registry, transport

    # This machine's own addresses may always be plain: let them be anybody's.
    monkeypatch.setattr(transport, "is_loopback", lambda _: False)
    monkeypatch.setattr(ollama_registry, "is_loopback", lambda _: False)
    other.add_model("a/b", llama)
    with pytest.raises(DownloadError):
        do_pull(f"{other.host}/a/b")
    with pytest.raises(UnsafeUrlError):
        do_pull(f"http://{other.host}/a/b")
    do_pull(f"{other.host}/a/b", insecure=True)
    assert only_blob(store, llama) == llama


def test_a_redirect_gets_no_token(
    do_pull: Pull, server: StandIn, other: StandIn, store: OwnStore, llama: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.token = "hf_secret"
    server.add_repository("a/b", {"b.gguf": llama})
    other.files["/elsewhere"] = llama
    server.faults.extend([("redirect", f"{other.url}/elsewhere")] * 2)
    other.faults.append(("cut", 5000))
    do_pull("hf.co/a/b")
    assert only_blob(store, llama) == llama
    assert [each.headers["authorization"] for each in server.asked] == ["Bearer hf_secret"] * 3
    assert all("authorization" not in each.headers for each in other.asked)
    assert other.ranges() == [None, "bytes=5000-"]


def test_the_token_that_a_registry_gives_to_anybody(
    do_pull: Pull, server: StandIn, other: StandIn, store: OwnStore, llama: bytes
) -> None:
    server.add_model("a/b", llama)
    server.token = "anonymous"
    server.challenge = f'Bearer realm="{other.url}/token",service="reg",scope="repository:a/b:pull"'
    other.texts["/token"] = (200, {}, b'{"token": "anonymous"}')
    do_pull(f"{server.host}/a/b")
    assert only_blob(store, llama) == llama
    assert [(each.path, each.query) for each in other.asked] == [
        ("/token", "service=reg&scope=repository%3Aa%2Fb%3Apull")
    ]
    server.token = "another"  # the token is of no use
    server.add_model("c/d", llama)
    with pytest.raises(AccessDeniedError):
        do_pull(f"{server.host}/c/d")


def test_circles_of_redirects(do_pull: Pull, server: StandIn, llama: bytes) -> None:
    server.add_repository("a/b", {"b.gguf": llama})
    server.faults.extend([("redirect", "")] * 50)
    with pytest.raises(RegistryError, match="more than 10 times"):
        do_pull("hf.co/a/b")


def test_a_store_with_a_link_out(do_pull: Pull, server: StandIn, store: OwnStore, llama: bytes, tmp_path: Path) -> None:
    server.add_repository("a/b", {"b.gguf": llama})
    (store.root / "manifests").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (store.root / "manifests" / "hf.co").symlink_to(tmp_path / "out")
    with pytest.raises(StoreError, match="leads out"):
        do_pull("hf.co/a/b")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


# -- the disk -----------------------------------------------------------------------------------------------------


def test_no_room_for_it(
    do_pull: Pull, server: StandIn, store: OwnStore, llama: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_repository("a/b", {"b.gguf": llama})
    usage = space_module.shutil.disk_usage("/")._replace(free=2**25 + len(llama) - 1)
    monkeypatch.setattr(space_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpaceError, match=r"needs .* more.*make room"):
        do_pull("hf.co/a/b")
    assert server.ranges() == []
    usage = usage._replace(free=2**25 + len(llama))
    do_pull("hf.co/a/b")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_the_disk_becomes_full(
    do_pull: Pull, server: StandIn, store: OwnStore, library: Library, llama: bytes, monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:  # fmt: skip
    server.add_repository("a/b", {"b.gguf": llama})
    written = 0

    def write(descriptor: int, data: Any) -> int:
        nonlocal written
        if written + len(data) > 100_000:
            raise OSError(code, os.strerror(code))
        written += len(data)
        return real(descriptor, data)

    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(download.os, "write", write)
        with pytest.raises(NoSpaceError, match=r"became full.*pull again.*kept"):
            do_pull("hf.co/a/b")
    assert own(library) == []
    (left,) = [path.stat().st_size for path in store.partial.iterdir()]
    assert 0 < left <= 100_000
    do_pull("hf.co/a/b")
    assert server.ranges() == [None, f"bytes={left}-"]
    assert only_blob(store, llama) == llama


def test_a_pull_that_is_stopped(
    do_pull: Pull, server: StandIn, store: OwnStore, library: Library, llama: bytes
) -> None:
    server.add_repository("a/b", {"b.gguf": llama})
    stop = threading.Event()
    server.rate = 10**6
    timer = threading.Timer(0.05, stop.set)
    timer.start()
    with pytest.raises(PullCancelledError):
        do_pull("hf.co/a/b", cancelled=stop)
    timer.join()
    assert own(library) == []
    server.rate = 0
    do_pull("hf.co/a/b")
    assert only_blob(store, llama) == llama
