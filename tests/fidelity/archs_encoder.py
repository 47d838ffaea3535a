"""Text encoders of the BERT family: post-norm, post-norm with rotary embeddings, and pre-norm."""

from __future__ import annotations

from typing import Any

import torch
from gguf import GGUFWriter, PoolingType
from recipe import Recipe, Weights, add_rope, add_sizes
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedModel,
)
from vocabularies import WordVocabulary

N_CTX = 128

COMMON: dict[str, Any] = {
    "vocab_size": WordVocabulary().size,
    "max_position_embeddings": N_CTX,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": WordVocabulary().pad,
    "attn_implementation": "eager",
}

BERT_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.#.attention.self.query": "blk.#.attn_q",
    "encoder.layer.#.attention.self.key": "blk.#.attn_k",
    "encoder.layer.#.attention.self.value": "blk.#.attn_v",
    "encoder.layer.#.attention.output.dense": "blk.#.attn_output",
    "encoder.layer.#.attention.output.LayerNorm": "blk.#.attn_output_norm",
    "encoder.layer.#.intermediate.dense": "blk.#.ffn_up",
    "encoder.layer.#.output.dense": "blk.#.ffn_down",
    "encoder.layer.#.output.LayerNorm": "blk.#.layer_output_norm",
}
NOMIC_BERT_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "layers.#.self_attn.qkv": "blk.#.attn_qkv",
    "layers.#.self_attn.o_proj": "blk.#.attn_output",
    "layers.#.post_attention_layernorm": "blk.#.attn_output_norm",
    "layers.#.mlp.gate_proj": "blk.#.ffn_gate",
    "layers.#.mlp.up_proj": "blk.#.ffn_up",
    "layers.#.mlp.down_proj": "blk.#.ffn_down",
    "layers.#.post_mlp_layernorm": "blk.#.layer_output_norm",
}
MODERN_BERT_NAMES = {
    "embeddings.tok_embeddings": "token_embd",
    "embeddings.norm": "token_embd_norm",
    "layers.#.attn_norm": "blk.#.attn_norm",
    "layers.#.attn.Wqkv": "blk.#.attn_qkv",
    "layers.#.attn.Wo": "blk.#.attn_output",
    "layers.#.mlp_norm": "blk.#.ffn_norm",
    "layers.#.mlp.Wi": "blk.#.ffn_up",
    "layers.#.mlp.Wo": "blk.#.ffn_down",
    "final_norm": "output_norm",
}


def encoder_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    add_sizes(writer, config, N_CTX)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)


def bert_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    encoder_hyperparameters(writer, config)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_token_type_count(config.type_vocab_size)


def nomic_bert_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    bert_hyperparameters(writer, config)
    add_rope(writer, config)


def modern_bert_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    """Every third block sees the whole text; the others see a window, with a rotation of their own."""
    encoder_hyperparameters(writer, config)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(config.local_attention)
    writer.add_sliding_window_pattern(3)


def nomic_bert_weights(model: PreTrainedModel) -> Weights:
    """Q, K and V in one matrix, as Nomic's own files have them."""
    pending: list[torch.Tensor] = []
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            pending.append(weight)
            if len(pending) == 3:
                yield name.replace("v_proj", "qkv"), torch.cat(pending)
                pending.clear()
        else:
            yield name, weight


def build_bert() -> PreTrainedModel:
    return BertModel(BertConfig(**COMMON), add_pooling_layer=False)


def build_nomic_bert() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1000.0}
    return NomicBertModel(NomicBertConfig(**COMMON, rope_parameters=rope), add_pooling_layer=False)


def build_modern_bert() -> PreTrainedModel:
    """Four blocks: whole, window, window, whole; the window is shorter than the first text."""
    vocabulary = WordVocabulary()
    specials: dict[str, Any] = {
        "cls_token_id": vocabulary.cls,
        "sep_token_id": vocabulary.sep,
        "bos_token_id": vocabulary.cls,
        "eos_token_id": vocabulary.sep,
    }
    sizes = COMMON | {"num_hidden_layers": 4, "local_attention": 8}
    return ModernBertModel(ModernBertConfig(**sizes, **specials))


ENCODERS = [
    Recipe(
        name="bert",
        arch="bert",
        build=build_bert,
        blocks="encoder.layer",
        names=BERT_NAMES,
        hyperparameters=bert_hyperparameters,
    ),
    Recipe(
        name="nomic-bert",
        arch="nomic-bert",
        build=build_nomic_bert,
        blocks="layers",
        names=NOMIC_BERT_NAMES,
        hyperparameters=nomic_bert_hyperparameters,
        weights=nomic_bert_weights,
    ),
    Recipe(
        name="modern-bert",
        arch="modern-bert",
        build=build_modern_bert,
        blocks="layers",
        names=MODERN_BERT_NAMES,
        hyperparameters=modern_bert_hyperparameters,
    ),
]
