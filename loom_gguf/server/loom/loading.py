"""/models/load's fields in this program's terms: on which device, in which type."""

from __future__ import annotations

import re

from ...devices import DeviceMemory
from ...placement import meant
from ...requests import LoadParams
from ..errors import RequestError
from ..loading import LoadWishes
from .names import UNQUANTIZED

_GGML_NAME = re.compile(r"([A-Za-z]+)(\d+)")
_THEIRS = {"mtl": "metal"}  # ggml's names that people call otherwise


def device_wishes(device: str | None, gpus: list[DeviceMemory]) -> LoadWishes:
    """What "cpu", "cuda", "cuda:1", "metal" or "auto" asks for; DeviceNotFoundError where there is no such device.

    Said before anything is unloaded to make room.
    """
    if not device:
        return LoadWishes()
    device = device.lower()
    if device not in ("auto", "cpu"):
        meant(device, [gpu.name for gpu in gpus])
    return LoadWishes(device=device, n_gpu_layers=None if device == "cpu" else -1)


def check_dtype(dtype: str, quantization: str) -> None:
    """A GGUF file's weights have the type that they have; RequestError for any other one."""
    own = dtype_of(quantization)
    if dtype.lower() not in ("auto", own, quantization.lower()):
        raise RequestError(
            400,
            f"dtype: this file's weights are {own}, and stay so; leave dtype out, or choose another file of the model "
            f"with quantization",
        )


def dtype_of(quantization: str) -> str:
    """The type of most weights, as PyTorch calls it, or as ggml does where PyTorch has none."""
    return UNQUANTIZED.get(quantization, quantization.lower())


def quantization_of(quantization: str) -> str:
    """ "none" where the weights are not quantized."""
    return "none" if quantization in UNQUANTIZED else quantization


def device_of(params: LoadParams, gpus: list[DeviceMemory]) -> str:
    """Where a model lies, in The Loom's words; one name where it is split over several GPUs."""
    if params.device == "cpu" or params.n_gpu_layers == 0 or not gpus:
        return "cpu"
    if params.device != "auto":
        return params.device
    names = [gpu_name(gpu) for gpu in gpus]
    return names[0] if len(names) == 1 else names[0].partition(":")[0]


def gpu_name(gpu: DeviceMemory) -> str:
    """ "cuda:0" for CUDA0."""
    found = _GGML_NAME.fullmatch(gpu.name)
    if found is None:
        return gpu.name.lower()
    backend = found[1].lower()
    return f"{_THEIRS.get(backend, backend)}:{found[2]}"
