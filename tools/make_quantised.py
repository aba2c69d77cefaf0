#!/usr/bin/env python3
"""Writes tests/golden/quantised: small quantised checkpoints, packed by the projects that define their formats.

    tools/make_quantised.py SOURCES [case ...]

SOURCES is a folder with the unpacked source archives of auto-gptq 0.7.1, autoawq 0.2.9 and gptqmodel 2.2.0. Needs torch,
transformers 4.57.6, compressed-tensors 0.10.2, safetensors and numpy; not part of the build. The same bytes each time.
tests/golden/quantised/README.md says what is in a case; tools/quantised_packers.py makes the quantised tensors.
"""
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import save_file

import quantised_packers as packers

OUT = pathlib.Path(__file__).parent.parent / "tests/golden/quantised"
VOCAB = 64
MIN_ROUTER_GAP = 0.1  # so that the choice of experts is beyond doubt with 8-bit activations too
MIXTRAL = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
           "max_position_embeddings": 256, "sliding_window": None, "rope_theta": 1e4}
DBRX = {"vocab_size": VOCAB, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2}}
ONE_LAYER = {"num_hidden_layers": 1}
GAINS = (("embed", 2.5), ("wte", 8), ("lm_head", 2.5), ("q_proj", 1.5), ("k_proj", 1.5), ("gate", 3),
         ("router", 3), ("Wqkv", 1.2))
LINEAR = r"self_attn\.|experts\.|attn\.|ffn\.experts"  # what is quantised


# ---------------------------------------------------------------- configs
def gptq_config(how, **more):
    return {"quant_method": "gptq", "bits": how["bits"], "group_size": how["group"] or -1, "sym": how["sym"],
            "desc_act": how["order"], "damp_percent": 0.01, "true_sequential": True, "static_groups": False, **more}


def compressed_config(how):
    inputs = how.get("inputs")
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**how["args"]),
                                input_activations=QuantizationArgs(**inputs) if inputs else None)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=how["format"],
                                quantization_status="compressed", ignore=["lm_head", "re:.*gate$", "re:.*router.*"])
    return json.loads(json.dumps(config.to_dict(), default=str))


# ---------------------------------------------------------------- cases
def gptq_case(bits, group, sym, order, version, by, **more):
    how = {"bits": bits, "group": group, "sym": sym, "order": order, "version": version, "by": by, **more}
    name = {1: "gptq", 2: "gptq_v2"}[version]
    return {"packer": packers.gptq, "how": how, "dtype": torch.float16, "by": {"auto-gptq": "auto-gptq 0.7.1",
            "gptqmodel": "gptqmodel 2.2.0"}[by], "config": gptq_config(how, checkpoint_format=name)}


def compressed_case(form, args, **how):
    how = {"format": form, "args": args, **how}
    return {"packer": packers.compressed, "how": how, "dtype": torch.bfloat16, "by": "compressed-tensors 0.10.2",
            "config": compressed_config(how)}


def fp8_case(config, **how):
    return {"packer": packers.fp8, "how": how, "dtype": torch.bfloat16, "by": "torch's float8_e4m3fn",
            "config": {"quant_method": "fp8", **config}}


def int_args(bits, group=None, symmetric=True, **more):
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy, **more}


DYNAMIC_INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
DYNAMIC_FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
FP8_ARGS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
BLOCKS = {"rows": 128, "cols": 128, "scale": torch.float32, "scale_name": "weight_scale_inv"}
TENSOR = {"rows": 0, "cols": 0, "scale": torch.float32, "scale_name": "weight_scale", "shape": (), "static": True}
# AMD Quark's legacy export; its DBRX has the experts as Linears.
QUARK = {"activation_scheme": "static", "ignored_layers": ["lm_head", "*router.layer"], "kv_cache_scheme": "static"}
SPLIT_QKV = {"model_type": "dbrx_converted"}

CASES = {
    "gptq-int4-g32-old-file": {**gptq_case(4, 32, True, False, 1, "auto-gptq", bias=True), "beside": True},
    "gptq-int4-g32-act-order": gptq_case(4, 32, False, True, 1, "gptqmodel"),
    "gptq-v2-int4-g64-act-order-head": {**gptq_case(4, 64, False, True, 2, "gptqmodel"), "head": True},
    "gptq-int8-whole": {**gptq_case(8, 0, True, True, 1, "auto-gptq"), "model": ONE_LAYER},
    "gptq-int8-g32-zeros": {**gptq_case(8, 32, False, False, 1, "gptqmodel"), "model": ONE_LAYER},
    "awq-int4-g32": {"packer": packers.awq, "how": {"group": 32}, "dtype": torch.float16, "by": "autoawq 0.2.9",
                     "config": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True,
                                "version": "gemm", "modules_to_not_convert": ["gate"]}},
    "fp8-blocks": {**fp8_case({"activation_scheme": "dynamic", "weight_block_size": [128, 128]}, **BLOCKS),
                   "model": {**ONE_LAYER, "intermediate_size": 160, "num_local_experts": 3}},
    "fp8-tensor": {**fp8_case({"activation_scheme": "static"}, **TENSOR), "model": ONE_LAYER},
    "ct-fp8-channel": {**compressed_case("float-quantized", FP8_ARGS, inputs=DYNAMIC_FP8), "model": ONE_LAYER},
    "ct-int8-channel": {**compressed_case("int-quantized", int_args(8), inputs=DYNAMIC_INT8), "model": ONE_LAYER},
    "ct-int8-g32-zeros": {**compressed_case("int-quantized", int_args(8, 32, False)), "model": ONE_LAYER},
    "ct-packed-int4-g32": compressed_case("pack-quantized", int_args(4, 32)),
    "ct-packed-int4-g32-zeros": compressed_case("pack-quantized", int_args(4, 32, False)),
    "ct-packed-int4-g32-act-order": compressed_case("pack-quantized", int_args(4, 32, actorder="group")),
    "ct-packed-int8-zeros": {**compressed_case("pack-quantized", int_args(8, None, False)), "model": ONE_LAYER},
    "dbrx-gptq-int4-g32": {**gptq_case(4, 32, True, True, 1, "auto-gptq"), "kind": "dbrx", "fields": SPLIT_QKV},
    "dbrx-fp8-tensor": {**fp8_case(QUARK, **TENSOR), "kind": "dbrx", "model": {"n_layers": 1}, "kv_scales": True},
    "dbrx-ct-packed-int4-g32": {**compressed_case("pack-quantized", int_args(4, 32)), "kind": "dbrx"},
}


# ---------------------------------------------------------------- models
def random_model(kind, fields, seed):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **fields))
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        gain = next((g for n, g in GAINS if n in name), 1)
        value = rng.standard_normal(p.shape)
        value = 1 + 0.1 * value if p.dim() == 1 else value * gain * p.shape[1] ** -0.5
        p.data = torch.tensor(value, dtype=torch.float32)
    return model.eval(), rng


def split_dbrx(model, qkv):
    """transformers' tensors as GPTQModel's dbrx_converted (qkv: q, k, v too) and AMD Quark split them into Linears."""
    config = model.config
    sizes = [config.d_model] + 2 * [config.attn_config.kv_n_heads * config.d_model // config.n_heads]
    tensors = {}
    for name, p in model.state_dict().items():
        if ".experts.mlp." in name:
            prefix, last = name.rsplit(".", 1)
            for e, part in enumerate(p.chunk(config.ffn_config.moe_num_experts)):
                tensors[f"{prefix}.{e}.{last}.weight"] = part.T.contiguous() if last == "w2" else part
        elif "Wqkv" in name and qkv:
            for last, part in zip(("q_proj", "k_proj", "v_proj"), p.split(sizes)):
                tensors[name.replace("Wqkv", last)] = part
        else:
            tensors[name] = p
    return tensors


def join_dbrx(tensors, model):
    """The inverse of split_dbrx."""
    joined = {}
    for name in model.state_dict():
        if ".experts.mlp." in name:
            prefix, last = name.rsplit(".", 1)
            parts = [tensors[f"{prefix}.{e}.{last}.weight"] for e in range(model.config.ffn_config.moe_num_experts)]
            joined[name] = torch.cat([p.T if last == "w2" else p for p in parts])
        elif name not in tensors:
            joined[name] = torch.cat([tensors[name.replace("Wqkv", n)] for n in ("q_proj", "k_proj", "v_proj")])
        else:
            joined[name] = tensors[name]
    return joined


def run(model, prompt):
    """Logits, and the smallest gap between the last chosen and the next router score of each position."""
    gaps = []

    def gap(module, inputs, output):
        k = model.config.num_experts_per_tok if model.config.model_type == "mixtral" else (
            model.config.ffn_config.moe_top_k)
        best = output.float().sort(-1, descending=True)[0].reshape(-1, output.shape[-1])
        gaps.append(best[:, k - 1] - best[:, k])

    hooks = [m.register_forward_hook(gap) for n, m in model.named_modules()
             if n.endswith("block_sparse_moe.gate") or n.endswith("router.layer")]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0]
    for h in hooks:
        h.remove()
    return logits.contiguous(), torch.stack(gaps).min(0)[0].contiguous()


# ---------------------------------------------------------------- writing
def quantise(case, tensors, rng):
    """The tensors of the file, the values that they stand for, and the SHA-256 of those of each quantised module."""
    stored, values, digests = {}, {}, {}
    for name, p in tensors.items():
        module = name.removesuffix(".weight")
        quantised = p.dim() == 2 and (re.search(LINEAR, name) or ("head" in case and module == "lm_head"))
        if not quantised:
            stored[name] = p.to(case["dtype"]).contiguous()
            values[name] = stored[name].float()
            continue
        packed, value = case["packer"](p.numpy().astype(np.float32), case["how"], rng)
        value = np.ascontiguousarray(value, np.float32)
        stored |= {f"{module}.{k}": v.contiguous() for k, v in packed.items()}
        values[name] = torch.tensor(value)
        digests[module] = {"shape": list(value.shape), "sha256": hashlib.sha256(value.tobytes()).hexdigest()}
    return stored, values, digests


def write_config(folder, case, model):
    config = model.config.to_diff_dict() | {"architectures": [type(model).__name__]} | case.get("fields", {})
    if case.get("head"):
        case["config"]["lm_head"] = True
    if case.get("beside"):  # as AutoGPTQ wrote it before it went into config.json
        own = {k: v for k, v in case["config"].items() if k not in ("quant_method", "checkpoint_format")}
        (folder / "quantize_config.json").write_text(json.dumps(own, indent=1) + "\n")
    else:
        config["quantization_config"] = case["config"]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def build(name, case, attempt):
    """The model with the values that the file stands for, the file's tensors, the digests, and what the model says."""
    kind = case.get("kind", "mixtral")
    fields = {**(MIXTRAL if kind == "mixtral" else DBRX), **case.get("model", {})}
    model, rng = random_model(kind, fields, zlib.crc32(f"{name}/{attempt}".encode()))
    tensors = model.state_dict() if kind == "mixtral" else split_dbrx(model, "fields" in case)
    stored, values, digests = quantise(case, tensors, rng)
    if case.get("kv_scales"):
        for i in range(model.config.n_layers):
            for n in ("k_scale", "v_scale"):
                stored[f"transformer.blocks.{i}.norm_attn_norm.attn.{n}"] = torch.tensor(0.5)
    model.load_state_dict(values if kind == "mixtral" else join_dbrx(values, model))
    prompts = [[int(t) for t in rng.integers(0, VOCAB, n)] for n in (5, 9)]
    logits = {}
    for i, prompt in enumerate(prompts):
        logits[f"p{i}.logits"], logits[f"p{i}.router_gap"] = run(model, prompt)
    return model, stored, digests, prompts, logits


def make(name, case):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for attempt in range(300):
        model, stored, digests, prompts, logits = build(name, case, attempt)
        gap = min(float(t.min()) for k, t in logits.items() if "gap" in k)
        if gap > MIN_ROUTER_GAP:
            break
    assert gap > MIN_ROUTER_GAP, f"{name}: no seed without a near tie"
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(logits, folder / "logits.safetensors")
    write_config(folder, case, model)
    doc = {"packed_by": case["by"], "transformers": transformers.__version__, "prompts": prompts, "modules": digests}
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), json.dumps(doc, indent=0))
    (folder / "case.json").write_text(re.sub(r"\{\n(\"shape\"[^\n]*)\n([^\n]*)\n\}", r"{\1 \2}", text) + "\n")
    sizes = [f.stat().st_size / 1e3 for f in (folder / "model.safetensors", *folder.iterdir())]
    print(f"{name}: attempt {attempt}, {len(digests)} modules, model {sizes[0]:.0f} KB, all {sum(sizes[1:]):.0f} KB, "
          f"router gap {gap:.3f}, logits up to {max(float(t.abs().max()) for t in logits.values()):.1f}", flush=True)


def main():
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    packers.SOURCES = packers.Sources(pathlib.Path(sys.argv[1]))
    for name in sys.argv[2:] or CASES:
        make(name, CASES[name])


if __name__ == "__main__":
    main()
