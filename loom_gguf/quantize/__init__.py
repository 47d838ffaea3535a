"""Weights in fewer bits, by llama.cpp's own quantizer, in a child process: an abort of its is an error here."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AlreadyQuantizedError, ImportanceMatrixError, QuantizeError
from ..gguf_file import GGUFFile, read_model
from ..pull.space import check_space, writing
from .types import TYPES, type_named

__all__ = ["TYPES", "Forecast", "forecast", "quantize", "type_named"]

# Isolated, so that no module of the current folder is taken for one of Python's; then with our own path.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from loom_gguf.quantize.worker import main; main()"
_FLOATS = ("f32", "f16", "bf16")
_ALIGNMENT = 32  # bytes; ggml's default
_MORE_HEADER = 64  # bytes a tensor in the list of tensors, beside its name


@dataclass(frozen=True)
class Forecast:
    """What quantizing a file would give, as llama.cpp plans it; nothing of its weights was read."""

    size: int  # of the new file, in bytes; about, because the header is estimated
    old_size: int  # in bytes
    bits_per_weight: float
    types: dict[str, int]  # tensors by their new types
    requantized: int  # tensors that are quantized already and would be again


OnProgress = Callable[[int, int], None]  # bytes of the old weights that are done, and all of them


def forecast(source: Path, type_name: str) -> Forecast:
    """What llama.cpp would do to a file.

    Raises what read_model() does, ImportanceMatrixError where the type needs one, QuantizeError.
    """
    file = read_model(source)
    sizes: dict[str, list[int]] = {}
    planned: dict[str, tuple[str, str]] = {}  # tensor to its old and new type
    name = ""
    for line in _worker(source, source, type_name, dry_run=True):
        if "type_sizes" in line:
            sizes = line["type_sizes"]
        elif "tensor" in line:
            name = line["tensor"]
            planned[name] = (line["type"], line["type"])
        elif "new_type" in line:
            planned[name] = (planned[name][0], line["new_type"])
        elif "ok" in line:
            _judge(line, source, type_name)
    n_bytes, types = 0, dict[str, int]()
    for tensor in file.tensors:
        new = planned.get(tensor.name, (tensor.type, tensor.type))[1]
        block, block_size = sizes[new]
        n = math.prod(tensor.shape) // block * block_size
        n_bytes += -(-n // _ALIGNMENT) * _ALIGNMENT
        types[new.upper()] = types.get(new.upper(), 0) + 1
    again = sum(old != new and old not in _FLOATS for old, new in planned.values())
    bits = n_bytes * 8 / max(file.n_params, 1)
    return Forecast(n_bytes + _header_size(file), file.size, bits, types, again)


def quantize(
    source: Path,
    target: Path,
    type_name: str,
    *,
    allow_requantize: bool = False,
    force: bool = False,
    n_threads: int = 0,
    planned: Forecast | None = None,
    on_progress: OnProgress | None = None,
) -> GGUFFile:
    """Write `source` to `target` with its weights as `type_name`; the new file's header.

    allow_requantize: also weights that are quantized already. force: replace a file. n_threads: 0 for all cores.
    planned: the forecast, where it was made. on_progress: called with bytes of the old weights.
    Raises what forecast() does, AlreadyQuantizedError, NoSpaceError or StoreError. The target is there only when it
    is whole.
    """
    planned = planned or forecast(source, type_name)
    if planned.requantized and not allow_requantize:
        raise AlreadyQuantizedError(
            f"{planned.requantized} tensors of {source} are quantized already; doing it again makes the model worse "
            f"than {type_name} of the original would be. Take an F16, BF16 or F32 file, or say --allow-requantize"
        )
    if target.exists() and not force:
        raise QuantizeError(f"{target} is there already: choose another name, or replace it with --force")
    if not target.parent.is_dir():
        raise QuantizeError(f"there is no folder {target.parent}: make it first")
    check_space(target.parent, planned.size, str(target))
    sizes = {tensor.name: tensor.size for tensor in read_model(source).tensors}
    whole = sum(sizes.values())
    with writing(f"{target} was written"):
        descriptor, made = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".partial", dir=target.parent)
        os.close(descriptor)
    partial = Path(made)
    try:
        done = 0
        last = 0
        for line in _worker(
            source, partial, type_name, requantize=allow_requantize, n_threads=n_threads, dry_run=False
        ):
            if "tensor" in line:
                done, last = done + last, sizes.get(line["tensor"], 0)
                if on_progress is not None:
                    on_progress(done, whole)
            elif "ok" in line:
                _judge(line, source, type_name)
        made_file = read_model(partial)  # raises where it is not whole
        with writing(f"{target} was written"):
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, target)
        if on_progress is not None:
            on_progress(whole, whole)
        return GGUFFile(target, made_file.size, made_file.version, made_file.metadata, made_file.tensors)
    finally:
        partial.unlink(missing_ok=True)


def _header_size(file: GGUFFile) -> int:
    """Bytes before the weights."""
    first = min((tensor.offset for tensor in file.tensors), default=0)
    more = file.metadata.get("split.count", 1) > 1  # then most of the list is in the other parts
    return int(first + (sum(len(tensor.name) + _MORE_HEADER for tensor in file.tensors) if more else 0))


def _judge(last: dict[str, Any], source: Path, type_name: str) -> None:
    """Raise what the worker's last line tells."""
    if last["needs_matrix"]:
        raise ImportanceMatrixError(
            f"{type_name} has so few bits that llama.cpp wants an importance matrix for it, which is not supported "
            f"here: take Q2_K, Q3_K_S, IQ3_S or more bits, or use llama.cpp's llama-quantize --imatrix"
        )
    if not last["ok"]:
        said = re.sub(r"\b(llama_\w+: )?failed to quantize: ", "", last["error"]) or "it does not say why"
        raise QuantizeError(f"llama.cpp cannot quantize {source} to {type_name}: {said}")


def _worker(
    source: Path, target: Path, type_name: str, *, requantize: bool = True, n_threads: int = 0, dry_run: bool
) -> Iterator[dict[str, Any]]:
    """The lines of a worker; it is killed where nobody listens any more."""
    wanted = {
        "source": os.fspath(source),
        "target": os.fspath(target),
        "ftype": TYPES[type_named(type_name)],
        "requantize": requantize,
        "threads": n_threads,
        "dry_run": dry_run,
    }
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(wanted), json.dumps(sys.path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            ended = False
            for text in process.stdout:
                with suppress(ValueError):  # a line that the process died in
                    line = json.loads(text)
                    ended |= "ok" in line
                    yield line
            status = process.wait()
            if not ended or status:
                errors.seek(0)
                said = errors.read().decode("utf-8", "replace").strip().splitlines()
                raise QuantizeError(
                    f"llama.cpp's quantizer ended by {_how(status)} with {source}"
                    + (f": {said[-1][:300]}" if said else "")
                    + ". If there was memory enough, the file is likely damaged"
                )
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _how(status: int) -> str:
    if status < 0:
        with suppress(ValueError):
            return f"the signal {signal.Signals(-status).name}"
    return f"itself (status {status})"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
