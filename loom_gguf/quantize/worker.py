"""llama.cpp's quantizer in a process of its own, which says on stdout, in lines of JSON, how far it is.

Its first argument is `{"source", "target", "ftype", "requantize", "threads", "dry_run"}`. With dry_run
nothing is written; llama.cpp then only tells which type each tensor would get.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import sys
from typing import Any

from .._native import complaints, forget_complaints, lib

_BUFFER = 2**30  # bytes of rows in memory at once
_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\] (.+?)\s+- \[.*\], type =\s*(\w+),")
_NEW_TYPE = re.compile(r"size =.*->.*\((\w+)\)")
_MATRIX = re.compile(r"requires? an (imatrix|importance matrix)|Missing importance matrix", re.I)


class _Teller(logging.Handler):
    """llama.cpp's log to lines of JSON. It tells in its log, and nowhere else, what it does to which tensor."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.needs_matrix = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.needs_matrix |= _MATRIX.search(text) is not None
        if found := _TENSOR.search(text):
            tell(tensor=found[3], at=int(found[1]), of=int(found[2]), type=found[4])
        elif found := _NEW_TYPE.search(text):
            tell(new_type=found[1])


def tell(**values: Any) -> None:
    """One line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def type_sizes() -> dict[str, tuple[int, int]]:
    """Of each of ggml's types, by its name: values in a block, and its bytes."""
    from llama_cpp._ggml import libggml

    libggml.ggml_type_name.restype = ctypes.c_char_p
    libggml.ggml_type_size.restype = ctypes.c_size_t
    libggml.ggml_blck_size.restype = ctypes.c_int64
    sizes = {}
    for number in range(lib.GGML_TYPE_COUNT):
        name = libggml.ggml_type_name(number)
        if name and libggml.ggml_blck_size(number):
            sizes[name.decode()] = (libggml.ggml_blck_size(number), libggml.ggml_type_size(number))
    return sizes


def main() -> None:
    """Quantize."""
    wanted = json.loads(sys.argv[1])
    logger = logging.getLogger("loom_gguf.llama_cpp")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    teller = _Teller()
    logger.addHandler(teller)
    params = lib.llama_model_quantize_default_params()
    params.ftype = wanted["ftype"]
    params.nthread = wanted["threads"]
    params.allow_requantize = wanted["requantize"]
    params.dry_run = wanted["dry_run"]
    params.max_buf_size = _BUFFER
    forget_complaints()
    if wanted["dry_run"]:
        tell(type_sizes=type_sizes())
    failed = lib.llama_model_quantize(
        os.fsencode(wanted["source"]), os.fsencode(wanted["target"]), ctypes.byref(params)
    )
    tell(ok=not failed, needs_matrix=teller.needs_matrix, error=complaints())
