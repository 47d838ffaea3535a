"""Causal language models: tiny configurations and the names of their weights in GGUF."""

from __future__ import annotations

from typing import Any

from gguf import GGUFWriter
from recipe import Recipe, Weights, add_rope, add_sizes, head_dim, split_experts, unpermute_rope
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

N_VOCAB = 320
N_CTX = 512

# No two sizes are alike where that can be had, so that an axis taken for another one shows.
COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "max_position_embeddings": N_CTX,
    "num_attention_heads": 4,
    "bos_token_id": N_VOCAB - 3,
    "eos_token_id": N_VOCAB - 2,
    "pad_token_id": N_VOCAB - 1,
    "attn_implementation": "eager",
}
ROPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.#.input_layernorm": "blk.#.attn_norm",
    "model.layers.#.self_attn.q_proj": "blk.#.attn_q",
    "model.layers.#.self_attn.k_proj": "blk.#.attn_k",
    "model.layers.#.self_attn.v_proj": "blk.#.attn_v",
    "model.layers.#.self_attn.o_proj": "blk.#.attn_output",
    "model.layers.#.post_attention_layernorm": "blk.#.ffn_norm",
    "model.layers.#.mlp.gate_proj": "blk.#.ffn_gate",
    "model.layers.#.mlp.up_proj": "blk.#.ffn_up",
    "model.layers.#.mlp.down_proj": "blk.#.ffn_down",
}
EXPERT_NAMES = {
    "model.layers.#.mlp.gate": "blk.#.ffn_gate_inp",
    "model.layers.#.mlp.experts.gate_proj": "blk.#.ffn_gate_exps",
    "model.layers.#.mlp.experts.up_proj": "blk.#.ffn_up_exps",
    "model.layers.#.mlp.experts.down_proj": "blk.#.ffn_down_exps",
}
SHARED_EXPERT_NAMES = {
    "model.layers.#.mlp.shared_expert_gate": "blk.#.ffn_gate_inp_shexp",
    "model.layers.#.mlp.shared_expert.gate_proj": "blk.#.ffn_gate_shexp",
    "model.layers.#.mlp.shared_expert.up_proj": "blk.#.ffn_up_shexp",
    "model.layers.#.mlp.shared_expert.down_proj": "blk.#.ffn_down_shexp",
}
QK_NORM_NAMES = {
    "model.layers.#.self_attn.q_norm": "blk.#.attn_q_norm",
    "model.layers.#.self_attn.k_norm": "blk.#.attn_k_norm",
}
POST_NORM_NAMES = {
    "model.layers.#.post_attention_layernorm": "blk.#.post_attention_norm",
    "model.layers.#.post_feedforward_layernorm": "blk.#.post_ffw_norm",
}
GPT2_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "transformer.h.#.ln_1": "blk.#.attn_norm",
    "transformer.h.#.attn.c_attn": "blk.#.attn_qkv",
    "transformer.h.#.attn.c_proj": "blk.#.attn_output",
    "transformer.h.#.ln_2": "blk.#.ffn_norm",
    "transformer.h.#.mlp.c_fc": "blk.#.ffn_up",
    "transformer.h.#.mlp.c_proj": "blk.#.ffn_down",
}

PHI_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "model.layers.#.input_layernorm": "blk.#.attn_norm",
    "model.layers.#.self_attn.q_proj": "blk.#.attn_q",
    "model.layers.#.self_attn.k_proj": "blk.#.attn_k",
    "model.layers.#.self_attn.v_proj": "blk.#.attn_v",
    "model.layers.#.self_attn.dense": "blk.#.attn_output",
    "model.layers.#.mlp.fc1": "blk.#.ffn_up",
    "model.layers.#.mlp.fc2": "blk.#.ffn_down",
}


def rope_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    """Sizes, rotary embedding and RMS norm: what Llama's file has and its relatives build on."""
    add_sizes(writer, config, N_CTX)
    add_rope(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def mixtral_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    rope_hyperparameters(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)


def qwen2moe_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    rope_hyperparameters(writer, config)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def gemma2_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    rope_hyperparameters(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def gpt2_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    add_sizes(writer, config, N_CTX)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def cohere_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    add_sizes(writer, config, N_CTX)
    add_rope(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_logit_scale(config.logit_scale)


def phi2_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    add_sizes(writer, config, N_CTX)
    writer.add_rope_dimension_count(head_dim(config) // 2)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_eps(config.layer_norm_eps)


def llama_weights(model: PreTrainedModel) -> Weights:
    """Llama and Mixtral: the rows of Q and K in the order of ggml's adjacent-pair rope."""
    for name, weight in model.named_parameters():
        if name.endswith("q_proj.weight"):
            yield name, unpermute_rope(weight, model.config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            yield name, unpermute_rope(weight, model.config.num_key_value_heads)
        else:
            yield from split_experts(name, weight)


def qwen2moe_weights(model: PreTrainedModel) -> Weights:
    """The shared expert's gate, [1, n_embd], is a vector in ggml."""
    for name, weight in model.named_parameters():
        yield from split_experts(name, weight[0] if name.endswith("shared_expert_gate.weight") else weight)


def gemma_weights(model: PreTrainedModel) -> Weights:
    """Gemma's norms multiply by 1 + weight in PyTorch and by the weight in ggml."""
    for name, weight in model.named_parameters():
        yield name, weight + 1 if name.endswith("norm.weight") else weight


def gpt2_weights(model: PreTrainedModel) -> Weights:
    """GPT-2's matrices are Conv1D, [n_in, n_out]; ggml wants [n_out, n_in]. The embeddings are not."""
    for name, weight in model.named_parameters():
        yield name, weight.T if ".h." in name and weight.ndim == 2 else weight


def build_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**COMMON, **ROPE))


def build_mixtral() -> PreTrainedModel:
    sizes = ROPE | {"hidden_size": 32, "head_dim": 16}  # the experts need the room
    return MixtralForCausalLM(MixtralConfig(**COMMON, **sizes, num_local_experts=4, num_experts_per_tok=2))


def build_qwen2moe() -> PreTrainedModel:
    """Five experts of which two answer, weights not renormalised, and one more that always does."""
    sizes = ROPE | {"hidden_size": 32, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 48}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**COMMON, **sizes, num_experts=5, num_experts_per_tok=2))


def build_qwen3() -> PreTrainedModel:
    """Tied embeddings, as the smaller Qwen3 models have."""
    return Qwen3ForCausalLM(Qwen3Config(**COMMON, **ROPE, head_dim=16, tie_word_embeddings=True))


def build_olmo2() -> PreTrainedModel:
    return Olmo2ForCausalLM(Olmo2Config(**COMMON, **ROPE))


def build_gemma2() -> PreTrainedModel:
    """A window shorter than the prompt, and caps low enough to bend what random weights give."""
    sizes = ROPE | {"num_hidden_layers": 4, "head_dim": 16, "query_pre_attn_scalar": 16}
    caps: dict[str, Any] = {
        "sliding_window": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    }
    return Gemma2ForCausalLM(Gemma2Config(**COMMON, **sizes, **caps))


def build_gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**COMMON, n_embd=32, n_layer=3))


def build_cohere() -> PreTrainedModel:
    """Attention and feed-forward side by side, tied embeddings, and logits with a scale."""
    return CohereForCausalLM(CohereConfig(**COMMON, **ROPE, logit_scale=0.3))


def build_phi2() -> PreTrainedModel:
    """Biases everywhere, on the logits too; half of each head is rotated."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return PhiForCausalLM(
        PhiConfig(**COMMON, **ROPE | {"hidden_size": 32, "num_key_value_heads": 4, "rope_parameters": rope})
    )


DECODERS = [
    Recipe(
        name="llama",
        arch="llama",
        build=build_llama,
        blocks="model.layers",
        names=LLAMA_NAMES,
        hyperparameters=rope_hyperparameters,
        weights=llama_weights,
    ),
    Recipe(
        name="mixtral",
        arch="llama",
        build=build_mixtral,
        blocks="model.layers",
        names=LLAMA_NAMES | EXPERT_NAMES,
        hyperparameters=mixtral_hyperparameters,
        weights=llama_weights,
    ),
    Recipe(
        name="qwen2moe",
        arch="qwen2moe",
        build=build_qwen2moe,
        blocks="model.layers",
        names=LLAMA_NAMES | EXPERT_NAMES | SHARED_EXPERT_NAMES,
        hyperparameters=qwen2moe_hyperparameters,
        weights=qwen2moe_weights,
    ),
    Recipe(
        name="qwen3",
        arch="qwen3",
        build=build_qwen3,
        blocks="model.layers",
        names=LLAMA_NAMES | QK_NORM_NAMES,
        hyperparameters=rope_hyperparameters,
    ),
    Recipe(
        name="olmo2",
        arch="olmo2",
        build=build_olmo2,
        blocks="model.layers",
        names=LLAMA_NAMES | QK_NORM_NAMES | POST_NORM_NAMES,
        hyperparameters=rope_hyperparameters,
    ),
    Recipe(
        name="gemma2",
        arch="gemma2",
        build=build_gemma2,
        blocks="model.layers",
        names=LLAMA_NAMES | POST_NORM_NAMES | {"model.layers.#.pre_feedforward_layernorm": "blk.#.ffn_norm"},
        hyperparameters=gemma2_hyperparameters,
        weights=gemma_weights,
        norm_centre=0.0,
        embedding_std=0.15,  # times sqrt(n_embd) in the model
    ),
    Recipe(
        name="gpt2",
        arch="gpt2",
        build=build_gpt2,
        blocks="transformer.h",
        names=GPT2_NAMES,
        hyperparameters=gpt2_hyperparameters,
        weights=gpt2_weights,
    ),
    Recipe(
        name="cohere",
        arch="command-r",
        build=build_cohere,
        blocks="model.layers",
        names=LLAMA_NAMES,
        hyperparameters=cohere_hyperparameters,
    ),
    Recipe(
        name="phi2",
        arch="phi2",
        build=build_phi2,
        blocks="model.layers",
        names=PHI_NAMES,
        hyperparameters=phi2_hyperparameters,
    ),
]
