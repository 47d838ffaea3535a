"""Names that want out of the folders, and manifests made to harm: a clear error, in bounded memory and time."""

from __future__ import annotations

import json
import os
import resource
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stores import FIDELITY, LLAMA, HuggingFaceCache, LMStudioFolder, OllamaStore

from loom_gguf.errors import LoomError, ManifestError, ModelNameError, ModelNotFoundError
from loom_gguf.library import Library, LibrarySettings, parse_name
from loom_gguf.library.names import bare, key, keys

OUT = ["../secret", "../../secret", "a/../../secret", "/etc/passwd", "..", ".", "./secret", "a/./b", "a//b", "~/secret",
       "..\\secret", "%2e%2e/secret", "hf.co/../secret", "hf.co/a/..:x", "hf.co/a/b:../../../secret", "x:..", "x:.",
       ":latest", "a:", "a/b/c/d", "a/b/c/d:e", "a b", "a\n", "a\0b", "a:b:c", "a@sha256:00", "a" * 81, "a/" * 400,
       "x:" + "t" * 81, "\u212arypt", "llama\u2024", "ｌlama", "llаma", "a\u200bb", "a\u202eb", "\ud800", "-a", ".a",
       "a..", "file:///etc/passwd", "-rf", "sha256-" + "0" * 64, "blobs/sha256-" + "0" * 64]  # fmt: skip


@pytest.fixture
def stores(tmp_path: Path) -> tuple[OllamaStore, HuggingFaceCache, LMStudioFolder, Path]:
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(LLAMA.read_bytes())
    (tmp_path / "secret").write_bytes(LLAMA.read_bytes())
    ollama = OllamaStore(tmp_path / "ollama")
    ollama.add("good")
    return ollama, HuggingFaceCache(tmp_path / "hub"), LMStudioFolder(tmp_path / "studio"), secret


@pytest.fixture
def library(stores: Any, tmp_path: Path) -> Library:
    return Library(
        LibrarySettings(
            own=tmp_path / "own", folder=tmp_path / "folder", ollama=(tmp_path / "ollama",),
            hugging_face=tmp_path / "hub", lm_studio=(tmp_path / "studio",),
        )
    )  # fmt: skip


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUT)
def test_names_that_lead_out(library: Library, name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        library.find(name)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", [name for name in OUT if name not in ("a..", "sha256-" + "0" * 64, "blobs/sha256-" + "0" * 64)]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ModelNameError) as caught:
        parse_name(name)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("text", "whole", "short"),
    [
        ("llama3.2", "registry.ollama.ai/library/llama3.2:latest", "llama3.2"),
        ("Llama3.2:1B-q4_0", "registry.ollama.ai/library/Llama3.2:1B-q4_0", "Llama3.2:1B-q4_0"),
        ("me/mine", "registry.ollama.ai/me/mine:latest", "me/mine"),
        ("hf.co/o/r:Q4_K_M", "hf.co/o/r:Q4_K_M", "hf.co/o/r:Q4_K_M"),
        ("http://localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("registry.ollama.ai/Library/x:Latest", "registry.ollama.ai/Library/x:Latest", "x"),
    ],
)
def test_names(text: str, whole: str, short: str) -> None:
    name = parse_name(text)
    assert (str(name), name.short) == (whole, short)
    assert parse_name(str(name)) == name
    assert name.scheme == ("http" if text.startswith("http:") else "https")


_PART = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=20).filter(
    lambda text: text[0] not in "-."
)
_LIKE_NAMES = st.text(st.sampled_from("aA0_-./:~\\ \0\u212a\u00e9%@"), max_size=30)


@given(st.one_of(st.text(max_size=100), _LIKE_NAMES))
@example("a/b/c/../d")
def test_no_text_becomes_a_path_out(text: str) -> None:
    keys(text)
    try:
        name = parse_name(text)
    except ModelNameError:
        return
    assert str(name).isascii()
    assert "\0" not in str(name)
    path = os.path.normpath(f"/store/manifests/{name.path}")
    assert path == f"/store/manifests/{name.path}"
    assert path.count("/") == 6
    assert parse_name(name.short).path.parts[2] == name.model


@given(_PART, _PART, _PART.map(lambda text: text.replace(".", "x")), _PART)
def test_names_match_whatever_their_case(host: str, model: str, namespace: str, tag: str) -> None:
    name = f"{host}/{namespace}/{model}:{tag}"
    assert key(name.upper()) == key(name.lower())
    assert keys(name) & keys(name.swapcase())
    assert keys(f"{model}:latest") == keys(model) or bare(model) != model
    assert not keys(f"{model}:{tag}") & keys(f"{model}x:{tag}")


def test_letters_that_only_look_alike_are_others(library: Library, stores: Any) -> None:
    stores[0].add("kit")
    assert library.find("KIT").name == "kit"
    for name in ("\u212ait", "k\u0131t", "ki\ufb06"):
        with pytest.raises(ModelNotFoundError):
            library.find(name)


# -- links ------------------------------------------------------------------------------------------------------


def test_links_out_of_a_store(library: Library, stores: Any, tmp_path: Path) -> None:
    ollama, hub, studio, secret = stores
    path = ollama.add("blob-out", model=FIDELITY / "llama-q8_0.gguf")
    blob = library.find("blob-out").path
    assert blob is not None
    outside = secret.parent / "moved"
    blob.rename(outside)
    blob.symlink_to(outside)
    ollama.path("manifest-out").parent.mkdir(parents=True)
    ollama.path("manifest-out").symlink_to(_moved(path, tmp_path / "manifest"))
    for name in ("blob-out", "manifest-out"):
        if name == "blob-out":
            path.write_bytes((tmp_path / "manifest").read_bytes())
        with pytest.raises(ManifestError, match="leads out of the folders"):
            library.find(name)
    (ollama.root / "manifests" / "evil.com").symlink_to(tmp_path)
    for folder, name in (
        (hub.repository("o/r") / "snapshots" / ("a" * 40), "x-Q8_0.gguf"),
        (studio.root / "p" / "m", "x.gguf"),
    ):
        folder.mkdir(parents=True)
        (folder / name).symlink_to(secret)
        (folder / "folder").symlink_to(secret.parent)
    hub.repository("o/link").symlink_to(hub.repository("o/r"))
    assert {entry.name for entry in library.entries()} == {"demo", "good", "blob-out", "manifest-out"}


def _moved(path: Path, to: Path) -> Path:
    path.rename(to)
    return to


def test_a_store_may_itself_be_a_link(stores: Any, tmp_path: Path) -> None:
    ollama, hub, _, _ = stores
    hub.add("o/r", "x-Q8_0.gguf", LLAMA)
    links = []
    for name, root in (("a", ollama.root), ("b", hub.root)):
        links.append(tmp_path / name)
        links[-1].symlink_to(root)
    library = Library(LibrarySettings(ollama=(links[0],), hugging_face=links[1]))
    assert library.find("good").place == "ollama"
    assert library.find("hf.co/o/r").place == "huggingface"


def test_circles(library: Library, stores: Any) -> None:
    ollama, hub, studio, _ = stores
    for path in (
        ollama.path("circle"),
        studio.root / "a" / "b" / "c.gguf",
        hub.repository("o/r") / "snapshots" / "x" / "a.gguf",
    ):
        path.parent.mkdir(parents=True)
        path.symlink_to(path)
    (studio.root / "a" / "a").symlink_to(studio.root)
    with pytest.raises(ManifestError):
        library.find("circle")
    assert {entry.name for entry in library.entries()} == {"demo", "good", "circle"}


def test_what_is_no_file(library: Library, stores: Any) -> None:
    ollama, _, studio, _ = stores
    for path in (ollama.path("pipe"), studio.root / "a" / "b" / "pipe.gguf"):
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
    ollama.path("device").parent.mkdir()
    ollama.path("device").symlink_to("/dev/zero")
    with pytest.raises(ManifestError, match="no regular file"):
        library.find("pipe")
    with pytest.raises(ManifestError, match="leads out"):
        library.find("device")
    blob = ollama.blob_path("0" * 64)
    os.mkfifo(blob)
    ollama.put(
        "pipe-blob",
        ollama.manifest({"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "0" * 64, "size": 0}),
    )
    with pytest.raises(ManifestError, match="no file"):
        library.find("pipe-blob")


# -- manifests --------------------------------------------------------------------------------------------------

_LAYER = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "0" * 64, "size": 1}


def _layer(**changes: Any) -> Callable[[OllamaStore], Any]:
    return lambda store: store.manifest(_LAYER | changes)


BAD: dict[str, tuple[Callable[[OllamaStore], Any], str]] = {
    "empty": (lambda _: b"", "no JSON"),
    "cut": (lambda store: json.dumps(store.manifest(_LAYER)).encode()[:-10], "no JSON"),
    "binary": (lambda _: bytes(range(256)), "no JSON"),
    "no-object": (lambda _: b"[1, 2]", "must be a JSON object"),
    "deep": (lambda _: b"[" * 1_000_000, "no JSON"),
    "deep-objects": (lambda _: b'{"a":' * 500_000 + b"1" + b"}" * 500_000, "no JSON"),
    "huge": (lambda store: json.dumps(store.manifest(_LAYER)).encode() + b" " * 2**23, "more than 4,194,304"),
    "many": (lambda store: store.manifest(*[_LAYER] * 20_000), "model layers"),
    "no-list": (lambda store: store.manifest() | {"layers": {"a": 1}}, "must be a list"),
    "odd-layer": (lambda store: store.manifest() | {"layers": ["x"]}, "must be a JSON object"),
    "list-of-manifests": (lambda _: {"mediaType": "application/vnd.ollama.manifest.list.v2+json"}, "list of manifests"),
    "no-digest": (_layer(digest=None), "no digest"),
    "short-digest": (_layer(digest="sha256:abc"), "no digest"),
    "path-digest": (
        _layer(digest="sha256:../../../../../../../../../../../../../../../../../etc/passwd00"),
        "no digest",
    ),
    "nul-digest": (_layer(digest="sha256:" + "0" * 63 + "\0"), "no digest"),
    "line-digest": (_layer(digest="sha256:" + "0" * 64 + "\n"), "no digest"),
    "look-alike-digest": (_layer(digest="sha256:" + "\u0661" * 64), "no digest"),
    "other-hash": (_layer(digest="md5:" + "0" * 32), "no digest"),
    "negative": (_layer(size=-1), "size is -1"),
    "text-size": (_layer(size="9"), "size is '9'"),
    "bool-size": (_layer(size=True), "size is True"),
    "fraction": (_layer(size=1.5), "size is 1.5"),
    "too-large": (_layer(size=2**64), "size is"),
    "sum-too-large": (lambda store: store.manifest(*[_LAYER | {"size": 2**61}] * 3), "not believable"),
    "missing-blob": (_layer(), "is missing"),
    "no-type": (_layer(mediaType=None), "media type"),
    "odd-type": (_layer(mediaType=["x"]), "media type"),
    "size-past-the-file": (
        lambda store: store.manifest(store.layer("model", LLAMA) | {"size": 2**40}),
        "its manifest says",
    ),
    "odd-config": (lambda store: store.manifest() | {"config": store.blob(b"[]", "x")}, "must be a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_manifests_made_to_harm(library: Library, stores: Any, name: str) -> None:
    make, said = BAD[name]
    stores[0].put(name, make(stores[0]))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(LoomError, match=said) as caught:
        library.find(name)
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024  # KiB
    assert len(str(caught.value)) < 1000


def test_a_bad_manifest_hides_no_other(library: Library, stores: Any) -> None:
    ollama = stores[0]
    for name, (make, _) in BAD.items():
        ollama.put(name, make(ollama))
    ollama.put("registry.ollama.ai/library/..x/latest", b"{}")
    ollama.put("registry.ollama.ai/library/.DS_Store/x", b"{}")
    (ollama.root / "manifests" / "registry.ollama.ai" / ".DS_Store").write_bytes(b"x")
    ollama.add("zz-last")
    entries = {entry.name: entry for entry in library.entries()}
    assert set(entries) == {"demo", "good", "zz-last", *BAD}
    assert {name for name, entry in entries.items() if entry.problem is None} == {"demo", "good", "zz-last"}


@pytest.mark.parametrize("kind", ["system", "params", "template"])
def test_texts_that_are_not_those_of_the_manifest(library: Library, stores: Any, kind: str) -> None:
    ollama = stores[0]
    path = ollama.add("odd", **{kind: {"seed": 1}})
    blob = ollama.blob_path(json.loads(path.read_text())["layers"][1]["digest"])
    blob.write_bytes(b'{"seed":_2}')
    assert library.find("odd").problem is None
    with pytest.raises(ManifestError, match="digest"):
        library.extras(library.find("odd"))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"params": "[1]"}, "must be a JSON object"),
        ({"params": "{"}, "no JSON"),
        ({"messages": "{}"}, "must be a list"),
        ({"messages": '[{"role": 1}]'}, "must be a list"),
        ({"system": "x" * 2**23}, "more than 4,194,304"),
        ({"license": ["x" * 2**21 + str(i) for i in range(9)]}, "more than 16,777,216"),
    ],
)
def test_odd_texts(library: Library, stores: Any, layers: dict[str, Any], said: str) -> None:
    stores[0].add("odd", **layers)
    with pytest.raises(ManifestError, match=said):
        library.extras(library.find("odd"))


_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=10)
_FIELDS = st.sampled_from(["layers", "config", "digest", "size", "mediaType"])


@given(st.recursive(_SCALARS, lambda each: st.lists(each, max_size=4) | st.dictionaries(_FIELDS, each), max_leaves=20))
def test_manifests_of_any_shape(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    root = tmp_path_factory.getbasetemp() / "any-shape"
    store = OllamaStore(root)
    store.put("any", orjson.dumps(content))
    (entry,) = (entry for entry in Library(LibrarySettings(ollama=(root,))).entries() if entry.name == "any")
    assert isinstance(entry.problem, LoomError)


# -- paths ------------------------------------------------------------------------------------------------------


def test_paths_only_with_leave(library: Library, stores: Any) -> None:
    secret = stores[3]
    texts = set()
    for path in (secret, secret.parent / "nosuch.gguf"):
        with pytest.raises(ModelNotFoundError, match="--allow-paths") as caught:
            library.find(str(path))
        texts.add(str(caught.value).replace(path.name, ""))
    assert len(texts) == 1  # nobody learns which files there are
    allowed = Library(LibrarySettings(), allow_paths=True)
    assert allowed.find(str(secret)).path == secret
    for path in ("/nosuch.gguf", str(secret.parent), "/dev/zero", "a\0.gguf", "~nobody-here/x.gguf"):
        with pytest.raises(ModelNotFoundError):
            allowed.find(path)
