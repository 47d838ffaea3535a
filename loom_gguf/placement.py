"""Where a model's weights lie: the CPU, one GPU, or several, in llama.cpp's own terms."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._native import lib
from .errors import DeviceNotFoundError

_KINDS = ("cpu", "gpu", "igpu", "accel")  # ggml_backend_dev_type
GPUS = ("gpu", "igpu")
_ALIASES = {"metal": "mtl", "gpu": ""}  # what people say, and the beginning of ggml's names
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}  # llama_split_mode


@dataclass(frozen=True)
class Placement:
    """What forces a model to be loaded anew when it changes."""

    device: str = "auto"  # "auto" (all GPUs), "cpu", "cuda", "cuda:1", "metal", or another backend's name
    n_gpu_layers: int = -1  # blocks on the GPU; -1: all
    split_mode: str = "layer"  # over several GPUs: "layer", "row", or "none" (all on main_gpu)
    main_gpu: int = 0
    tensor_split: tuple[float, ...] = ()  # parts of each GPU; (): by their free memory

    def apply(self, params: Any) -> Any:
        """Write it into llama_model_params; what is returned must be kept until the model is loaded.

        DeviceNotFoundError where there is no such device.
        """
        kept: list[Any] = []
        params.n_gpu_layers = self.n_gpu_layers
        params.split_mode = _SPLIT_MODES[self.split_mode]
        params.main_gpu = self.main_gpu
        if self.device != "auto":
            chosen = [] if self.device == "cpu" else _find(self.device)
            # An empty list is no GPU at all: with n_gpu_layers 0 alone, llama.cpp still computes prompts on one.
            handles = (ctypes.c_void_p * (len(chosen) + 1))(*[device.handle for device in chosen], None)
            params.devices = ctypes.cast(handles, ctypes.c_void_p)
            params.n_gpu_layers = self.n_gpu_layers if chosen else 0
            kept.append(handles)
        if self.tensor_split:
            most = int(lib.llama_max_devices())
            if len(self.tensor_split) > most:
                raise DeviceNotFoundError(f"tensor_split has more than {most} parts: give one for each GPU")
            parts = (ctypes.c_float * most)(*self.tensor_split)
            params.tensor_split = ctypes.cast(parts, ctypes.POINTER(ctypes.c_float))
            kept.append(parts)
        return kept


@dataclass(frozen=True)
class Device:
    """One of ggml's devices."""

    name: str  # ggml's: "CPU", "CUDA0", "MTL0"
    description: str
    kind: str  # "cpu", "gpu", "igpu" or "accel"
    handle: int


def devices() -> list[Device]:
    """The devices of this machine that this build of llama.cpp can use."""
    ggml = lib._lib  # libllama's own handle: it finds what libllama is linked with
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for text in (ggml.ggml_backend_dev_name, ggml.ggml_backend_dev_description):
        text.restype, text.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    ggml.ggml_backend_dev_type.restype, ggml.ggml_backend_dev_type.argtypes = ctypes.c_int, [ctypes.c_void_p]
    found = []
    for at in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(at)
        kind = ggml.ggml_backend_dev_type(handle)
        found.append(
            Device(
                name=ggml.ggml_backend_dev_name(handle).decode("utf-8", "replace"),
                description=ggml.ggml_backend_dev_description(handle).decode("utf-8", "replace"),
                kind=_KINDS[kind] if kind < len(_KINDS) else "accel",
                handle=handle,
            )
        )
    return found


def _find(text: str) -> list[Device]:
    """The GPUs that a text means: all of a backend's, or the one of a number."""
    gpus = [device for device in devices() if device.kind in GPUS]
    return [gpus[at] for at in meant(text, [device.name for device in gpus])]


def meant(text: str, gpus: Sequence[str]) -> list[int]:
    """Which of these GPUs, by ggml's names, a text means; DeviceNotFoundError where it is none."""
    backend, colon, number = text.lower().partition(":")
    begin = _ALIASES.get(backend, backend)
    found = [at for at, name in enumerate(gpus) if name.lower().startswith(begin)]
    if colon:
        found = found[int(number) : int(number) + 1] if number.isascii() and number.isdigit() else []
    if found:
        return found
    there = ", ".join(["cpu", *gpus])
    raise DeviceNotFoundError(
        f"there is no device {text!r:.60}; there are {there}. Where a GPU is missing, llama-cpp-python was built "
        f'without it: CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir llama-cpp-python'
    )
