"""Writes a `Shape` as a Hugging Face folder and adapters as PEFT folders, in bf16. Needs numpy."""

from __future__ import annotations

import json
import pathlib
import struct

import numpy as np

from peer_shape import EPS, Bf16, Shape, layer_linears, linears, lora_pair, random_values, to_bf16, token_names


def write_safetensors(path: pathlib.Path, tensors: list[tuple[str, Bf16]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, values in tensors:
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors:
            np.ascontiguousarray(values).tofile(file)


def config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "torch_dtype": "bfloat16",
        "hidden_size": shape.dim, "num_hidden_layers": shape.layers, "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.top_k, "intermediate_size": shape.ffn, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab_size": shape.vocab,
        "rope_theta": shape.rope_theta, "max_position_embeddings": shape.positions, "rms_norm_eps": EPS,
        "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    }


def tokenizer(shape: Shape) -> dict[str, object]:
    names = token_names(shape)
    special = [{"id": i, "content": names[i], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i in range(3)]
    space = "\u2581"
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": space},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": space}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {name: i for i, name in enumerate(names)}, "merges": []},
    }


def write_model(folder: pathlib.Path, shape: Shape) -> None:
    """One shard a layer, and one for what is around the layers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(shape)))
    shards = shape.layers + 1
    where: dict[str, str] = {}
    ones = to_bf16(np.ones(shape.dim, np.float32))

    def shard(number: int, tensors: list[tuple[str, Bf16]]) -> None:
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / name, tensors)
        where.update({tensor: name for tensor, _ in tensors})

    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors = [(f"{x.module}.weight", random_values(x.module, x.rows, x.columns))
                   for x in layer_linears(shape, layer)]
        shard(layer + 1, [(f"{prefix}input_layernorm.weight", ones), (f"{prefix}post_attention_layernorm.weight", ones),
                          *tensors])
    shard(shards, [("model.embed_tokens.weight", random_values("token_embd", shape.vocab, shape.dim)),
                   ("model.norm.weight", ones),
                   ("lm_head.weight", random_values("output", shape.vocab, shape.dim))])
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_adapter(folder: pathlib.Path, shape: Shape, which: str, rank: int) -> None:
    """`which`: see linears(). Scale 1."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"] + (["gate", "w1", "w2", "w3"] if which == "all" else [])
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0,
        "bias": "none", "target_modules": modules, "peft_version": "0.19.0"}, indent=1))
    tensors = []
    for linear in linears(shape, which):
        a, b = lora_pair(folder.name, linear, rank)
        prefix = f"base_model.model.{linear.module}."
        tensors += [(f"{prefix}lora_A.weight", a), (f"{prefix}lora_B.weight", b)]
    write_safetensors(folder / "adapter_model.safetensors", tensors)
