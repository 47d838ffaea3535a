"""Captures that do not fit: said with their size, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap

import pytest
from oracle import fidelity_file, random_tokens

from loom_gguf import Capture, CaptureMemoryError, CaptureUnsupportedError, memory

LIMITED = """
    import resource, sys
    import numpy as np
    from loom_gguf import Capture, CaptureMemoryError, Model, memory
    memory.available_bytes = lambda: None  # as on a system that does not say
    model = Model(sys.argv[1], n_ctx=512, n_threads=1)
    tokens = [1, 2, 3, 4] * 100
    expected = model.forward(tokens, Capture.all_layers())
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    refused = 0
    # Ever less room: somewhere it ends, in C++ or in numpy, and each time must be an error and no more.
    for spare in range(40, -1, -1):
        resource.setrlimit(resource.RLIMIT_AS, (used + spare * 64 * 1024, resource.RLIM_INFINITY))
        try:
            model.forward(tokens, Capture.everything())
        except CaptureMemoryError as error:
            assert "MiB" in str(error) or "GiB" in str(error), error
            refused += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert refused, "there was room for everything"
    assert model.forward(tokens, Capture.all_layers()) == expected
    print("refused", refused)
"""


def test_size_is_named_before_anything_is_computed(shared, monkeypatch):
    model = shared("llama")
    need = 500 * 3 * 64 * 4  # tokens, layers, n_embd, bytes
    monkeypatch.setattr(memory, "available_bytes", lambda: need)
    tokens = random_tokens(500)
    assert len(model.forward(tokens, Capture.all_layers()).tokens) == 500
    monkeypatch.setattr(memory, "available_bytes", lambda: need - 1)
    with pytest.raises(CaptureMemoryError, match=r"3 nodes at 500 tokens need .* GiB"):
        model.forward(tokens, Capture.all_layers())
    assert len(model.forward(tokens, Capture.all_layers(), keep="last").tokens) == 1
    with pytest.raises(CaptureMemoryError, match="500 tokens"):
        model.generate(tokens, capture=Capture.all_layers(), prompt_states=True)
    next(model.generate(tokens, capture=Capture.all_layers()))


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_memory_that_runs_out_while_reading():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(fidelity_file("llama"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused")


def test_a_layer_of_several_rows_per_token_is_refused(shared):
    """As in Gemma 3n, whose l_out is [n_embd, n_tokens, 4]; made up here from a model that has none such."""
    model = shared("llama", n_ctx=300)
    topology = model._context.catalog.several
    nodes = topology.nodes
    odd = [dataclasses.replace(n, shape=(4, "n_tokens", 64), token_axis=1) if n.key == "l_out-1" else n for n in nodes]
    topology.__dict__["nodes"] = tuple(odd)
    try:
        with pytest.raises(CaptureUnsupportedError, match=r"layer 1 is not one row per token .* Capture.names"):
            model.forward([1, 2], Capture.layers([1]))
    finally:
        topology.__dict__["nodes"] = nodes
