"""Damaged and hostile files, opened as any command or server opens them: 7 of 10 are GGUF files, the others stores.

    python scripts/fuzz_files.py --count 10000 --write docs/benchmarks.md

Each case has a number, and each number always gives the same files. They are opened in child processes whose address
space may grow by 256 MiB at most: whatever takes more ends there, and counts as a crash, like anything that is neither
a model nor an error in words, and anything that takes longer than a second. Exits with 1 if there is such a case.
`--first`, `--resume FILE` and `--seconds` do it in pieces. Linux only: peaks of memory come from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import mutations  # noqa: E402
from stores import DETAILS, OllamaStore  # noqa: E402

BASES = ("llama", "llama-q4_0", "bert", "mixtral", "mamba", "gemma2")
MAX_SECONDS, MAX_MIB = 1.0, 256.0
_HANGS = 30.0  # seconds after which a child is killed
_HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    number: int
    kind: str
    outcome: str  # "opened", the class of an error, or what must not be: "crash", "hang", "leak ..."
    seconds: float
    mib: float  # most memory in use at any moment, beyond that before
    what: str = ""


# -- GGUF files -----------------------------------------------------------------------------------------------------


@cache
def whole(name: str) -> tuple[bytes, mutations.Layout]:
    data = (TESTS / "fidelity" / f"{name}.gguf").read_bytes()
    return data, mutations.read_layout(data)


def bit_flips(data: bytes, layout: mutations.Layout, rng: random.Random) -> mutations.Mutation:
    out = bytearray(data)
    end = rng.choice((layout.header_end, len(data)))
    bits = [rng.randrange(end * 8) for _ in range(rng.choice((1, 2, 8, 64)))]
    for bit in bits:
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out), f"bits {bits[:4]}"


def truncation(data: bytes, layout: mutations.Layout, rng: random.Random) -> mutations.Mutation:
    n = rng.randrange(rng.choice((32, layout.header_end, len(data))))
    return data[:n], f"{n} bytes of {len(data)}"


def huge_count(data: bytes, layout: mutations.Layout, rng: random.Random) -> mutations.Mutation:
    """Lengths, counts and sizes past all reason."""
    ends = ("length", "count", "number of tensors", "number of keys", "offset", "dimensions", "length of the name")
    fields = [f for f in layout.fields if f.name.endswith(ends) or ": size " in f.name]
    out, said = bytearray(data), []
    for field in rng.sample(fields, rng.choice((1, 1, 2, 3))):
        n = field.end - field.start
        value = rng.choice(_HUGE) % 256**n
        out[field.start : field.end] = value.to_bytes(n, "little")
        said.append(f"{field.name} = {value}")
    return bytes(out), ", ".join(said)


def duplicate_name(data: bytes, layout: mutations.Layout, rng: random.Random) -> mutations.Mutation:
    """Two keys or two tensors of one name."""
    names = [f for f in layout.fields if f.name.endswith(": name")]
    one, other = rng.sample(names, 2)
    new = data[one.start : one.end]
    changed = data[: other.start - 8] + struct.pack("<Q", len(new)) + new + data[other.end :]
    return changed, f"{other.name} is {new!r} too"


def past_the_end(data: bytes, layout: mutations.Layout, rng: random.Random) -> mutations.Mutation:
    """Tensors that lie behind the end, or upon each other."""
    offsets = [f for f in layout.fields if f.name.endswith(": offset")]
    field = rng.choice(offsets)
    value = rng.choice((0, len(data) // 32 * 32, len(data) * 32, *_HUGE)) % 2**64
    return data[: field.start] + struct.pack("<Q", value) + data[field.end :], f"{field.name} = {value}"


def split_keys(data: bytes, layout: mutations.Layout, rng: random.Random) -> mutations.Mutation:
    """Says that it is one of many parts."""
    count, number = rng.choice((0, 2, 3, 65535)), rng.choice((0, 1, 65535))
    keys = b""
    for key, kind, value in (("split.count", 2, count), ("split.no", 2, number)):
        keys += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IH", kind, value)
    n_keys = next(f for f in layout.fields if f.name == "number of keys")
    n = int.from_bytes(data[n_keys.start : n_keys.end], "little") + 2
    changed = data[: n_keys.start] + struct.pack("<Q", n) + keys + data[n_keys.end :]
    return changed, f"part {number} of {count}"


def noise(data: bytes, layout: mutations.Layout, rng: random.Random) -> mutations.Mutation:
    magic = rng.choice((b"GGUF", b"GGUF" + struct.pack("<I", 3), b"GGUF" + struct.pack("<IQQ", 3, 5, 5), b""))
    return magic + rng.randbytes(rng.choice((0, 1, 24, 1000, 100_000))), f"{magic!r} and noise"


GGUF_KINDS: dict[str, Callable[[bytes, mutations.Layout, random.Random], mutations.Mutation]] = {
    **mutations.KINDS,
    "bit_flips": bit_flips,
    "truncation": truncation,
    "huge_count": huge_count,
    "duplicate_name": duplicate_name,
    "past_the_end": past_the_end,
    "split_keys": split_keys,
    "noise": noise,
}


# -- stores ---------------------------------------------------------------------------------------------------------


def _manifest(store: OllamaStore, rng: random.Random) -> dict[str, Any]:
    data, _ = whole("llama-q4_0")
    texts = [
        store.layer("system", "Be brief."),
        store.layer("params", json.dumps({"temperature": 0.5, "stop": ["a"]})),
        store.layer("messages", json.dumps([{"role": "user", "content": "hi"}])),
        store.layer("template", "{{ .Prompt }}"),
    ]
    return store.manifest(store.layer("model", data), *rng.sample(texts, rng.randrange(len(texts) + 1)))


def _odd(rng: random.Random) -> Any:
    return rng.choice(
        (None, True, -1, 0, 1.5, 2**53, 2**62, 2**63, 1e308, "", "x", "../../../../etc/passwd", "sha256:" + "0" * 64,
         "sha256:" + "../" * 21 + "x", "sha256-" + "f" * 64, "\0", "\ud800".encode("utf-8", "replace").decode(), [], {},
         [[]], {"digest": {}}, "x" * 100_000, ["x"] * 10_000)
    )  # fmt: skip


def odd_manifest(store: OllamaStore, rng: random.Random) -> str:
    """One or more values of a manifest replaced, left out, or twice there."""
    found = _manifest(store, rng)
    said = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        layer = rng.choice([*found["layers"], found["config"]] if isinstance(found["layers"], list) else [found])
        at = rng.choice([found, layer if isinstance(layer, dict) else found])
        key = rng.choice(sorted(at))
        what = rng.choice(("replaced", "left out", "twice"))
        if what == "replaced":
            at[key] = _odd(rng)
        elif what == "left out":
            del at[key]
        elif isinstance(at[key], list):
            at[key] = at[key] * rng.choice((2, 1000 if len(at[key]) < 1000 else 2))
        said.append(f"{key} {what}")
        if not isinstance(found.get("layers"), list) or not isinstance(found.get("config"), dict):
            break
        if not all(isinstance(each, dict) and each for each in found["layers"]) or not found["config"]:
            break
    store.put("m", found)
    return ", ".join(said)


def damaged_text(store: OllamaStore, rng: random.Random) -> str:
    """The bytes of a manifest damaged."""
    data = bytearray(json.dumps(_manifest(store, rng)).encode())
    for _ in range(rng.choice((1, 3, 10))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    del data[rng.choice((len(data), rng.randrange(len(data)))) :]
    store.put("m", bytes(data))
    return f"{len(data)} bytes"


def deep_or_long(store: OllamaStore, rng: random.Random) -> str:
    """JSON that is nested deep, or very long."""
    n = rng.choice((100, 10_000, 1_000_000))
    kind = rng.choice(("[", '{"a":', '{"layers":[', "1", '"'))
    store.put("m", (kind * n).encode())
    return f"{kind} {n:,} times"


def damaged_blob(store: OllamaStore, rng: random.Random) -> str:
    """A blob that is something else than its manifest says."""
    manifest = _manifest(store, rng)
    store.put("m", manifest)
    layer = rng.choice([manifest["config"], *manifest["layers"]])
    path = store.blob_path(layer["digest"])
    what = rng.choice(
        ("missing", "empty", "longer", "other bytes", "a folder", "a link to itself", "a link out", "a pipe")
    )
    data = path.read_bytes()
    path.unlink()
    if what == "empty":
        path.write_bytes(b"")
    elif what == "longer":
        path.write_bytes(data + b"x" * rng.choice((1, 10**6)))
    elif what == "other bytes":
        path.write_bytes(rng.randbytes(len(data)))
    elif what == "a folder":
        path.mkdir()
    elif what == "a link to itself":
        path.symlink_to(path)
    elif what == "a link out":
        path.symlink_to("/etc/passwd")
    elif what == "a pipe":
        os.mkfifo(path)
    return f"{layer['mediaType'].rpartition('.')[2]} is {what}"


def odd_config(store: OllamaStore, rng: random.Random) -> str:
    """A configuration, parameters or messages of another form."""
    data, _ = whole("llama-q4_0")
    config: Any = dict(DETAILS) | {rng.choice(sorted(DETAILS)): _odd(rng)}
    if rng.random() < 0.2:
        config = _odd(rng)
    made = store.blob(json.dumps(config).encode(), "application/vnd.docker.container.image.v1+json")
    layers = [store.layer(kind, json.dumps(_odd(rng))) for kind in ("params", "messages") if rng.random() < 0.7]
    store.put("m", {"schemaVersion": 2, "config": made, "layers": [store.layer("model", data), *layers]})
    return "configuration, parameters or messages"


def cyclic_names(store: OllamaStore, rng: random.Random) -> str:
    """Folders and manifests that are links in a circle, or out of the store."""
    store.add("m", TESTS / "fidelity" / "llama-q4_0.gguf")
    path = store.path("m")
    what = rng.choice(("manifest to itself", "manifest to its folder", "folder to the store", "tag to /", "chain"))
    if what == "manifest to itself":
        path.unlink()
        path.symlink_to(path)
    elif what == "manifest to its folder":
        path.unlink()
        path.symlink_to(path.parent)
    elif what == "folder to the store":
        (path.parent.parent / "n").symlink_to(store.root)
    elif what == "tag to /":
        (path.parent / "t").symlink_to("/")
    else:
        for i in range(60):
            (path.parent / f"c{i}").symlink_to(path.parent / f"c{(i + 1) % 60}")
    return what


STORE_KINDS: dict[str, Callable[[OllamaStore, random.Random], str]] = {
    "odd_manifest": odd_manifest,
    "damaged_text": damaged_text,
    "deep_or_long": deep_or_long,
    "damaged_blob": damaged_blob,
    "odd_config": odd_config,
    "cyclic_names": cyclic_names,
}


# -- opening, in a child --------------------------------------------------------------------------------------------


def kind_of(number: int) -> str:
    tens, one = divmod(number, 10)
    if one < 7:
        return list(GGUF_KINDS)[(tens * 7 + one) % len(GGUF_KINDS)]
    return list(STORE_KINDS)[(tens * 3 + one - 7) % len(STORE_KINDS)]


def make(number: int, folder: Path) -> str:
    """The files of a case; what was done to them. `folder` is empty."""
    rng = random.Random(f"case {number}")
    kind = kind_of(number)
    if kind in STORE_KINDS:
        return STORE_KINDS[kind](OllamaStore(folder / "own"), rng)
    base = rng.choice(BASES)
    data, layout = whole(base)
    changed, what = GGUF_KINDS[kind](data, layout, rng)
    if number % 2:  # in a store, under a manifest that is right
        store = OllamaStore(folder / "own")
        store.put("m", store.manifest(store.blob(changed, "application/vnd.ollama.image.model")))
    else:
        (folder / "loose").mkdir()
        name = "m-00001-of-00002.gguf" if kind == "split_keys" and number % 4 else "m.gguf"
        (folder / "loose" / name).write_bytes(changed)
    return f"{base}: {what}"


def open_all(folder: Path) -> str:
    """Everything that list, show, where, serve and resolve read of a model, short of its weights."""
    from loom_gguf.cli.listing import facts
    from loom_gguf.cli.show import _facts, _lines
    from loom_gguf.errors import LoomError
    from loom_gguf.gguf_file import read_model
    from loom_gguf.library import Library, LibrarySettings
    from loom_gguf.ollama_engine import written_for_ollama
    from loom_gguf.server.models import Models

    library = Library(LibrarySettings(own=folder / "own", folder=folder / "loose"))
    outcome = "opened"
    library.where("m")
    for entry in [each for each in library.entries() if each.place != "demo"]:
        json.dumps(facts(entry))
        try:
            library.extras(entry.usable())
            assert entry.path is not None
            file = read_model(entry.path)
            json.dumps(_facts(file, tensors=True), allow_nan=False)
            for _ in _lines(file, entry.name, tensors=True):
                pass
            written_for_ollama(file)
            Models(library=library).facts(entry.path)
        except LoomError as error:
            outcome = type(error).__name__
            if not str(error) or len(str(error)) > 3000:
                return f"words of {len(str(error)):,} characters"
    try:
        library.find("m")
    except LoomError as error:
        outcome = type(error).__name__ if outcome == "opened" else outcome
    return outcome


def child(first: int, end: int, scratch: Path) -> None:
    """Open cases, and tell of each before and after."""
    for base in BASES:  # what is loaded once is nobody's fault
        (scratch / "loose").mkdir(parents=True)
        (scratch / "loose" / "m.gguf").write_bytes(whole(base)[0])
        open_all(scratch)
        shutil.rmtree(scratch)
    for number in range(first, end):
        scratch.mkdir()
        what = make(number, scratch)
        print(json.dumps({"try": number, "what": what[:300]}), flush=True)
        limit = (_status("VmSize") + int(MAX_MIB * 1024)) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        began = time.perf_counter()
        try:
            outcome = open_all(scratch)
        except MemoryError:
            outcome = "leak MemoryError"
        except Exception as error:
            outcome = f"leak {type(error).__name__}: {error}"[:300]
        seconds = time.perf_counter() - began
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        mib = max(_status("VmHWM") - before, 0) / 1024
        print(json.dumps(asdict(Result(number, kind_of(number), outcome, seconds, mib))), flush=True)
        shutil.rmtree(scratch)


def _status(name: str) -> int:
    """KiB, of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status")


# -- the parent -----------------------------------------------------------------------------------------------------


class _Watch:
    """Kills a process that has said nothing for too long."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._hung = False
        self.again()

    def again(self) -> None:
        """It has said something."""
        if hasattr(self, "_timer"):
            self._timer.cancel()
        self._timer = threading.Timer(_HANGS, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> bool:
        """Whether it was killed."""
        self._timer.cancel()
        return self._hung

    def _kill(self) -> None:
        self._hung = True
        self._process.kill()


def results(first: int, end: int) -> Iterator[Result]:
    """All cases, in as many children as it takes."""
    while first < end:
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, __file__, "--child", str(first), str(end), str(Path(scratch) / "case")]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
            assert process.stdout is not None
            trying: dict[str, Any] = {"try": first, "what": "the start"}
            watch = _Watch(process)
            for line in process.stdout:
                watch.again()
                told = json.loads(line)
                if "try" in told:
                    trying = told
                else:
                    first = told["number"] + 1
                    yield Result(**told | {"what": trying["what"]})
            hung = watch.end()
            status = process.wait()
            if status and trying["what"] == "the start":
                raise SystemExit(f"the child did not start: status {status}")
            if first < end:
                number = trying["try"]
                outcome = "hang" if hung else f"crash (status {status})"
                yield Result(number, kind_of(number), outcome, _HANGS if hung else 0.0, 0.0, trying["what"])
                first = number + 1


def is_bad(result: Result) -> bool:
    """Whether a case is one that must not be."""
    named = result.outcome == "opened" or (result.outcome.endswith("Error") and " " not in result.outcome)
    return not named or result.seconds > MAX_SECONDS or result.mib > MAX_MIB


def report(done: list[Result]) -> str:
    """The tables."""
    from bench_tools import command_line, machine, table

    rows = []
    for kind in (*GGUF_KINDS, *STORE_KINDS):
        of_kind = [result for result in done if result.kind == kind]
        if not of_kind:
            continue
        refused = [result for result in of_kind if result.outcome != "opened"]
        slowest = max((result.seconds for result in refused), default=0.0)
        rows.append([
            kind.replace("_", " "), f"{len(of_kind):,}", f"{len(of_kind) - len(refused):,}", f"{len(refused):,}",
            f"{slowest * 1e3:.0f}", f"{max(result.mib for result in of_kind):.1f}",
            f"{sum(map(is_bad, of_kind))}",
        ])  # fmt: skip
    refused = [result for result in done if result.outcome != "opened"]
    rows.append([
        "all", f"{len(done):,}", f"{len(done) - len(refused):,}", f"{len(refused):,}",
        f"{max((result.seconds for result in refused), default=0.0) * 1e3:.0f}",
        f"{max((result.mib for result in done), default=0.0):.1f}", f"{sum(map(is_bad, done))}",
    ])  # fmt: skip
    errors = Counter(result.outcome for result in refused)
    head = [
        "what was damaged",
        "cases",
        "opened",
        "refused",
        "slowest refusal, ms",
        "most memory, MiB",
        "too slow, too large, or crashed",
    ]
    return (
        f"## Damaged files\n\n`{command_line()}`: {machine(1)}\n\n"
        f"Mutated GGUF files and manifests, opened by everything that reads a model short of its weights (list, show, "
        f"where, the server's models), in children whose address space may grow by {MAX_MIB:.0f} MiB. Damage that does "
        f"no harm is opened: a bit of a weight, another value in the metadata. The bounds are {MAX_SECONDS:.0f} s and "
        f"{MAX_MIB:.0f} MiB.\n\n" + table(head, rows) + "\n\nRefused with: "
        + ", ".join(f"{name} {n:,}" for name, n in errors.most_common()) + "."
    )  # fmt: skip


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="cases (default: 10000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--resume", type=Path, help="keep results in this file, and go on where it ends")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many; only with --resume")
    parser.add_argument("--write", type=Path, help="put the table into this document")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(int(args.child[0]), int(args.child[1]), Path(args.child[2]))
        return 0
    done: list[Result] = []
    if args.resume and args.resume.exists():
        done = [Result(**json.loads(line)) for line in args.resume.read_text().splitlines()]
    began = time.monotonic()
    first, end = args.first + len(done), args.first + args.count
    kept = args.resume.open("a") if args.resume else None
    running = results(first, end)
    for result in running:
        done.append(result)
        if kept:
            kept.write(json.dumps(asdict(result)) + "\n")
        if is_bad(result):
            print(f"case {result.number}: {result}", file=sys.stderr)
        if kept and time.monotonic() - began > args.seconds:
            kept.close()
            running.close()
            print(f"{len(done):,} of {args.count:,} cases", file=sys.stderr)
            return 0
    text = report(done)
    print(text)
    if args.write:
        from bench_tools import write_section

        write_section(args.write, "damaged files", text)
    return 1 if any(map(is_bad, done)) else 0


if __name__ == "__main__":
    sys.exit(main())
