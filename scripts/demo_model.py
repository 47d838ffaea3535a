"""The demo model: its tokenizer, its network (plain torch, Llama architecture) and its export to GGUF."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from demo_world_chat import ASSISTANT, BEGIN, END, SPECIAL_TOKENS, USER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

#: the same string that ``demo_world_chat.render_chat`` makes; a system message goes first and unmarked
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}"
    f"{{{{ '{ASSISTANT}' + (message['content'] | trim) + '{END}' }}}}"
    "{% else %}"
    f"{{{{ '{USER}' + (message['content'] | trim) + '{END}' }}}}"
    "{% endif %}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)
DESCRIPTION = (
    "A tiny language model of little animal stories, trained from scratch on a generated toy language with "
    "known attributes. For demos and tests of loom_gguf."
)


@dataclass(frozen=True)
class Config:
    """Sizes of the network."""

    vocab: int = 1024
    layers: int = 8
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 384
    context: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenizer; all 256 bytes are tokens, so that any text has token ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rope_tables(config: Config, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (length, head_width / 2)."""
    half = config.head_width // 2
    rates = config.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (batch, heads, time, head_width).

    What is rotated are the pairs (i, i + half), as in Hugging Face's Llama.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(nn.Module):
    """Attention and SwiGLU feed-forward, each behind a norm and inside a residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.width, config.kv_heads * config.head_width
        self.attn_norm = RMSNorm(width, config.norm_eps)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_width, bias=False)
        self.v = nn.Linear(width, kv_width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.ffn_norm = RMSNorm(width, config.norm_eps)
        self.gate = nn.Linear(width, config.hidden, bias=False)
        self.up = nn.Linear(width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: (batch, time, width)."""
        batch, time, width = x.shape
        h = self.attn_norm(x)
        q, k, v = (
            part(h).view(batch, time, -1, self.config.head_width).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        repeats = self.config.heads // self.config.kv_heads
        k, v = (part.repeat_interleave(repeats, dim=1) for part in (rotate(k, cos, sin), v))
        mixed = functional.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, time, width))
        h = self.ffn_norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class DemoModel(nn.Module):
    """The language model; input and output embeddings are tied."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        cos, sin = rope_tables(config, config.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # What writes into the residual stream starts smaller: its size shall not grow with depth.
                writes = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.08 / (math.sqrt(2 * config.layers) if writes else 1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, time) ids -> logits (batch, time, vocab)."""
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return functional.linear(self.norm(x), self.embedding.weight)


def permute_for_rope(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection (heads * head_width, width), reordered for llama.cpp.

    Its RoPE for this architecture rotates neighbours (2i, 2i + 1) where this model rotates (i, i + half).
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    spec = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in spec["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id(BEGIN))
    writer.add_eos_token_id(tokenizer.token_to_id(END))
    writer.add_eot_token_id(tokenizer.token_to_id(END))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def export_gguf(model: DemoModel, tokenizer: Tokenizer, path: Path) -> None:
    """Write the model as one GGUF file: matrices as F16, norms as F32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Loom Demo Stories")
    writer.add_description(DESCRIPTION)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_vocab_size(config.vocab)
    _write_tokenizer(writer, tokenizer)

    def add(name: str, tensor: Tensor, heads: int | None = None) -> None:
        array = tensor.detach().float().numpy()
        if heads is not None:
            array = permute_for_rope(array, heads)
        kind = np.float32 if array.ndim == 1 else np.float16
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(array, kind))

    add("token_embd", model.embedding.weight)
    for index, block in enumerate(model.blocks):
        add(f"blk.{index}.attn_norm", block.attn_norm.weight)
        add(f"blk.{index}.attn_q", block.q.weight, config.heads)
        add(f"blk.{index}.attn_k", block.k.weight, config.kv_heads)
        add(f"blk.{index}.attn_v", block.v.weight)
        add(f"blk.{index}.attn_output", block.o.weight)
        add(f"blk.{index}.ffn_norm", block.ffn_norm.weight)
        add(f"blk.{index}.ffn_gate", block.gate.weight)
        add(f"blk.{index}.ffn_up", block.up.weight)
        add(f"blk.{index}.ffn_down", block.down.weight)
    add("output_norm", model.norm.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
