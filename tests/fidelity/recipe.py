"""What it takes to make one fidelity model: how to build it, and how its weights are called in GGUF."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from vocabularies import Vocabulary

Weights = Iterator[tuple[str, Tensor]]

FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}


def plain_weights(model: PreTrainedModel) -> Weights:
    """The parameters as they are; a tied weight comes once, under its first name."""
    yield from model.named_parameters()


@dataclass(frozen=True)
class Recipe:
    """One architecture.

    `names` maps a module of the Hugging Face model to a tensor of the GGUF file, both without ".weight" or
    ".bias" and with `#` in place of the block's number. A parameter that it lacks is an error, so that
    nothing gets lost in silence. `centres` moves the random values of the parameters that end so, and
    `lacks_embedding` marks a model whose hidden states start after block 0 instead of before it.
    """

    name: str
    arch: str
    build: Callable[[], PreTrainedModel]
    blocks: str
    names: Mapping[str, str]
    hyperparameters: Callable[[GGUFWriter, Any], None]
    weights: Callable[[PreTrainedModel], Weights] = plain_weights
    norm_centre: float = 1.0
    embedding_std: float = 0.5
    centres: Mapping[str, float] = field(default_factory=dict)
    lacks_embedding: bool = False
    has_oracle: bool = True

    def block_modules(self, model: PreTrainedModel) -> list[nn.Module]:
        """The model's blocks, in order."""
        blocks = model.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return list(blocks)

    def gguf_name(self, name: str) -> str:
        """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
        module, dot, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            module, dot, suffix = name, "", ""
        number = re.search(r"\.(\d+)\.", module)
        if number:
            module = module.replace(number[0], ".#.", 1)
        renamed = self.names[module].replace("#", number[1]) if number else self.names[module]
        return renamed + dot + suffix

    def tensors(self, model: PreTrainedModel) -> dict[str, np.ndarray]:
        """Every weight under its GGUF name, float32, in PyTorch's (reversed ggml) order of axes."""
        return {
            self.gguf_name(name): weight.detach().float().contiguous().numpy() for name, weight in self.weights(model)
        }


@torch.no_grad()
def randomize(model: PreTrainedModel, recipe: Recipe, generator: torch.Generator) -> None:
    """Gives every parameter seeded random values under which the layers differ clearly.

    Matrices keep the variance of their input; norms scatter around 1 and biases around 0, so that leaving one
    out shows at once. Hugging Face's own initialisation has norms of exactly 1 and biases of exactly 0.
    """
    done: set[int] = set()  # a tied weight is reached under two names
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in done:
                continue
            done.add(id(weight))
            full_name = f"{path}.{name}"
            centre = next((value for end, value in recipe.centres.items() if full_name.endswith(end)), 0.0)
            std = 0.1
            if isinstance(module, nn.Embedding):
                std = recipe.embedding_std
            elif "Norm" in type(module).__name__ and name == "weight":
                centre, std = recipe.norm_centre, 0.2
            elif weight.ndim > 1:
                fan_in = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[-1]
                std = 1 / math.sqrt(fan_in)
            weight.copy_(centre + std * torch.randn(weight.shape, generator=generator))


def unpermute_rope(weight: Tensor, n_head: int) -> Tensor:
    """Rows of a Q or K projection, [n_head * head_dim, n_in], for a rotation of adjacent pairs.

    Hugging Face rotates value i of a head with value i + head_dim/2; ggml's "normal" rope, which llama.cpp
    uses for the Llama family, rotates 2i with 2i + 1.
    """
    n_out, n_in = weight.shape
    halves = weight.reshape(n_head, 2, n_out // n_head // 2, n_in)
    return halves.transpose(1, 2).reshape(n_out, n_in)


def split_experts(name: str, weight: Tensor) -> Weights:
    """Mixture weights stacked over experts: gate and up come fused, [n_expert, 2 * n_ff, n_embd]."""
    if name.endswith("experts.gate_up_proj"):
        gate, up = weight.chunk(2, dim=1)
        yield name.replace("gate_up_proj", "gate_proj") + ".weight", gate
        yield name.replace("gate_up_proj", "up_proj") + ".weight", up
    elif name.endswith("experts.down_proj"):
        yield name + ".weight", weight
    else:
        yield name, weight


def head_dim(config: Any) -> int:
    """Size of one attention head; not every configuration names it."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def add_sizes(writer: GGUFWriter, config: Any, n_ctx: int, n_head_kv: Sequence[int] | None = None) -> None:
    """The keys that every transformer's file has; `n_head_kv` where it differs between blocks."""
    n_head = config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv or getattr(config, "num_key_value_heads", n_head))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))


def add_rope(writer: GGUFWriter, config: Any) -> None:
    """The keys of a plain rotary embedding over the whole head."""
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def write_gguf(
    path: Path,
    recipe: Recipe,
    config: PretrainedConfig,
    tensors: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    *,
    dtype: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> None:
    """Writes a model; `dtype` is that of the matrices, everything with one axis stays F32."""
    writer = GGUFWriter(path, recipe.arch)
    writer.add_name(f"fidelity-{path.stem}")
    writer.add_file_type(FILE_TYPES[dtype])
    recipe.hyperparameters(writer, config)
    vocabulary.write(writer)
    for name, tensor in tensors.items():
        kept = dtype if tensor.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(tensor, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
