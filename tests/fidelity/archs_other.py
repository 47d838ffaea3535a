"""Models that are more than a stack of causal attention: state spaces, convolutions, an encoder-decoder."""

from __future__ import annotations

from typing import Any

import torch
from archs_decoder import COMMON, N_CTX, ROPE
from gguf import GGUFWriter
from recipe import Recipe, Weights, add_rope, add_sizes
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

MAMBA_NAMES = {
    "backbone.embeddings": "token_embd",
    "backbone.norm_f": "output_norm",
    "backbone.layers.#.norm": "blk.#.attn_norm",
    "backbone.layers.#.mixer.in_proj": "blk.#.ssm_in",
    "backbone.layers.#.mixer.conv1d": "blk.#.ssm_conv1d",
    "backbone.layers.#.mixer.x_proj": "blk.#.ssm_x",
    "backbone.layers.#.mixer.dt_proj": "blk.#.ssm_dt",
    "backbone.layers.#.mixer.A_log": "blk.#.ssm_a",
    "backbone.layers.#.mixer.D": "blk.#.ssm_d",
    "backbone.layers.#.mixer.out_proj": "blk.#.ssm_out",
}
LFM2_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.embedding_norm": "token_embd_norm",  # the final norm, whatever its name says
    "model.layers.#.operator_norm": "blk.#.attn_norm",
    "model.layers.#.self_attn.q_proj": "blk.#.attn_q",
    "model.layers.#.self_attn.k_proj": "blk.#.attn_k",
    "model.layers.#.self_attn.v_proj": "blk.#.attn_v",
    "model.layers.#.self_attn.out_proj": "blk.#.attn_output",
    "model.layers.#.self_attn.q_layernorm": "blk.#.attn_q_norm",
    "model.layers.#.self_attn.k_layernorm": "blk.#.attn_k_norm",
    "model.layers.#.conv.in_proj": "blk.#.shortconv.in_proj",
    "model.layers.#.conv.conv": "blk.#.shortconv.conv",
    "model.layers.#.conv.out_proj": "blk.#.shortconv.out_proj",
    "model.layers.#.ffn_norm": "blk.#.ffn_norm",
    "model.layers.#.feed_forward.w1": "blk.#.ffn_gate",
    "model.layers.#.feed_forward.w2": "blk.#.ffn_down",
    "model.layers.#.feed_forward.w3": "blk.#.ffn_up",
}
T5_NAMES = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "encoder.block.#.layer.0.layer_norm": "enc.blk.#.attn_norm",
    "encoder.block.#.layer.0.SelfAttention.q": "enc.blk.#.attn_q",
    "encoder.block.#.layer.0.SelfAttention.k": "enc.blk.#.attn_k",
    "encoder.block.#.layer.0.SelfAttention.v": "enc.blk.#.attn_v",
    "encoder.block.#.layer.0.SelfAttention.o": "enc.blk.#.attn_o",
    "encoder.block.#.layer.0.SelfAttention.relative_attention_bias": "enc.blk.#.attn_rel_b",
    "encoder.block.#.layer.1.layer_norm": "enc.blk.#.ffn_norm",
    "encoder.block.#.layer.1.DenseReluDense.wi": "enc.blk.#.ffn_up",
    "encoder.block.#.layer.1.DenseReluDense.wo": "enc.blk.#.ffn_down",
    "decoder.final_layer_norm": "dec.output_norm",
    "decoder.block.#.layer.0.layer_norm": "dec.blk.#.attn_norm",
    "decoder.block.#.layer.0.SelfAttention.q": "dec.blk.#.attn_q",
    "decoder.block.#.layer.0.SelfAttention.k": "dec.blk.#.attn_k",
    "decoder.block.#.layer.0.SelfAttention.v": "dec.blk.#.attn_v",
    "decoder.block.#.layer.0.SelfAttention.o": "dec.blk.#.attn_o",
    "decoder.block.#.layer.0.SelfAttention.relative_attention_bias": "dec.blk.#.attn_rel_b",
    "decoder.block.#.layer.1.layer_norm": "dec.blk.#.cross_attn_norm",
    "decoder.block.#.layer.1.EncDecAttention.q": "dec.blk.#.cross_attn_q",
    "decoder.block.#.layer.1.EncDecAttention.k": "dec.blk.#.cross_attn_k",
    "decoder.block.#.layer.1.EncDecAttention.v": "dec.blk.#.cross_attn_v",
    "decoder.block.#.layer.1.EncDecAttention.o": "dec.blk.#.cross_attn_o",
    "decoder.block.#.layer.2.layer_norm": "dec.blk.#.ffn_norm",
    "decoder.block.#.layer.2.DenseReluDense.wi": "dec.blk.#.ffn_up",
    "decoder.block.#.layer.2.DenseReluDense.wo": "dec.blk.#.ffn_down",
}


def mamba_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(0)  # both must be there
    writer.add_feed_forward_length(0)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank)


def lfm2_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    """A block without key-value heads is one of convolution."""
    n_head_kv = {"full_attention": config.num_key_value_heads, "conv": 0}
    add_sizes(writer, config, N_CTX, [n_head_kv[kind] for kind in config.layer_types])
    add_rope(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_shortconv_l_cache(config.conv_L_cache)


def t5_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_decoder_block_count(config.num_decoder_layers)
    writer.add_decoder_start_token_id(config.decoder_start_token_id)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)


def recurrent_weights(model: PreTrainedModel) -> Weights:
    """Mamba and LFM2: depthwise kernels [n_channel, 1, n_tap] lose an axis; Mamba's A is -exp(A_log)."""
    for name, weight in model.named_parameters():
        if name.endswith("A_log"):
            yield name, -torch.exp(weight)
        else:
            yield name, weight.squeeze(1) if weight.ndim == 3 else weight


def build_mamba() -> PreTrainedModel:
    """Four blocks with a state of 16; hidden size 32 makes time steps of rank 2."""
    specials = {key: COMMON[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    return MambaForCausalLM(MambaConfig(**specials, hidden_size=32, num_hidden_layers=4))


def build_lfm2() -> PreTrainedModel:
    kinds = ["conv", "full_attention", "conv"]
    return Lfm2ForCausalLM(Lfm2Config(**COMMON, **ROPE, layer_types=kinds, block_auto_adjust_ff_dim=False))


def build_t5() -> PreTrainedModel:
    config = T5Config(
        vocab_size=COMMON["vocab_size"],
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=COMMON["pad_token_id"],
        eos_token_id=COMMON["eos_token_id"],
        pad_token_id=COMMON["pad_token_id"],
    )
    return T5ForConditionalGeneration(config)


OTHERS = [
    Recipe(
        name="mamba",
        arch="mamba",
        build=build_mamba,
        blocks="backbone.layers",
        names=MAMBA_NAMES,
        hyperparameters=mamba_hyperparameters,
        weights=recurrent_weights,
        centres={"dt_proj.bias": -2.0, "mixer.D": 1.0},  # time steps short enough to remember some tokens
        lacks_embedding=True,
    ),
    Recipe(
        name="lfm2",
        arch="lfm2",
        build=build_lfm2,
        blocks="model.layers",
        names=LFM2_NAMES,
        hyperparameters=lfm2_hyperparameters,
        weights=recurrent_weights,
    ),
    Recipe(
        name="t5",
        arch="t5",
        build=build_t5,
        blocks="decoder.block",
        names=T5_NAMES,
        hyperparameters=t5_hyperparameters,
        has_oracle=False,
    ),
]
