"""Several of everything at once: models, threads, generators, and hundreds of contexts after one another."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from oracle import fidelity_file, open_model, random_tokens, relative_error

from loom_gguf import Capture, Model, States, Step

HIDDEN = Capture.all_layers(embedding=True, final=True)
PROMPTS = [random_tokens(n, seed=n) for n in (3, 21, 9, 14)]


def same(a: States, b: States) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[key], b[key]) for key in b)


def near(a: States, b: States) -> bool:
    """Cells lie elsewhere where others run too: the same numbers, added up in another order."""
    assert list(a) == list(b)
    return all(relative_error(a[key], b[key]) <= 1e-5 for key in b)


def at_once(*jobs: Callable[[], object]) -> None:
    """Run jobs in threads that begin together; the first error is raised here."""
    gate = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        gate.wait()
        job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(run, job) for job in jobs]:
            future.result(timeout=100)


def test_two_models_in_two_threads():
    wanted: dict[str, tuple[States, list[Step]]] = {}
    with open_model("llama", n_ubatch=8) as one, open_model("gemma2", n_ubatch=8) as other:
        models = {"llama": one, "gemma2": other}

        def work(name: str) -> tuple[States, list[Step]]:
            model = models[name]
            return model.forward(PROMPTS[1], HIDDEN), list(model.generate(PROMPTS[2], capture=HIDDEN, max_tokens=8))

        def again(name: str) -> None:
            for _ in range(10):
                states, steps = work(name)
                assert same(states, wanted[name][0])
                for step, alone in zip(steps, wanted[name][1], strict=True):
                    assert step.token_id == alone.token_id
                    assert same(step.states, alone.states)

        wanted = {name: work(name) for name in models}
        at_once(lambda: again("llama"), lambda: again("gemma2"))


def test_one_model_in_several_threads():
    with open_model("llama", n_ubatch=8) as model:
        forwards = [model.forward(prompt, HIDDEN) for prompt in PROMPTS]
        steps = [list(model.generate(prompt, capture=HIDDEN, max_tokens=6)) for prompt in PROMPTS]

        def forward(i: int) -> None:
            for _ in range(10):
                assert near(model.forward(PROMPTS[i], HIDDEN), forwards[i])

        def generate(i: int) -> None:
            for _ in range(5):
                for step, alone in zip(model.generate(PROMPTS[i], capture=HIDDEN, max_tokens=6), steps[i], strict=True):
                    assert step.token_id == alone.token_id
                    assert near(step.states, alone.states)

        at_once(*[lambda i=i: forward(i) for i in (0, 1)], *[lambda i=i: generate(i) for i in range(4)])


@pytest.mark.parametrize("n_ubatch", [8, 512])
def test_interleaved_generators_get_their_own_rows(n_ubatch, shared):
    """Each with a capture of its own, their steps taken in turns; one ends early, one begins late."""
    model: Model = shared("llama", n_ubatch=n_ubatch)
    captures = [HIDDEN, Capture.layers([1]), Capture.names(["Qcur-0", "ffn_out-2"]), Capture.prefix("ffn")]
    lengths = [4, 12, 8, 10]

    def begin(i: int) -> Iterator[Step]:
        return model.generate(
            PROMPTS[i], capture=captures[i], max_tokens=lengths[i], prompt_states=i == 1, temperature=0.7, seed=i
        )

    alone = [list(begin(i)) for i in range(4)]
    running: list[Iterator[Step]] = [begin(i) for i in range(4)]
    steps: list[list[Step]] = [[] for _ in range(4)]
    for turn in range(20):
        for i in range(4):
            step = next(running[i], None) if turn >= i else None
            if step:
                steps[i].append(step)
    for ours, wanted in zip(steps, alone, strict=True):
        assert [s.token_id for s in ours] == [s.token_id for s in wanted]
        for step, other in zip(ours, wanted, strict=True):
            assert (step.position, step.index, step.text) == (other.position, other.index, other.text)
            for key in other.states:
                assert relative_error(step.states[key], other.states[key]) <= 1e-5, key
    assert near(steps[1][0].prompt_states, alone[1][0].prompt_states)


def test_a_forward_between_the_steps_of_a_generation(shared):
    model: Model = shared("llama", n_ubatch=8)
    wanted = list(model.generate(PROMPTS[1], capture=HIDDEN, max_tokens=8))
    for step, other in zip(model.generate(PROMPTS[1], capture=HIDDEN, max_tokens=8), wanted, strict=True):
        model.forward(PROMPTS[3], Capture.layers([0]))
        assert step.token_id == other.token_id
        assert near(step.states, other.states)


PEAK = """
import resource, sys

def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
"""

MANY_CONTEXTS = """
from loom_gguf import Capture, Model
from loom_gguf.context import Context, ContextParams
from loom_gguf.weights import Weights

def cycle(i):
    with Model(sys.argv[1], n_ctx=64, n_ubatch=16, n_threads=1) as model:
        capture = Capture.everything() if i % 2 else Capture.all_layers()
        model.forward([1, 2, 3, 4], capture)
        for step in model.generate([1, 2, 3], capture=capture, max_tokens=2):
            pass

def context(weights, i):
    ctx = Context(weights, ContextParams(n_ctx=64, n_ubatch=16, n_threads=1))
    ctx.close()
    ctx.close()

weights = Weights(__import__("pathlib").Path(sys.argv[1]))
for i in range(40):
    cycle(i), context(weights, i)
before = peak()
for i in range(300):
    cycle(i), context(weights, i)
print(peak() - before)
"""


DROPPED = """
from loom_gguf import Model

for i in range(240):
    if i == 40:
        before = peak()
    Model(sys.argv[1], n_ctx=64, n_threads=1)
print(peak() - before)
"""


def growth(program: str) -> int:
    """Bytes that a program says it grew by; in a process of its own, as the peak of this one has long been higher."""
    command = [sys.executable, "-c", PEAK + program, str(fidelity_file("llama"))]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_hundreds_of_contexts_leave_no_memory_behind():
    """One context with its capture takes about 1.5 MB: a leak of any part would show 300 times."""
    assert growth(MANY_CONTEXTS) < 20e6


def test_models_that_are_dropped_are_freed():
    """Without close(): their weights alone are 0.4 MB, 200 times."""
    assert growth(DROPPED) < 20e6


NEVER_CLOSED = """
import sys
from loom_gguf import Capture, Model
model = Model(sys.argv[1], n_ctx=64)
generator = model.generate([1, 2, 3], capture=Capture.all_layers(), max_tokens=5)
next(generator)
print("done")
"""


def test_a_process_may_end_with_all_open():
    path = str(fidelity_file("llama"))
    done = subprocess.run([sys.executable, "-c", NEVER_CLOSED, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
