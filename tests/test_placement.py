"""On which devices a model is loaded. Without a GPU: that the CPU is one, and what is said of others."""

from __future__ import annotations

import pytest

from loom_gguf import Capture, Model
from loom_gguf._native import lib
from loom_gguf.errors import DeviceNotFoundError
from loom_gguf.placement import Placement, devices


def test_the_cpu_is_a_device() -> None:
    assert "cpu" in {device.kind for device in devices()}
    assert all(device.name for device in devices())


def test_the_cpu_by_name_is_no_gpu_at_all() -> None:
    params = lib.llama_model_default_params()
    kept = Placement("cpu").apply(params)
    assert params.n_gpu_layers == 0
    assert params.devices  # a list, though an empty one: no list would mean all GPUs
    assert not kept[0][0]


def test_a_model_on_the_cpu_by_name() -> None:
    with Model("demo", device="cpu") as model, Model("demo", n_gpu_layers=0) as other:
        capture = Capture.layers([3])
        assert model.forward("The fox", capture) == other.forward("The fox", capture)


@pytest.mark.parametrize("name", ["cuda:99", "cuda:x", "tpu", "cpu:0", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(DeviceNotFoundError, match="there are cpu"):
        Model("demo", device=name)


def test_splits_reach_llama_cpp() -> None:
    params = lib.llama_model_default_params()
    kept = Placement(split_mode="row", main_gpu=1, tensor_split=(3.0, 1.0)).apply(params)
    assert (params.split_mode, params.main_gpu) == (2, 1)
    assert params.tensor_split[:3] == [3.0, 1.0, 0.0]
    del kept
    with pytest.raises(DeviceNotFoundError, match="tensor_split"):
        Placement(tensor_split=(1.0,) * 1000).apply(params)
