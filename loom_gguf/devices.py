"""The devices of this machine with their memory, asked in a process of its own.

Only asking for devices initialises CUDA, which takes memory on every GPU: a server's own process must not do that.
`python -m loom_gguf.devices` prints them as JSON.
"""

from __future__ import annotations

import ctypes
import json
import logging
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_TIMEOUT = 60.0  # seconds; CUDA takes some to start
_FRESH = 30.0  # seconds for which free memory is believed


@dataclass(frozen=True)
class DeviceMemory:
    """One of ggml's devices."""

    name: str  # ggml's: "CPU", "CUDA0", "MTL0"
    description: str
    kind: str  # "cpu", "gpu", "igpu" or "accel"
    total: int  # bytes
    free: int  # bytes

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU, be it of the processor's own."""
        return self.kind in ("gpu", "igpu")


class Devices:
    """What the child process says, kept: for ever where there is no GPU, else for half a minute."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._lock = threading.Lock()  # guards the others; held while a child runs, so that there is one at most
        self._known: tuple[DeviceMemory, ...] | None = None
        self._asked = 0.0

    def known(self) -> tuple[DeviceMemory, ...]:
        """All devices; none where they cannot be told. Call it in a thread."""
        with self._lock:
            stale = self._known is None or (
                any(device.is_gpu for device in self._known) and time.monotonic() - self._asked > _FRESH
            )
            if stale:
                self._known = _ask()
                self._asked = time.monotonic()
            return self._known or ()

    def gpus(self) -> list[DeviceMemory]:
        """The GPUs among them, in ggml's order. Call it in a thread."""
        return [device for device in self.known() if device.is_gpu]


DEVICES = Devices()  # this machine's


def check_device(name: str) -> None:
    """DeviceNotFoundError where this machine has no such device. `name`: as in Placement."""
    if name not in ("auto", "cpu"):
        from .placement import meant

        meant(name, [gpu.name for gpu in DEVICES.gpus()])


def _ask() -> tuple[DeviceMemory, ...]:
    # With -m, Python looks into the current folder first: it must be one where this very package lies.
    home = Path(__file__).parent.parent
    try:
        done = subprocess.run(
            [sys.executable, "-m", "loom_gguf.devices"], cwd=home, capture_output=True, timeout=_TIMEOUT, check=True
        )
        return tuple(DeviceMemory(**device) for device in json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        logger.warning("the devices of this machine cannot be told: %.300s", error)
        return ()


def measure() -> list[DeviceMemory]:
    """The devices, asked in this process."""
    from ._native import lib
    from .placement import devices

    memory = lib._lib.ggml_backend_dev_memory  # libllama's own handle: it finds what libllama is linked with
    memory.restype = None
    memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]
    found = []
    for device in devices():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(device.handle, ctypes.byref(free), ctypes.byref(total))
        found.append(DeviceMemory(device.name, device.description, device.kind, total.value, free.value))
    return found


if __name__ == "__main__":
    json.dump([asdict(device) for device in measure()], sys.stdout)
