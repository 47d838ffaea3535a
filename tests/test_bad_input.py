"""What is wrong is said, each thing by its own error; nothing wrong ends the process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mutations
import numpy as np
import pytest
from oracle import FIDELITY, fidelity_file, open_model, random_tokens

import loom_gguf
from loom_gguf import (
    Capture,
    CaptureError,
    CaptureUnsupportedError,
    ContextError,
    CorruptGGUFError,
    EmptyPromptError,
    LoomError,
    Model,
    ModelClosedError,
    ModelLoadError,
    ModelNotFoundError,
    NotGGUFError,
    NoVocabularyError,
    PromptError,
    PromptTooLongError,
    SamplingError,
    TokenError,
    TruncatedGGUFError,
)
from loom_gguf._native import LLAMA_CPP_PYTHON_VERSION

LAYERS = Capture.all_layers()
SMALLEST = fidelity_file("llama-q4_0")
# gdb and its backtraces make a crash slow, and the message of ggml says it all.
CHILD = os.environ | {"GGML_NO_BACKTRACE": "1", "PYTHONPATH": str(Path(loom_gguf.__file__).parent.parent)}


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, which may crash or hang."""
    command = [sys.executable, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=CHILD | environment
    )
    try:
        out, complaint = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, complaint = process.communicate()
        complaint += "\nit hangs"
    return subprocess.CompletedProcess(command, process.returncode, out, complaint)


# -- files ------------------------------------------------------------------------------------------------------


def test_no_such_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"nothing\.gguf") as error:
        Model(tmp_path / "nothing.gguf")
    assert isinstance(error.value, FileNotFoundError)
    with pytest.raises(ModelNotFoundError, match=r"'llama9'.*'demo'"):
        Model("llama9")


def test_a_folder(tmp_path):
    with pytest.raises(ModelNotFoundError, match="folder"):
        Model(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret.gguf"
    path.write_bytes(SMALLEST.read_bytes())
    path.chmod(0)
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        Model(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip file", b"\x80\x02pickle", b"gguf but small", b"\0" * 1000])
def test_not_gguf(content, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(NotGGUFError, match="not a GGUF file"):
        Model(path)


@pytest.mark.parametrize("n_bytes", [0, 1, 3])
def test_no_content(n_bytes, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF"[:n_bytes])
    with pytest.raises(TruncatedGGUFError, match=f"{n_bytes} bytes"):
        Model(path)


def test_cut_anywhere(tmp_path):
    """In the header the parser cannot go on, and says where; behind it, tensors are missing."""
    whole = SMALLEST.read_bytes()
    header_end = mutations.read_layout(whole).header_end
    path = tmp_path / "cut.gguf"
    for n in (4, 8, 20, 24, 100, 1000, header_end // 2, header_end - 1, header_end):
        path.write_bytes(whole[:n])
        with pytest.raises((CorruptGGUFError, TruncatedGGUFError), match=r"cut\.gguf"):
            Model(path)
    for n in (header_end + 100, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(TruncatedGGUFError, match=rf"{n:,} bytes.*ownload"):
            Model(path)


def test_the_reason_is_llama_cpps_own(tmp_path):
    """It tells reasons in its log only: they must find their way into our errors, and nothing else may."""
    path = tmp_path / "model.gguf"
    whole = SMALLEST.read_bytes()
    path.write_bytes(whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"))
    with pytest.raises(ModelLoadError, match=r"'blk\.1\.ffn_up\.weight' not found") as error:
        Model(path)
    assert "special_eos_id" not in str(error.value)  # a mere warning
    path.write_bytes(whole[:2000])
    with pytest.raises(CorruptGGUFError, match=r"gguf_init|failed to read"):
        Model(path)
    path.write_bytes(changed("llama", "general.architecture", b"llama", b"llamx"))
    with pytest.raises(ModelLoadError, match="llamx"):
        Model(path)


def test_every_load_error_is_one():
    for kind in (NotGGUFError, CorruptGGUFError, TruncatedGGUFError):
        assert issubclass(kind, ModelLoadError)


def changed(name: str, key: str, old: bytes, new: bytes) -> bytes:
    """A fidelity model with another metadata value, given by its bytes."""
    whole = fidelity_file(name).read_bytes()
    field = next(f for f in mutations.read_layout(whole).fields if f.name == key)
    assert whole[field.start : field.end] == old
    return whole[: field.start] + new + whole[field.end :]


def little(number: int) -> bytes:
    return number.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("name", "key", "old", "new"),
    [
        ("llama", "llama.block_count", little(3), little(0)),
        ("llama", "llama.block_count", little(3), little(513)),
        ("llama", "llama.attention.layer_norm_rms_epsilon", None, np.float32("nan").tobytes()),
        ("llama", "llama.attention.layer_norm_rms_epsilon", None, np.float32(-1).tobytes()),
        ("gemma2", "gemma2.attention.sliding_window", little(8), little(2**31)),
        ("qwen2moe", "qwen2moe.expert_count", little(5), little(2**31)),
        ("qwen2moe", "qwen2moe.expert_used_count", little(2), little(6)),
        ("qwen2moe", "qwen2moe.expert_used_count", little(2), little(0)),
        ("qwen2moe", "qwen2moe.attention.head_count", little(4), little(5)),
        ("lfm2", "lfm2.attention.head_count", little(4), little(2)),
        ("lfm2", "lfm2.rope.dimension_count", little(16), little(32)),
        ("llama", "tokenizer.ggml.tokens[65]", b"A", b"B"),
    ],
)
def test_what_would_end_the_process_is_said(name, key, old, new, tmp_path):
    """Each of these makes llama.cpp assert: in a process of its own, so that only this test fails."""
    whole = fidelity_file(name).read_bytes()
    field = next(f for f in mutations.read_layout(whole).fields if f.name == key)
    path = tmp_path / "odd.gguf"
    path.write_bytes(changed(name, key, old or whole[field.start : field.end], new))
    done = run_python("-c", "import sys, loom_gguf; loom_gguf.Model(sys.argv[1])", str(path))
    assert done.returncode == 1, done.stderr
    assert "CorruptGGUFError" in done.stderr.splitlines()[-1]


# Models that differ in what llama.cpp reads of them, and how many mutations of each kind are tried.
MUTATED = {"llama-q4_0": 150, "gemma2": 60, "qwen2moe": 60, "lfm2": 60, "mamba": 60}


@pytest.mark.parametrize("kind", mutations.KINDS)
@pytest.mark.parametrize("name", MUTATED)
def test_damaged_files(name, kind, tmp_path):
    """Refused in words, or run: never a crash, never another exception."""
    results: Counter[str] = Counter()
    crashed, first, end = [], 0, MUTATED[name]
    while first < end:
        done = run_python(
            mutations.__file__, str(fidelity_file(name)), str(tmp_path / "m.gguf"), kind, str(first), str(end)
        )
        tried = [line.removeprefix("try ") for line in done.stdout.splitlines() if line.startswith("try ")]
        for line in done.stdout.splitlines():
            number, _, result = line.partition(" ")
            if number.isdigit():
                results[result] += 1
                assert result == "runs" or result.startswith("refused"), f"{tried[int(number) - first]}: {result}"
        if done.returncode == 0:
            break
        assert tried, done.stderr
        crashed.append(f"{tried[-1]}: {done.stderr.strip().splitlines()[-1:]}")
        first = int(tried[-1].split()[0]) + 1
    assert not crashed, "\n".join(crashed)
    assert sum(results.values()) == MUTATED[name]
    assert results["runs"] > 0  # not all are so bad: the others were refused for a reason
    assert len(results) > 1


# -- models that cannot do everything ---------------------------------------------------------------------------


def test_no_vocabulary(shared):
    model: Model = shared("llama-no-vocab")
    assert model.forward([1, 2, 3], LAYERS)["l_out-0"].shape == (3, 64)
    for call in (
        lambda: model.tokenize("text"),
        lambda: model.detokenize([1]),
        lambda: model.forward("text", LAYERS),
        lambda: model.generate("text"),
    ):
        with pytest.raises(NoVocabularyError, match="token ids"):
            call()
    with pytest.raises(TokenError):
        model.forward([320], LAYERS)


def test_encoder_decoders_are_refused():
    with pytest.raises(CaptureUnsupportedError, match="encoder-decoder"):
        open_model("t5")


@pytest.mark.parametrize("name", ["bert", "nomic-bert", "modern-bert"])
def test_encoders_do_not_generate(name):
    with open_model(name) as model, pytest.raises(LoomError, match="encoder"):
        model.generate([2, 7, 3])


@pytest.mark.parametrize("name", ["bert", "nomic-bert", "modern-bert"])
def test_an_encoder_reads_a_text_whole_or_not_at_all(name):
    """Attention goes both ways: rows of a text that was cut into pieces would all be wrong."""
    tokens = np.random.default_rng(1).integers(5, 80, 20).tolist()
    capture = Capture.names(["kqv_out-1"])
    with open_model(name, n_ubatch=64) as model:
        wanted = model.forward(tokens, capture)["kqv_out-1"]
    with open_model(name, n_ubatch=8) as model:
        try:
            rows = model.forward(tokens, capture)["kqv_out-1"]
        except PromptError:
            return
        assert np.abs(rows - wanted).max() <= 2e-3 * np.abs(wanted).max()


# -- prompts ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(shared) -> Model:
    return shared("llama", n_ctx=64, n_ubatch=16)


CALLS: list[Callable[[Model, object], object]] = [
    lambda model, prompt: model.forward(prompt, LAYERS),
    lambda model, prompt: model.generate(prompt),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_prompt_that_is_too_long(call, small):
    with pytest.raises(PromptTooLongError, match=r"65 tokens.*64.*512") as error:
        call(small, random_tokens(65))
    assert isinstance(error.value, ValueError)
    with pytest.raises(PromptTooLongError):
        call(small, "long " * 100)


def test_a_prompt_that_just_fits(small):
    states = small.forward(random_tokens(64), LAYERS)
    assert states.positions == list(range(64))
    assert len(list(small.generate(random_tokens(64), max_tokens=9))) == 1


def test_a_context_is_never_longer_than_the_models_own(shared):
    model: Model = shared("llama", n_ctx=100_000)
    assert model.n_ctx == 512
    assert len(model.forward(random_tokens(512), Capture.layers([0]))["l_out-0"]) == 512
    with pytest.raises(PromptTooLongError):
        model.forward(random_tokens(513), LAYERS)


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 4, 5, 17])
def test_tiny_contexts(n_ctx):
    """In a process of its own: llama.cpp asserts sizes that fit each other."""
    program = (
        "import sys; from loom_gguf import *\n"
        f"with Model(sys.argv[1], n_ctx={n_ctx}, n_threads=1) as model:\n"
        f"    assert model.n_ctx == {n_ctx}\n"
        f"    assert len(model.forward([1] * {n_ctx}, Capture.all_layers())['l_out-2']) == {n_ctx}\n"
        f"    assert len(list(model.generate([1] * {n_ctx}, max_tokens=9))) == 1\n"
        f"    try: model.forward([1] * {n_ctx + 1}, Capture.all_layers())\n"
        "    except PromptTooLongError: print('right')\n"
    )
    done = run_python("-c", program, str(SMALLEST))
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@pytest.mark.parametrize("call", CALLS)
def test_an_empty_prompt(call, small, shared):
    with pytest.raises(EmptyPromptError):
        call(small, [])
    assert small.forward("", LAYERS).tokens == small.tokenize("")  # the model's own first token is a prompt


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("token", [-1, 320, 2**31, -(2**31), 2**70])
def test_tokens_outside_the_vocabulary(call, token, small):
    with pytest.raises(TokenError, match=rf"{token} \(number 1.*0 to 319"):
        call(small, [0, token])
    with pytest.raises(TokenError):
        small.detokenize([0, token])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("prompt", [None, 5, [1.5], ["a"], [None], [[1, 2]]])
def test_prompts_of_other_types(call, prompt, small):
    with pytest.raises(TypeError):
        call(small, prompt)


def test_numpys_integers_are_tokens(small):
    assert small.forward(np.array([5, 6]), LAYERS).tokens == [5, 6]


# -- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"n_ctx": 0},
        {"n_ctx": -1},
        {"n_ctx": 2.5},
        {"n_ctx": "64"},
        {"n_ubatch": 0},
        {"n_ubatch": 3},
        {"n_ubatch": -8},
        {"n_ubatch": "8"},
        {"n_ubatch": 2**40},
        {"n_threads": 0},
        {"n_threads": -2},
        {"n_threads": 2.5},
        {"n_threads": 2**40},
        {"precision": "double"},
        {"precision": None},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(ContextError, match=next(iter(bad))):
        open_model("llama", **bad)


def test_more_threads_than_can_be_had():
    done = run_python("-c", "import sys, loom_gguf; loom_gguf.Model(sys.argv[1], n_threads=10**9)", str(SMALLEST))
    assert "ContextError" in done.stderr


@pytest.mark.parametrize("keep", ["first", None, True, 1])
def test_bad_keep(keep, small):
    with pytest.raises(ValueError, match='"all" or "last"'):
        small.forward([1], LAYERS, keep=keep)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "1"},
        {"temperature": None},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": None},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"top_p": float("nan")},
        {"min_p": 1.1},
        {"min_p": "0"},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 0.5},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"stop": [""]},
        {"stop": ["a", 1]},
        {"stop": ""},
    ],
)
def test_bad_sampling_is_said_at_once(bad, small):
    """By the call itself, not by the first step."""
    with pytest.raises(SamplingError, match=next(iter(bad))) as error:
        small.generate([1], **bad)
    assert isinstance(error.value, ValueError)


def test_a_forward_that_captures_nothing(small):
    for nothing in (Capture(), Capture.layers([])):
        with pytest.raises(CaptureError, match="nothing to capture"):
            small.forward([1], nothing)
    with pytest.raises(CaptureError, match="prompt_states"):
        small.generate([1], prompt_states=True)


@pytest.mark.parametrize("capture", ["l_out-0", ["l_out-0"], 3])
def test_a_capture_of_another_type(capture, small):
    with pytest.raises(TypeError, match=r"[Cc]apture"):
        small.forward([1], capture)
    with pytest.raises(TypeError, match=r"[Cc]apture"):
        small.generate([1], capture=capture)


def test_what_was_refused_leaves_nothing_behind(small):
    """After all the above the sequences are free, and the model as it was."""
    wanted = [step.token_id for step in open_model("llama", n_ctx=64, n_ubatch=16).generate([1, 2], max_tokens=9)]
    assert [step.token_id for step in small.generate([1, 2], max_tokens=9)] == wanted


# -- after the end ----------------------------------------------------------------------------------------------


def test_use_after_close():
    model = open_model("llama")
    model.close()
    model.close()
    for call in (
        model.nodes,
        lambda: model.tokenize("a"),
        lambda: model.detokenize([1]),
        lambda: model.forward([1], LAYERS),
        lambda: model.generate([1]),
    ):
        with pytest.raises(ModelClosedError):
            call()
    assert (model.arch, model.n_layer, model.n_embd, model.n_ctx) == ("llama", 3, 64, 512)
    assert "llama" in repr(model)


def test_the_end_of_a_with_block_closes():
    with open_model("llama") as model:
        model.forward([1], LAYERS)
    with pytest.raises(ModelClosedError):
        model.forward([1], LAYERS)
    with pytest.raises(RuntimeError, match="mine"), open_model("llama") as model:
        raise RuntimeError("mine")
    with pytest.raises(ModelClosedError):
        model.nodes()


def test_failing_to_open_a_model_again_and_again():
    for _ in range(20):
        with pytest.raises(ContextError):
            open_model("llama", n_ubatch=1)
    open_model("llama").close()


# -- another engine ---------------------------------------------------------------------------------------------


def stub(folder: Path, version: str) -> str:
    """A folder in which llama-cpp-python has another version; nothing of it may be imported."""
    info = folder / f"llama_cpp_python-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {version}\n")
    (folder / "llama_cpp.py").write_text("raise SystemError('this engine must not be imported')\n")
    return os.pathsep.join([str(folder), CHILD["PYTHONPATH"]])


def test_another_version_of_the_engine(tmp_path):
    program = "try: import loom_gguf\nexcept ImportError as error: print(type(error).__name__, error)\n"
    done = run_python("-c", program, PYTHONPATH=stub(tmp_path, "0.2.90"))
    assert done.stdout.startswith("EngineVersionError"), done.stderr
    assert "0.2.90" in done.stdout
    pin = re.search(r"pip install 'llama-cpp-python==([\d.]+)'", done.stdout)
    assert pin is not None
    assert pin[1] == LLAMA_CPP_PYTHON_VERSION


def test_no_engine_at_all():
    program = (
        "import importlib.metadata as m\n"
        "def none(name): raise m.PackageNotFoundError(name)\n"
        "m.version = none\n"
        "try: import loom_gguf._native\n"
        "except ImportError as error: print(type(error).__name__, error)\n"
    )
    done = run_python("-c", program)
    assert done.stdout.startswith("EngineVersionError llama-cpp-python is not installed"), done.stderr


def test_fidelity_files_are_there():
    """A checkout without them would pass half of this suite by finding nothing."""
    assert len(list(FIDELITY.glob("*.gguf"))) >= 17
