#!/usr/bin/env python3
"""Writes tests/golden/medusa: adapters with Medusa heads for the golden mixtral-base, and what their
heads make of one of its prompts.

Uses numpy alone and shares no code with Lorry, LoRAX or safetensors. The final hidden states come out
of the golden logits (transformers' and PEFT's), which determine them: logits = W h with more rows in W
than in h. Then head i is h -> h + silu(W_ij h + b_ij) for each layer j, and its output matrix or the
model's lm_head with the adapter's LoRA.

    tools/make_medusa_cases.py [tests/golden]
"""
import json
import os
import shutil
import struct
import sys

import numpy as np

from golden_reference import read_safetensors

# name, LoRA adapter beside the heads, heads, layers, version written, output matrices, file
CASES = [
    ("v1", None, 2, 2, None, True, "medusa_lm_head.safetensors"),
    ("v2", None, 3, 1, 2, False, "medusa_lm_head.safetensors"),
    ("v2-lora", "lm-head-r8", 1, 1, 2.0, False, "heads.safetensors"),
]
PROMPT = "p2"


def write_safetensors(path, tensors):
    """tensors: name -> (dtype name, array whose values that type can hold)."""
    head, blobs, at = {}, [], 0
    for name, (dtype, a) in sorted(tensors.items()):
        a = np.ascontiguousarray(a, np.float32)
        if dtype == "BF16":
            raw = (a.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            raw = a.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        head[name] = {"dtype": dtype, "shape": list(a.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def to_bf16(a):
    return (a.astype(np.float32).view(np.uint32) & 0xffff0000).view(np.float32)


def lm_head(base, lora):
    w = read_safetensors(os.path.join(base, "model/model.safetensors"))["lm_head.weight"]
    if lora is None:
        return w
    folder = os.path.join(base, "adapters", lora)
    config = json.load(open(os.path.join(folder, "adapter_config.json")))
    t = read_safetensors(os.path.join(folder, "adapter_model.safetensors"))
    a = t["base_model.model.lm_head.lora_A.weight"]
    b = t["base_model.model.lm_head.lora_B.weight"]
    return w + config["lora_alpha"] / config["r"] * (b @ a)


def make_heads(rng, heads, layers, outputs, dim, vocab):
    tensors = {}
    for i in range(heads):
        for j in range(layers):
            tensors[f"{i}.{j}.linear.weight"] = ("BF16", to_bf16(rng.normal(0, 0.15, (dim, dim))))
            tensors[f"{i}.{j}.linear.bias"] = ("F32", rng.normal(0, 0.5, dim).astype(np.float32))
        if outputs:
            weight = rng.normal(0, 0.15, (vocab, dim)).astype(np.float16)
            tensors[f"{i}.{layers}.weight"] = ("F16", weight.astype(np.float32))
    return tensors


def guess(tensors, heads, layers, h, w):
    out = []
    for i in range(heads):
        x = h
        for j in range(layers):
            z = x @ tensors[f"{i}.{j}.linear.weight"][1].astype(np.float64).T
            z = z + tensors[f"{i}.{j}.linear.bias"][1].astype(np.float64)
            x = x + z / (1 + np.exp(-z))
        own = tensors.get(f"{i}.{layers}.weight")
        out.append(x @ (w if own is None else own[1].astype(np.float64)).T)
    return np.stack(out, axis=1)  # [rows, heads, vocab]


def main():
    golden = sys.argv[1] if len(sys.argv) > 1 else "tests/golden"
    base = os.path.join(golden, "mixtral-base")
    logits = read_safetensors(os.path.join(base, "golden.safetensors"))
    doc = json.load(open(os.path.join(base, "golden.json")))
    prompt = doc["prompts"][PROMPT]
    rng = np.random.default_rng(7)
    expected, cases = {}, []
    for name, lora, heads, layers, version, outputs, file in CASES:
        folder = os.path.join(golden, "medusa", name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        w = lm_head(base, lora)
        h = np.linalg.lstsq(w, logits[f"{lora or 'base'}.{PROMPT}.logits"].T, rcond=None)[0].T
        tensors = make_heads(rng, heads, layers, outputs, w.shape[1], w.shape[0])
        write_safetensors(os.path.join(folder, file), tensors)
        config = {"base_model_name_or_path": "mixtral-base", "medusa_num_heads": heads,
                  "medusa_num_layers": layers}
        if version is not None:
            config["version"] = version
        json.dump(config, open(os.path.join(folder, "config.json"), "w"), indent=1)
        if lora is not None:
            for f in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy(os.path.join(base, "adapters", lora, f), folder)
        expected[name] = ("F32", guess(tensors, heads, layers, h, w))
        cases.append({"adapter": name, "same_text_as": lora})
    write_safetensors(os.path.join(golden, "medusa", "golden.safetensors"), expected)
    with open(os.path.join(golden, "medusa", "golden.json"), "w") as f:
        json.dump({"prompt": prompt, "cases": cases}, f, indent=1)
        f.write("\n")


main()
