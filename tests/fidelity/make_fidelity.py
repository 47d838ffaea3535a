#!/usr/bin/env python3
"""Makes the fidelity models: tiny seeded random models as GGUF, each with PyTorch's hidden states beside it.

    python tests/fidelity/make_fidelity.py [--only ARCH ...] [--out DIR]

Needs torch, transformers, gguf and safetensors. README.md in this folder says what the files hold.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import torch
import transformers
from archs_decoder import DECODERS
from archs_encoder import ENCODERS
from archs_other import OTHERS
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from recipe import Recipe, randomize, write_gguf
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel
from vocabularies import ByteVocabulary, NoVocabulary, WordVocabulary

SEED = 20240229
N_TOKENS = 24
N_TOP = 5  # most probable tokens in the oracle of the lens
TEXTS = (
    "It reads the text twice, and each layer states what it sees in every word.",
    "A short text.",
    "Tokens are numbers; some words fall into pieces!",
)


def random_tokens(vocabulary: ByteVocabulary, generator: torch.Generator) -> Tensor:
    """bos and then any ordinary tokens, most of them single bytes and few of those valid UTF-8: int64 [T]."""
    tokens = torch.randint(vocabulary.n_ordinary, (N_TOKENS,), generator=generator)
    tokens[0] = vocabulary.bos
    return tokens


@torch.no_grad()
def run(model: PreTrainedModel, recipe: Recipe, tokens: Tensor) -> dict[str, Tensor]:
    """Runs one prompt, int64 [T], and returns everything PyTorch says about it."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        inputs.append(args[0])
        outputs.append(output[0] if isinstance(output, tuple) else output)

    blocks = recipe.block_modules(model)
    hooks = [block.register_forward_hook(keep) for block in blocks]
    result = model(input_ids=tokens[None], output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()

    hidden_states = list(result.hidden_states)
    if recipe.lacks_embedding:  # blocks 0 to N-1 and the final norm: brought to the order of the others
        hidden_states = [inputs[0], *hidden_states[:-2], hidden_states[-1]]
    states = {
        "tokens": tokens.to(torch.int32),
        "hidden_states": torch.cat(hidden_states),
        "block_outputs": torch.cat(outputs),
    }
    if not torch.equal(states["hidden_states"][:-1], torch.cat(inputs)):
        raise ValueError("up to the last block's input, hidden_states and the hooks must agree")
    if "logits" in result:
        states["logits"] = result.logits[0]
    if "attentions" in result:
        kinds = getattr(model.config, "layer_types", None) or ["attention"] * len(blocks)
        attending = [i for i, kind in enumerate(kinds) if "attention" in kind]
        states["attentions"] = torch.cat(result.attentions)
        states["attention_layers"] = torch.tensor(attending, dtype=torch.int32)
        if len(attending) != len(result.attentions):
            raise ValueError("every block with attention must have given its weights")
    return {name: state.contiguous() for name, state in states.items()}


def run_texts(model: PreTrainedModel, recipe: Recipe, vocabulary: WordVocabulary) -> dict[str, Tensor]:
    """Runs every text by itself: everything about the first, and the pooled final rows of all."""
    prompts = [torch.tensor(vocabulary.encode(text)) for text in TEXTS]
    runs = [run(model, recipe, tokens) for tokens in prompts]
    final = [states["hidden_states"][-1] for states in runs]
    return runs[0] | {
        "text_tokens": torch.cat(prompts).to(torch.int32),
        "text_lengths": torch.tensor([len(tokens) for tokens in prompts], dtype=torch.int32),
        "embedding_mean": torch.stack([rows.mean(dim=0) for rows in final]),
        "embedding_first": torch.stack([rows[0] for rows in final]),
        "embedding_last": torch.stack([rows[-1] for rows in final]),
        "embedding_max": torch.stack([rows.amax(dim=0) for rows in final]),
    }


@torch.no_grad()
def run_lens(model: PreTrainedModel, recipe: Recipe, states: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model says where its last block is made to give each hidden state in turn, [S, T, ...].

    So the norm, the output matrix and what follows are PyTorch's own, and no code here repeats them.
    """
    given = states["hidden_states"][:1]

    def replace(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> object:
        return (given, *output[1:]) if isinstance(output, tuple) else given

    hook = recipe.block_modules(model)[-1].register_forward_hook(replace)
    logits = []
    for state in (states["hidden_states"][0], *states["block_outputs"]):
        given = state[None]
        logits.append(model(input_ids=states["tokens"][None].long()).logits[0])
    hook.remove()
    logits.append(model(input_ids=states["tokens"][None].long()).logits[0])
    says = torch.stack(logits).double().log_softmax(dim=-1)  # [S, T, V]
    chosen = says[-1].argmax(dim=-1)[None, :, None].expand(len(says), -1, 1)
    log_prob = says.gather(-1, chosen)
    top = says.exp().topk(N_TOP, dim=-1)
    final = says[-1].expand_as(says)
    return {
        "top_ids": top.indices.to(torch.int32),
        "top_probs": top.values.float(),
        "final_ids": chosen[0, :, 0].to(torch.int32),
        "rank_of_final": 1 + (says > log_prob).sum(dim=-1).to(torch.int32),
        "prob_of_final": log_prob[..., 0].exp().float(),
        "kl": nn.functional.kl_div(says, final, reduction="none", log_target=True).sum(dim=-1).float(),
    }


def lens_files(model: PreTrainedModel, recipe: Recipe, states: dict[str, Tensor], out: Path) -> None:
    """Writes what a logit lens must say of these states; for llama also through its quantized output matrices."""
    save_oracle(out / f"{recipe.name}.lens.safetensors", run_lens(model, recipe, states), {})
    if recipe.name != "llama":
        return
    head = model.get_output_embeddings().weight
    plain = head.detach().clone()
    for dtype in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
        head.data = torch.from_numpy(dequantize(quantize(plain.numpy(), dtype), dtype).reshape(plain.shape))
        name = f"llama-{dtype.name.lower()}.lens.safetensors"
        save_oracle(out / name, run_lens(model, recipe, states), {}, made_by="llama")
    head.data = plain


def save_oracle(path: Path, states: dict[str, Tensor], about: dict[str, str], *, made_by: str | None = None) -> None:
    """Writes the states, and how to make them again."""
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    command = f"python tests/fidelity/make_fidelity.py --only {made_by or path.name.split('.')[0]}"
    data = save(states, {"command": command, "seed": str(SEED)} | versions | about)
    # safetensors orders its header anew in every run; sorted, the files are reproducible.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def make(recipe: Recipe, out: Path) -> None:
    """Makes one architecture's files in `out`."""
    # One stream of random numbers per architecture, so that making only some of them changes nothing.
    generator = torch.Generator().manual_seed(SEED ^ zlib.crc32(recipe.name.encode()))
    model = recipe.build().float().eval()
    randomize(model, recipe, generator)
    tensors = recipe.tensors(model)
    about = {"config": json.dumps(model.config.to_diff_dict(), sort_keys=True)}
    path = out / f"{recipe.name}.gguf"

    if recipe in ENCODERS:
        words = WordVocabulary()
        write_gguf(path, recipe, model.config, tensors, words)
        states = run_texts(model, recipe, words)
        save_oracle(path.with_suffix(".safetensors"), states, about | {"texts": json.dumps(TEXTS)})
        return

    vocabulary = ByteVocabulary(model.config.vocab_size)
    write_gguf(path, recipe, model.config, tensors, vocabulary)
    if recipe.has_oracle:
        states = run(model, recipe, random_tokens(vocabulary, generator))
        save_oracle(path.with_suffix(".safetensors"), states, about)
        lens_files(model, recipe, states, out)
    if recipe.name == "llama":
        no_vocab = NoVocabulary(vocabulary.size)
        write_gguf(out / "llama-no-vocab.gguf", recipe, model.config, tensors, no_vocab)
        for dtype in (GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
            quantized = out / f"llama-{dtype.name.lower()}.gguf"
            write_gguf(quantized, recipe, model.config, tensors, vocabulary, dtype=dtype)


def main() -> None:
    recipes = {recipe.name: recipe for recipe in (*DECODERS, *ENCODERS, *OTHERS)}
    parser = argparse.ArgumentParser(description="Makes the fidelity models; README.md says what they are.")
    parser.add_argument("--only", nargs="+", choices=recipes, default=list(recipes), metavar="ARCH")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # the order of additions must not depend on the machine
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        make(recipes[name], arguments.out)
        print(name)


if __name__ == "__main__":
    main()
