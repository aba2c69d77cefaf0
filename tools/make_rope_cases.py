#!/usr/bin/env python3
"""Writes tests/golden/rope.json, the inverse frequencies and attention factors of every rope kind, and
rope.safetensors, logits of the golden mixtral-base with each kind, as transformers computes them.
Needs transformers 4.57, safetensors and torch; not part of the build."""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HALF = 32
SCALINGS = {
    "default": (None, [64]),
    "linear": ({"rope_type": "linear", "factor": 4.0}, [64]),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, [64, 2048, 3000, 9000]),
    "llama3": ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024}, [64]),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, [64]),
    "yarn-mscale": ({"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8,
                     "beta_fast": 16, "beta_slow": 2, "original_max_position_embeddings": 256}, [64]),
    "yarn-exact-edges": ({"rope_type": "yarn", "factor": 4.0, "truncate": False,
                          "original_max_position_embeddings": 512}, [64]),
    "longrope": ({"rope_type": "longrope", "original_max_position_embeddings": 512,
                  "short_factor": [1.0 + 0.01 * i for i in range(HALF)],
                  "long_factor": [1.5 + 0.05 * i for i in range(HALF)]}, [64, 512, 513, 2000]),
}


def case(name, scaling, length):
    config = MixtralConfig(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=2 * HALF,
                           rope_theta=10000.0, max_position_embeddings=2048, rope_scaling=scaling)
    if scaling and "original_max_position_embeddings" in scaling:
        config.original_max_position_embeddings = scaling["original_max_position_embeddings"]
    kind = scaling["rope_type"] if scaling else "default"
    inv, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return {"name": name, "rope_scaling": scaling, "length": length, "head_dim": 2 * HALF,
            "inverse_frequencies": [float(x) for x in inv], "attention_factor": float(factor)}


# Scalings of mixtral-base (head_dim 16) and its max_position_embeddings.
MODELS = {
    "linear": (256, {"rope_type": "linear", "factor": 4.0}),
    "dynamic": (64, {"rope_type": "dynamic", "factor": 4.0}),
    "llama3": (256, {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64}),
    "yarn": (256, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    "longrope": (256, {"rope_type": "longrope", "original_max_position_embeddings": 64,
                       "short_factor": [1.0 + 0.05 * i for i in range(8)],
                       "long_factor": [1.5 + 0.25 * i for i in range(8)]}),
}


def logits(folder, positions, scaling, length):
    config = MixtralConfig.from_pretrained(folder)
    config.max_position_embeddings = positions
    config.head_dim = config.hidden_size // config.num_attention_heads
    config.rope_scaling = scaling
    if "original_max_position_embeddings" in scaling:
        config.original_max_position_embeddings = scaling["original_max_position_embeddings"]
    model = MixtralForCausalLM.from_pretrained(folder, config=config, torch_dtype=torch.float32).eval()
    ids = torch.tensor([[(7 * i * i + 3 * i + 1) % 250 for i in range(length)]])
    with torch.no_grad():
        return model(ids).logits[0, ::9].contiguous()


def main():
    golden = pathlib.Path(__file__).parent.parent / "tests/golden"
    tensors = {f"{name}.{n}": logits(golden / "mixtral-base/model", positions, scaling, n)
               for name, (positions, scaling) in MODELS.items() for n in (40, 90)}
    configs = {name: {"max_position_embeddings": positions, "rope_scaling": scaling}
               for name, (positions, scaling) in MODELS.items()}
    save_file(tensors, golden / "rope.safetensors")
    cases = [case(name, scaling, n) for name, (scaling, lengths) in SCALINGS.items() for n in lengths]
    (golden / "rope.json").write_text(json.dumps(
        {"rope_theta": 10000.0, "max_position_embeddings": 2048, "cases": cases, "models": configs}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
