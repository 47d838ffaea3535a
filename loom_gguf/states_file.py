"""States in a file: .safetensors, which every tensor library reads, or .npz, which numpy reads alone.

Both hold one array per node under the node's key, `tokens` and `positions` as int32 (n_rows,), and one JSON text that
says what the arrays are:

    {"format": "loom_gguf.states", "version": 1, "loom_gguf": "0.1.0",
     "nodes": {KEY: {"array": NAME, "row_axis": 0 or null, "occurrence": 0, "cell_axis": null}, ...},
     "roles": {"n_layer": 8, "layers": {"0": KEY, ...}, "embedding": KEY, "final": KEY},
     "sequence": 0, "single": false,
     "metadata": {what the caller gave: "model", "prompt", "text", "token_texts", ...}}

NAME is KEY itself, except where that name is taken. An array's rows come first; with `row_axis` null it has none and
is the whole tensor. `cell_axis` is the array's dimension that counts positions (attention weights have one). The text
stands in a .safetensors file's own metadata as "loom_gguf.states", and in an .npz file as the array "__metadata__" (a
str without dimensions).

Files of PyTorch's hidden states, with no such text, can be read too: `hugging_face_states` says how to write them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import StatesError, StatesFileError
from .hugging_face_states import from_hugging_face, is_hugging_face, is_hugging_face_name
from .states import Array, NodeValues, Roles, States

if TYPE_CHECKING:
    from .model import Model

FORMAT = "loom_gguf.states"
VERSION = 1
SUFFIXES = (".safetensors", ".npz")
_JSON = "__metadata__"  # also what safetensors calls its own, so no array may have this name
_TAKEN = ("tokens", "positions", _JSON)

_HUGGING_FACE_TYPES = ("F64", "F32", "F16", "I64", "I32", "U32", "I16", "U16")

_ABOUT_NODES = ("row_axis", "occurrence", "cell_axis")  # fields of NodeValues

StrPath = str | os.PathLike[str]


def save_states(states: States, path: StrPath, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write states to `path`, whose suffix says how: .safetensors or .npz.

    `metadata`: anything that JSON holds; `read_metadata` gives it back, and `model_facts` has what a model says about
    itself. The file appears whole or not at all: an older one stays until the new one is complete.
    """
    target = check_target(path)
    arrays, header = _to_arrays(states)
    try:
        header["metadata"] = dict(metadata or {})
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StatesFileError(f"the metadata cannot be written as JSON: {error}") from None
    write = _write_npz if target.suffix == ".npz" else _write_safetensors
    with replacing(target, "the states") as temporary:
        write(temporary, arrays, text)


def load_states(path: StrPath) -> States:
    """The states that `save_states` wrote, bit for bit; or PyTorch's, from a file as `hugging_face_states` says."""
    path = Path(path)
    arrays, header = _read(path)
    if header is None:
        try:
            return from_hugging_face(arrays)
        except StatesFileError as error:
            raise StatesFileError(f"{path} holds no hidden states as PyTorch's are to be written: {error}") from None
    try:
        roles = header["roles"]
        return States(
            {
                key: NodeValues(arrays[node["array"]], **{about: node[about] for about in _ABOUT_NODES})
                for key, node in header["nodes"].items()
            },
            Roles(
                n_layer=roles["n_layer"],
                layers={int(il): key for il, key in roles["layers"].items()},
                embedding=roles["embedding"],
                final=roles["final"],
            ),
            arrays["tokens"].tolist(),
            arrays["positions"].tolist(),
            sequence=header["sequence"],
            single=header["single"],
        )
    except (AttributeError, KeyError, TypeError, ValueError, StatesError) as error:
        raise StatesFileError(f"{path} is damaged ({_said(error)}): write it again") from None


def read_metadata(path: StrPath) -> dict[str, Any]:
    """What `save_states` was given as `metadata`; nothing for a file that PyTorch wrote."""
    path = Path(path)
    header = _read(path, arrays_too=False)[1]
    metadata = {} if header is None else header.get("metadata")
    if not isinstance(metadata, dict):
        raise StatesFileError(f"{path} is damaged (no metadata): write it again")
    return metadata


def model_facts(model: Model) -> dict[str, Any]:
    """Which model states come from, as metadata: file name, architecture, quantization, sizes."""
    return {
        "model": model.path.name,
        "architecture": model.arch,
        "quantization": model.quantization,
        "n_layer": model.n_layer,
        "n_embd": model.n_embd,
    }


def token_texts(model: Model, tokens: Sequence[int]) -> list[str] | None:
    """Each token's own text, for labels; None where the model has no tokenizer.

    A special token is shown by its name, and bytes that are only a part of a character as \\xe4.
    """
    texts = [model.token_text(token) for token in tokens]
    return texts if any(texts) else None


def check_target(path: StrPath) -> Path:
    """The path, if states may be written there; worth asking before a long computation."""
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise StatesFileError(f"cannot tell the format of {target}: its name must end in {' or '.join(SUFFIXES)}")
    if target.is_dir():
        raise StatesFileError(f"{target} is a folder: name a file")
    if not target.parent.is_dir():
        raise StatesFileError(f"there is no folder {target.parent}: make it first, or choose another path")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise StatesFileError(f"the folder {target.parent} cannot be written to: choose another one")
    return target


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


# -- to and from arrays -----------------------------------------------------------------------------------------


def _to_arrays(states: States) -> tuple[dict[str, Array], dict[str, Any]]:
    from . import __version__

    arrays = {
        "tokens": np.asarray(states.tokens, np.int32),
        "positions": np.asarray(states.positions, np.int32),
    }
    nodes = {}
    for key, value in states.values_by_key.items():
        name = key
        while name in arrays or name in _TAKEN:
            name += "_"
        arrays[name] = value.array
        nodes[key] = {"array": name, **{about: getattr(value, about) for about in _ABOUT_NODES}}
    roles = states.roles
    return arrays, {
        "format": FORMAT,
        "version": VERSION,
        "loom_gguf": __version__,
        "nodes": nodes,
        "roles": {
            "n_layer": roles.n_layer,
            "layers": {str(il): key for il, key in roles.layers.items()},
            "embedding": roles.embedding,
            "final": roles.final,
        },
        "sequence": states.sequence,
        "single": states._single,
    }


def _read(path: Path, *, arrays_too: bool = True) -> tuple[dict[str, Array], dict[str, Any] | None]:
    """The arrays and the header of a file, checked to be one that this version understands.

    A file of PyTorch's hidden states has no header.
    """
    if path.suffix not in SUFFIXES:
        raise StatesFileError(f"{path} is no file of states: their names end in {' or '.join(SUFFIXES)}")
    read: Callable[[Path, bool], tuple[dict[str, Array], str | None]]
    read = _read_npz if path.suffix == ".npz" else _read_safetensors
    try:
        arrays, text = read(path, arrays_too)
    except FileNotFoundError:
        raise StatesFileError(f"there is no file {path}: check the path") from None
    except OSError as error:
        raise StatesFileError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(text) if text is not None else None
    except ValueError as error:
        raise StatesFileError(f"{path} is damaged ({error}): write it again") from None
    if text is None and path.suffix == ".safetensors" and is_hugging_face(arrays):
        return arrays, None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise StatesFileError(
            f"{path} holds no states (it lacks what loom_gguf writes beside the arrays): such files come from "
            f"states.save(...) or `loom-gguf run --out`. One from PyTorch needs arrays called tokens and "
            f"hidden_states.0 to hidden_states.N"
        )
    if header.get("version") != VERSION:
        raise StatesFileError(
            f"{path} has version {header.get('version')!r} of the format, this loom_gguf reads version {VERSION}: "
            f"install a newer loom_gguf"
        )
    return arrays, header


def _damaged(path: Path, error: Exception) -> StatesFileError:
    return StatesFileError(
        f"{path} is damaged, cut off or no {path.suffix} file ({_said(error)}): copy or write it again"
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0][:160]


# What zipfile and numpy raise for files that were cut off or changed: all found by changing bytes at random.
_NPZ_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
    EOFError, MemoryError, OverflowError, RuntimeError, SyntaxError, ValueError,
)  # fmt: skip

# -- the two formats --------------------------------------------------------------------------------------------


def _write_safetensors(path: Path, arrays: Mapping[str, Array], text: str) -> None:
    from safetensors.numpy import save_file

    # The library takes an array's memory as it lies, so it must lie in order.
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path, {FORMAT: text})


def _read_safetensors(path: Path, arrays_too: bool) -> tuple[dict[str, Array], str | None]:
    from safetensors import SafetensorError, safe_open

    with path.open("rb"):  # the library's own errors don't tell a missing file from a forbidden one
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(FORMAT)
            names = list(file.keys())
            if text is None and is_hugging_face(names):
                return _read_hugging_face(path, file, names), None
            names = names if arrays_too and text is not None else []
            return {name: file.get_tensor(name) for name in names}, text
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, error) from None


def _read_hugging_face(path: Path, file: Any, names: Iterable[str]) -> dict[str, Array]:
    """The arrays that mean something to `from_hugging_face`; bfloat16, which numpy lacks, becomes float32."""
    from safetensors import deserialize

    types = {name: file.get_slice(name).get_dtype() for name in names if is_hugging_face_name(name)}
    arrays = {name: file.get_tensor(name) for name, dtype in types.items() if dtype in _HUGGING_FACE_TYPES}
    if "BF16" in types.values():
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            if types.get(name) == "BF16":
                halves = np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << 16
                arrays[name] = halves.view(np.float32).reshape(tensor["shape"])
    for name in types.keys() - arrays.keys():
        raise StatesFileError(f"{name} in {path} has the type {types[name]}: write it as float32 (tensor.float())")
    return arrays


def _write_npz(path: Path, arrays: Mapping[str, Array], text: str) -> None:
    # Not np.savez: it takes names as keyword arguments, and "file" is one of its own.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in {_JSON: np.array(text), **arrays}.items():
            with archive.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _read_npz(path: Path, arrays_too: bool) -> tuple[dict[str, Array], str | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for entry in archive.namelist():
                name = entry.removesuffix(".npy")
                if name == _JSON or arrays_too:
                    with archive.open(entry) as file:
                        found[name] = np.lib.format.read_array(file, allow_pickle=False)
    except _NPZ_ERRORS as error:
        raise _damaged(path, error) from None
    text = found.pop(_JSON, None)
    return found, None if text is None else str(text)
