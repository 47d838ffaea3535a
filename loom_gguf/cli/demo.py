"""`loom-gguf demo`: see hidden states in a minute, without a download."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import StatesFileError
from .output import console, size_text
from .recording import Recording

PROMPT = "One morning a fox"
TEMPERATURE, SEED = 0.7, 1
MAX_TOKENS = 64  # this story ends before
STATES = "hidden_states.safetensors"
PICTURE = "hidden_states.png"


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "demo",
        help="capture, draw and save the hidden states of the built-in model",
        usage="loom-gguf demo [--out-dir DIR]",
        description="Let the built-in model write a few words while every layer is captured; show the layers in the "
        f"terminal, and write {STATES} and {PICTURE}. Takes seconds, needs no network.",
    )
    parser.add_argument("--out-dir", default=".", metavar="DIR", help="where to write; made if need be (default: here)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate, show, write, and say how to go on."""
    from ..capture import Capture
    from ..model import Model
    from ..plots import heat_map, terminal_heat_map
    from ..states_file import check_target

    folder = Path(args.out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StatesFileError(f"the folder {folder} cannot be made: {error.strerror}") from None
    states_path, picture_path = check_target(folder / STATES), folder / PICTURE

    out = console()
    with Model("demo", n_threads=1) as model:  # so small that a second thread would only be waited for
        print(f"The built-in model ({model.arch}, {model.n_layer} layers, n_embd {model.n_embd}) writes:\n")
        sys.stdout.write(PROMPT)
        recording = Recording()
        everything = Capture.all_layers(embedding=True, final=True)
        for step in model.generate(
            PROMPT, capture=everything, prompt_states=True, max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=SEED
        ):
            recording.play(step)
        print("\n")
        states = recording.states
        assert states is not None  # a generation has at least one step, and each has its rows
        facts = recording.facts(model, PROMPT, {"precision": "fast"})
    texts, n_prompt = facts["token_texts"], facts["n_prompt"]
    out.print(terminal_heat_map(states, texts, n_prompt=n_prompt))
    states.save(states_path, metadata=facts)
    heat_map(states, texts, picture_path, n_prompt=n_prompt)

    first = states.layers[0]
    print(
        f"\nWrote {states_path} ({size_text(states_path.stat().st_size)}): {len(states)} states of "
        f"{len(states.tokens)} tokens\n"
        f"      {picture_path}: the picture above, to open in any viewer\n\n"
        f"In Python:\n\n"
        f"    from loom_gguf import States\n"
        f"    states = States.load({str(states_path)!r})\n\n"
        f"states.layer({first}) then has the shape {states.layer(first).shape}: a row per token. Next:\n\n"
        f"    loom-gguf run MODEL.gguf 'Your prompt' --out states.safetensors"
    )
    return 0
