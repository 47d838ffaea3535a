"""What capturing costs: decodes with and without it, generation, stopping early, memory.

    python scripts/bench_capture.py --shape tinyllama --write docs/benchmarks.md

Models are random ones of a real model's shape (see random_model.py). All that is compared runs in one process, in
turns; ratios are those of one round. The aims beside the tables are aims, nothing fails where one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_tools import (
    PROMPT,
    Captured,
    Plain,
    Setting,
    command_line,
    fill_batch,
    interleaved,
    machine,
    n_vocab,
    overhead,
    random_tokens,
    ratio_table,
    spread,
    table,
    write_section,
)
from random_model import DEFAULT_DIR, SHAPES, TYPES, random_model

from loom_gguf import Capture, Model
from loom_gguf._native import lib
from loom_gguf.batch import Batch
from loom_gguf.context import _default_threads
from loom_gguf.weights import Weights

GENERATED = 64
MIB = 1024 * 1024


# -- whole calls --------------------------------------------------------------------------------------------------


def bare_generation(plain: Plain, prompt: np.ndarray, max_tokens: int) -> list[int]:
    """Greedy decoding in the fewest calls to llama.cpp."""
    batch = lib.llama_batch_init(len(prompt), 0, 1)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
    produced: list[int] = []
    read, start = prompt, 0
    for _ in range(max_tokens):
        assert lib.llama_decode(plain.handle, fill_batch(batch, read, start, False)) == 0
        produced.append(lib.llama_sampler_sample(chain, plain.handle, len(read) - 1))
        start += len(read)
        read = np.array(produced[-1:], np.int32)
    lib.llama_sampler_free(chain)
    lib.llama_batch_free(batch)
    plain.forget(0)
    return produced


def generation(weights: Weights, path: Path, setting: Setting, rounds: int) -> list[str]:
    """`generate` against a bare loop; the tokens must be the same ones."""
    plain = Plain(weights, setting)
    model = Model(path, n_ctx=setting.n_ctx, n_ubatch=setting.n_ubatch, n_threads=setting.n_threads)
    prompt = random_tokens(16, n_vocab(weights))
    n = model.n_layer
    produced: dict[str, list[int]] = {}

    def bare() -> float:
        began = setting.clock()
        produced["bare"] = bare_generation(plain, prompt, GENERATED)
        return setting.clock() - began

    def ours(name: str, capture: Capture | None) -> Callable[[], float]:
        def timed() -> float:
            began = setting.clock()
            steps = list(model.generate(prompt.tolist(), capture=capture, max_tokens=GENERATED))
            seconds = setting.clock() - began
            produced[name] = [step.token_id for step in steps]
            return seconds

        return timed

    every = f"generate, all {n} layers"
    timed = {"bare loop": bare, "generate": ours("generate", None), every: ours(every, Capture.all_layers())}
    seconds = interleaved(timed, rounds, at_least=0.3)
    assert produced["bare"] == produced["generate"] == produced[every], "different tokens were generated"
    model.close()
    plain.close()
    return [
        f"### Generating {GENERATED} tokens, greedy, prompt of {len(prompt)}",
        ratio_table(seconds, "bare loop", {every: 1.05}),
    ]


def stopping(path: Path, setting: Setting, rounds: int) -> list[str]:
    """`forward` of one layer in the middle against all."""
    with Model(path, n_ctx=setting.n_ctx, n_ubatch=setting.n_ubatch, n_threads=setting.n_threads) as model:
        prompt = random_tokens(PROMPT, model.n_vocab).tolist()

        def forward(capture: Capture) -> Callable[[], float]:
            def timed() -> float:
                began = setting.clock()
                model.forward(prompt, capture)
                return setting.clock() - began

            return timed

        middle = model.n_layer // 2
        every, one = f"all {model.n_layer} layers", f"layer {middle}"
        timed = {every: forward(Capture.all_layers()), one: forward(Capture.layers([middle]))}
        seconds = interleaved(timed, max(3, rounds // 3))
        # Of 4 layers, the middle one is three quarters of the way.
        aims = {one: 0.62} if model.n_layer > 4 else {}
    return [f"### forward of {PROMPT} tokens, stopping early", ratio_table(seconds, every, aims)]


# -- memory -------------------------------------------------------------------------------------------------------


def _resident(key: str) -> int | None:
    """VmRSS or VmHWM (the highest so far) of this process in bytes; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _forget_highest() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory(weights: Weights, setting: Setting) -> list[str]:
    """What a capture takes beside llama.cpp's own buffers, against the captured rows in float32."""
    n = weights.n_layer
    rows = []
    for what, capture, in_place in (
        (f"all {n} layers in place", Capture.all_layers(), "host"),
        (f"all {n} layers copied", Capture.all_layers(), "never"),
        ("everything in place", Capture.everything(), "host"),
        ("everything copied", Capture.everything(), "never"),
    ):
        for n_tokens in (1, PROMPT):
            subject = Captured(weights, setting, capture, in_place)  # type: ignore[arg-type]
            tokens = random_tokens(n_tokens, n_vocab(weights))
            # The same work without a capture touches all that llama.cpp has.
            batch = Batch.of_one(tokens, 0, 0)
            batch.outputs[:] = True
            subject.context.decode(batch)
            subject.forget(0)
            _forget_highest()
            before = _resident("VmRSS")
            captured = subject.context.decode_capturing(batch, capture, np.arange(n_tokens)).states()
            highest = _resident("VmHWM")
            arrays = [values.array for values in captured.values_by_key.values()]
            n_float32 = 4 * sum(array.size for array in arrays)
            held = subject.context.tapper.arena_size + sum(array.nbytes for array in arrays)
            limit = 2 * n_float32 + 16 * MIB
            grown = "" if before is None or highest is None else f"{(highest - before) / MIB:.2f}"
            verdict = f"<= {limit / MIB:.1f} {'met' if held <= limit else 'missed'}"
            rows.append([what, str(n_tokens), f"{n_float32 / MIB:.2f}", f"{held / MIB:.2f}", grown, verdict])
            del captured, arrays
            subject.close()
    head = ["", "tokens", "rows as float32, MiB", "arena and arrays, MiB", "highest RSS, more by MiB", "aim"]
    return ["### Memory", table(head, rows)]


# -- PyTorch ------------------------------------------------------------------------------------------------------


def torch_reference(shape_name: str, n_threads: int, rounds: int) -> list[str]:
    """One token with output_hidden_states=True in transformers: the way to hidden states without a GGUF file."""
    import torch
    import transformers

    shape = SHAPES[shape_name]
    torch.set_num_threads(n_threads)
    config = transformers.LlamaConfig(
        vocab_size=shape.n_vocab,
        hidden_size=shape.n_embd,
        intermediate_size=shape.n_ff,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_head_kv,
    )
    tokens = torch.from_numpy(random_tokens(PROMPT + 1, shape.n_vocab).astype(np.int64))[None]
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        torch.set_default_dtype(dtype)
        model = transformers.LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
        seconds = []
        with torch.inference_mode():
            cache = model(tokens[:, :PROMPT], use_cache=True).past_key_values
            for _ in range(rounds + 1):
                began = time.perf_counter()
                model(tokens[:, PROMPT:], past_key_values=cache, use_cache=True, output_hidden_states=True)
                seconds.append(time.perf_counter() - began)
                cache.crop(-1)  # the one token that came last
        rows.append([str(dtype).removeprefix("torch."), spread(np.array(seconds[1:]))])
        del model, cache
    title = f"### PyTorch {torch.__version__}, transformers {transformers.__version__}: one token, the same shape"
    return [title, table(["", "ms (quartiles)"], rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what capturing hidden states costs.")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="repeatable (default: tinyllama and tiny)")
    parser.add_argument("--type", choices=TYPES, default="Q4_0")
    parser.add_argument("--rounds", type=int, default=45, help="of single tokens; a third as many of prompts")
    parser.add_argument("--threads", type=int, default=_default_threads())
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of one thread, which other programs hardly change; needs --threads 1",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that everything runs")
    parser.add_argument("--torch", action="store_true", help="also time transformers, where it is installed")
    parser.add_argument("--models", type=Path, default=DEFAULT_DIR, help="folder for the random models")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu counts one thread's time: add --threads 1")
    clock = time.thread_time if options.clock == "cpu" else time.perf_counter
    setting = Setting(n_threads=options.threads, clock=clock)

    for shape in options.shape or ["tinyllama", "tiny"]:
        path = random_model(shape, options.type, options.models)
        weights = Weights(path)
        aim = 1.02 if weights.n_layer > 4 else 1.05
        parts = [
            f"## Shape {shape}, {options.type}{', processor time of one thread' if options.clock == 'cpu' else ''}",
            f"`{command_line()}`: {machine(options.threads)}",
            *overhead(weights, setting, rounds, aim=aim),
            *generation(weights, path, setting, max(3, rounds // 3)),
            *stopping(path, setting, rounds),
            *memory(weights, setting),
        ]
        weights.close()
        if options.torch:
            parts += torch_reference(shape, options.threads, max(3, rounds // 3))
        text = "\n\n".join(parts)
        print(text, flush=True)
        if options.write:
            write_section(options.write, f"capture {shape}{' cpu' if options.clock == 'cpu' else ''}", text)


if __name__ == "__main__":
    main()
