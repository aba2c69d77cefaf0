#!/usr/bin/env python3
"""Writes tests/golden/adapter_deltas.json: what each adapter of CASES adds to each linear of its model.

Reads the adapters' two files with numpy alone and shares no code with Lorry, PEFT or safetensors.
For the delta D [out, in] of a linear, with fixed vectors u, v (out) and x, y (in), it stores
[u D x, v D y, Frobenius norm of D]. Linears with no delta are left out. Adapters that hold more
than plain LoRA (DoRA, embeddings, modules_to_save) are left out: the loader refuses them.

    tools/make_adapter_deltas.py [tests/golden]
"""
import json
import math
import os
import re
import sys

import numpy as np

from golden_reference import pattern_value, read_safetensors

CASES = ["dbrx-base", "mixtral-base", "mixtral-sliding", "mixtral-v5-target-parameters"]
REGISTERED = {"mlp.experts": ["gate_up_proj", "down_proj"],  # in the order PEFT wraps them
              "ffn.experts.mlp": ["w1", "v1", "w2"], "mlp.gate": ["weight"]}
KINDS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "Wqkv": "qkv", "out_proj": "o",
         "gate": "router", "layer": "router", "w1": "gate", "w3": "up", "w2": "down", "v1": "up"}


def scale_of(config, path, rank):
    alpha = pattern_value(config.get("alpha_pattern"), path, config["lora_alpha"])
    assert rank == pattern_value(config.get("rank_pattern"), path, config["r"]), path
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def targeted(config, module):
    names = next((v for k, v in REGISTERED.items() if module.endswith("." + k)), [])
    return [n for n in names
            if any(f"{module}.{n}" == t or f"{module}.{n}".endswith("." + t)
                   for t in config.get("target_parameters") or [])]


def stacked(A, B, experts, rows, cols, old):
    """Delta [E, rows, cols]; A has row e r + k, B column k E + e; PEFT < 0.19 stored the transpose."""
    rank = A.shape[0] // experts
    swapped = old if rows == cols else A.shape[1] == rows
    delta = np.zeros((experts, B.shape[0], A.shape[1]))
    for e in range(experts):
        for k in range(rank):
            delta[e] += np.outer(B[:, k * experts + e], A[e * rank + k])
    return delta.transpose(0, 2, 1) if swapped else delta


def deltas_of(model, config, tensors):
    """{(kind, layer, expert): delta [out, in]}"""
    out = {}
    modules = sorted({m[1] for m in (re.match(r"base_model\.model\.(.*)\.lora_A\.weight$", k) for k in tensors) if m})
    for module in modules:
        A, B = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        depth, path = module.count(".base_layer"), module.replace(".base_layer", "")
        layer = int(m[1]) if (m := re.search(r"\.(?:layers|blocks)\.(\d+)\.", path)) else 0
        params = targeted(config, path)
        if not params:
            kind = "lm_head" if path == "lm_head" else KINDS[path.rpartition(".")[2]]
            expert = int(m[1]) if (m := re.search(r"experts\.(\d+)\.", path)) else -1
            out[kind, layer, expert] = B @ A * scale_of(config, path, len(A))
            continue
        name = params[len(params) - 1 - depth]
        key = f"{path}.{name}"
        if name == "weight":
            out["router", layer, -1] = B @ A * scale_of(config, key, len(A))
        elif name in ("w1", "v1", "w2"):  # DBRX: rows of all experts; w2 is used untransposed
            width = model["ffn_config"]["ffn_hidden_size"]
            delta = (B @ A * scale_of(config, key, len(A))).reshape(-1, width, A.shape[1])
            for e, d in enumerate(delta):
                out[KINDS["w2" if name == "w2" else name], layer, e] = d.T if name == "w2" else d
        else:
            E, I, H = (model[k] for k in ("num_local_experts", "intermediate_size", "hidden_size"))
            old = tuple(map(int, (config.get("peft_version") or "0.0").split(".")[:2])) < (0, 19)
            rows, cols = (2 * I, H) if name == "gate_up_proj" else (H, I)
            delta = stacked(A, B, E, rows, cols, old) * scale_of(config, key, len(A) // E)
            for e, d in enumerate(delta):
                if name == "down_proj":
                    out["down", layer, e] = d
                else:
                    out["gate", layer, e], out["up", layer, e] = d[:I], d[I:]
    return out


def project(delta):
    i, j = np.arange(1, delta.shape[0] + 1), np.arange(1, delta.shape[1] + 1)
    return [float(np.sin(0.23 * i) @ delta @ np.cos(0.37 * j)), float(np.cos(1.7 * i) @ delta @ np.sin(0.9 * j)),
            float(np.linalg.norm(delta))]


def main(golden):
    result = {}
    for case in CASES:
        folder = os.path.join(golden, case, "adapters")
        with open(os.path.join(golden, case, "model", "config.json")) as f:
            model = json.load(f)
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name, "adapter_config.json")) as f:
                config = json.load(f)
            tensors = read_safetensors(os.path.join(folder, name, "adapter_model.safetensors"))
            plain = not config.get("use_dora") and not config.get("modules_to_save")
            if plain and not any("lora_embedding" in k for k in tensors):
                found = deltas_of(model, config, tensors)
                result.setdefault(case, {})[name] = {
                    " ".join(map(str, site)): project(d) for site, d in sorted(found.items())}
    with open(os.path.join(golden, "adapter_deltas.json"), "w") as f:
        f.write("{\n" + ",\n".join(
            f"{json.dumps(case)}: {{\n" + ",\n".join(
                f" {json.dumps(a)}: {{\n" + ",\n".join(
                    f'  {json.dumps(s)}: [{", ".join(f"{x:.9g}" for x in p)}]' for s, p in sites.items()) + "}"
                for a, sites in adapters.items()) + "}"
            for case, adapters in result.items()) + "}\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "tests", "golden"))
