"""A numpy program that reads a model and its adapters from their files and computes what they mean, in float64.

tools/make_golden.py compares every golden number with it. It shares no code with torch, transformers, PEFT or
safetensors. `Effective` is a model under one adapter; `forward` gives its logits.
"""
import json
import math
import pathlib
import re
import struct

import numpy as np

REGISTERED = {"ffn.experts.mlp": ["w1", "v1", "w2"]}  # parameters of a module, in the order PEFT wraps them
DTYPES = {"F32": "<f4", "F16": "<f2"}


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, t in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        raw = data[start + t["data_offsets"][0]:start + t["data_offsets"][1]]
        if t["dtype"] == "BF16":
            a = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            a = np.frombuffer(raw, DTYPES[t["dtype"]])
        tensors[name] = a.reshape(t["shape"]).astype(np.float64)
    return tensors


def read_model(folder):
    config = json.loads((folder / "config.json").read_text())
    weights = read_safetensors(folder / "model.safetensors")
    if "lm_head.weight" not in weights:  # tied: from here on two matrices, an adapter changes one of them
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return config, weights


# ---------------------------------------------------------------- adapters
def read_adapter(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, read_safetensors(folder / "adapter_model.safetensors")


def pattern_value(patterns, path, default):
    return next((v for p, v in (patterns or {}).items() if re.match(rf"(.*\.)?({p})$", path)), default)


def scale_of(adapter, path):
    rank = pattern_value(adapter.get("rank_pattern"), path, adapter["r"])
    alpha = pattern_value(adapter.get("alpha_pattern"), path, adapter["lora_alpha"])
    return alpha / (math.sqrt(rank) if adapter.get("use_rslora") else rank)


def fold(model, adapter, tensors):
    """The weights under an adapter."""
    config, base = model
    out, groups = dict(base), {}
    whole = {}
    for key, t in tensors.items():
        key = key.removeprefix("base_model.model.")
        part = re.match(r"(.*)\.(lora_A|lora_B)\.weight$|(.*)\.(lora_embedding_[AB]|lora_magnitude_vector)$", key)
        if part:
            groups.setdefault(part[1] or part[3], {})[part[2] or part[4]] = t
        elif not key.endswith(".token_adapter.trainable_tokens_delta"):
            whole[key.replace(".base_layer.", ".")] = t
    assert whole.keys() <= base.keys(), whole.keys() - base.keys()
    out.update(whole)
    for module, g in groups.items():
        fold_pair(out, adapter, module, g)
    fold_tokens(config, out, adapter, tensors)
    return out


def fold_pair(out, adapter, module, g):
    depth, path = module.count(".base_layer"), module.replace(".base_layer", "")
    names = next((v for k, v in REGISTERED.items() if path.endswith("." + k)), [])
    aimed = [n for n in names if any(f"{path}.{n}" == t or f"{path}.{n}".endswith("." + t)
                                     for t in adapter.get("target_parameters") or [])]
    if aimed:
        parameter = f"{path}.{aimed[len(aimed) - 1 - depth]}"
        out[parameter] = out[parameter] + g["lora_B"] @ g["lora_A"] * scale_of(adapter, parameter)
        return
    embedding = "lora_embedding_A" in g
    a, b = (g["lora_embedding_A"], g["lora_embedding_B"]) if embedding else (g["lora_A"], g["lora_B"])
    delta = b @ a * scale_of(adapter, path)
    w = out[path + ".weight"] + (delta.T if embedding else delta)
    if "lora_magnitude_vector" in g:  # of an embedding: one per column, over the vocabulary
        axis = 0 if embedding else 1
        w = w * np.expand_dims(g["lora_magnitude_vector"] / np.linalg.norm(w, axis=axis), axis)
    out[path + ".weight"] = w


def fold_tokens(config, out, adapter, tensors):
    """trainable_token_indices: the file's rows replace those of the table, after LoRA."""
    wanted = adapter.get("trainable_token_indices") or {}
    embedding = "transformer.wte" if config["model_type"] == "dbrx" else "model.embed_tokens"
    if not isinstance(wanted, dict):
        wanted = {embedding: wanted}
    wanted = {next(k for k in (embedding, "lm_head") if k.endswith(name)): rows for name, rows in wanted.items()}
    if config.get("tie_word_embeddings") and embedding in wanted:  # the head follows unless it has rows of its own
        wanted.setdefault("lm_head", wanted[embedding])
    for module, rows in wanted.items():
        key = f"base_model.model.{module}.token_adapter.trainable_tokens_delta"
        if key not in tensors:
            key = f"base_model.model.{embedding}.token_adapter.trainable_tokens_delta"
        table = out[module + ".weight"].copy()
        table[rows] = tensors[key]
        out[module + ".weight"] = table


# ---------------------------------------------------------------- merging
def merge(adapters, weights, how, density=None, sign="total"):
    """[(config, tensors)] -> (config, tensors), as PEFT's add_weighted_adapter."""
    ranks = [max(c["r"], *(c.get("rank_pattern") or {"": 0}).values()) for c, _ in adapters]
    rank = sum(ranks) if how == "cat" else ranks[0]
    out = {}
    for key_a in sorted({k for _, t in adapters for k in t if "lora_A" in k or k.endswith("lora_embedding_A")}):
        key_b = key_a.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")
        path = re.sub(r"^base_model\.model\.|\.lora_.*$", "", key_a)
        found = [(t[key_a], t[key_b], w * scale_of(c, path)) for (c, t), w in zip(adapters, weights) if key_a in t]
        a, b, s = zip(*found)
        if how == "cat":
            out[key_a] = pad(np.concatenate([x * y for x, y in zip(a, s)]), (rank, a[0].shape[1]))
            out[key_b] = pad(np.concatenate(b, axis=1), (b[0].shape[0], rank))
        else:
            root = [math.sqrt(abs(x)) for x in s]
            out[key_a] = combine(a, [math.copysign(r, x) for r, x in zip(root, s)], how, density, sign)
            out[key_b] = combine(b, root, how, density, sign)
    config = dict(adapters[0][0], r=rank, lora_alpha=rank, rank_pattern={}, alpha_pattern={})
    return config, out


def pad(x, shape):
    out = np.zeros(shape)
    out[:x.shape[0], :x.shape[1]] = x
    return out


def combine(tensors, weights, how, density, sign):
    if how in ("ties", "magnitude_prune") and density < 1:
        tensors = [prune(t, density) for t in tensors]
    t, w = np.stack(tensors), np.reshape(weights, (-1, 1, 1))
    if how != "ties":
        return (t * w).sum(0)
    elected = np.where((t if sign == "total" else np.sign(t)).sum(0) >= 0, 1, -1)
    kept = np.sign(t) == elected
    return (t * w * kept).sum(0) / np.maximum(kept.sum(0), 1)


def prune(t, density):
    keep = np.argsort(-np.abs(t).ravel(), kind="stable")[:int(density * t.size)]
    mask = np.zeros(t.size)
    mask[keep] = 1
    return t * mask.reshape(t.shape)


# ---------------------------------------------------------------- forward
class Effective:
    """A model whose rows before `first` use the base weights and the others the adapter's (aLoRA)."""

    def __init__(self, model, weights=None, first=0):
        self.config, self.base = model
        self.adapted = self.base if weights is None else weights
        self.first = first

    def linear(self, name, x):
        w = [table[name + ".weight"] for table in (self.base, self.adapted)]
        return np.concatenate([x[:self.first] @ w[0].T, x[self.first:] @ w[1].T])

    def at(self, name, row):
        return (self.base if row < self.first else self.adapted)[name]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def rms_norm(x, g, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * g


def layer_norm(x, g):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g


def attention(q, k, v, theta):
    """q [T, heads, d], k and v [T, kv heads, d] -> [T, heads d]"""
    n, heads, d = q.shape
    angle = np.tile(np.arange(n)[:, None] * theta ** -(np.arange(0, d, 2) / d), 2)[:, None]

    def rope(x):
        half = np.concatenate([-x[..., d // 2:], x[..., :d // 2]], -1)
        return x * np.cos(angle) + half * np.sin(angle)

    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (rope(k), v))
    s = np.einsum("qhd,khd->hqk", rope(q), k) / math.sqrt(d)
    s = np.where(np.tri(n, dtype=bool), s, -np.inf)
    return np.einsum("hqk,khd->qhd", softmax(s), v).reshape(n, heads * d)


def route(scores, k, norm):
    """-> experts [T, k], weights [T, k], gap between the k-th and the next score [T]"""
    order = np.argsort(-scores, axis=-1, kind="stable")
    weights = np.take_along_axis(softmax(scores), order[:, :k], -1)
    if norm is not None:
        weights = weights / (weights ** norm).sum(-1, keepdims=True) ** (1 / norm)
    ranked = np.take_along_axis(scores, order, -1)
    gap = ranked[:, k - 1] - ranked[:, k] if k < scores.shape[1] else np.full(len(scores), np.inf)
    return order[:, :k], weights, gap


def moe(h, routed, expert):
    out = np.zeros_like(h)
    for t, (experts, weights) in enumerate(zip(*routed)):
        for e, weight in zip(experts, weights):
            out[t] += weight * expert(t, e, h[t])
    return out


def forward(m, ids):
    """-> logits [T, V], smallest router gap of each position [T]"""
    return (forward_dbrx if m.config["model_type"] == "dbrx" else forward_mixtral)(m, np.asarray(ids))


def embed(m, name, ids):
    return np.stack([m.at(name, t)[i] for t, i in enumerate(ids)])


def forward_mixtral(m, ids):
    c = m.config
    d, eps = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"], c["rms_norm_eps"]
    x, gap = embed(m, "model.embed_tokens.weight", ids), np.full(len(ids), np.inf)
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = rms_norm(x, m.adapted[p + "input_layernorm.weight"], eps)
        q, k, v = (m.linear(f"{p}self_attn.{n}_proj", h).reshape(len(ids), -1, d) for n in "qkv")
        x = x + m.linear(p + "self_attn.o_proj", attention(q, k, v, c["rope_theta"]))
        h = rms_norm(x, m.adapted[p + "post_attention_layernorm.weight"], eps)
        p += "block_sparse_moe."
        *routed, g = route(m.linear(p + "gate", h), c["num_experts_per_tok"], 1)

        def expert(t, e, row):
            w1, w2, w3 = (m.at(f"{p}experts.{e}.w{i}.weight", t) for i in (1, 2, 3))
            return w2 @ (silu(w1 @ row) * (w3 @ row))

        x, gap = x + moe(h, routed, expert), np.minimum(gap, g)
    return m.linear("lm_head", rms_norm(x, m.adapted["model.norm.weight"], eps)), gap


def forward_dbrx(m, ids):
    c, a, f = m.config, m.config["attn_config"], m.config["ffn_config"]
    size, d = c["d_model"], c["d_model"] // c["n_heads"]
    x, gap = embed(m, "transformer.wte.weight", ids), np.full(len(ids), np.inf)
    for block in range(c["n_layers"]):
        p = f"transformer.blocks.{block}."
        h = layer_norm(x, m.adapted[p + "norm_attn_norm.norm_1.weight"])
        qkv = m.linear(p + "norm_attn_norm.attn.Wqkv", h)
        if a["clip_qkv"] is not None:  # after LoRA
            qkv = np.clip(qkv, -a["clip_qkv"], a["clip_qkv"])
        q, k, v = (t.reshape(len(ids), -1, d) for t in np.split(qkv, [size, size + a["kv_n_heads"] * d], axis=1))
        x = x + m.linear(p + "norm_attn_norm.attn.out_proj", attention(q, k, v, a["rope_theta"]))
        h = layer_norm(x, m.adapted[p + "norm_attn_norm.norm_2.weight"])
        *routed, g = route(m.linear(p + "ffn.router.layer", h), f["moe_top_k"], f["moe_normalize_expert_weights"])

        def expert(t, e, row):
            n = f["ffn_hidden_size"]
            w1, v1, w2 = (m.at(f"{p}ffn.experts.mlp.{w}", t)[e * n:(e + 1) * n] for w in ("w1", "v1", "w2"))
            return (silu(w1 @ row) * (v1 @ row)) @ w2

        x, gap = x + moe(h, routed, expert), np.minimum(gap, g)
    return m.linear("lm_head", layer_norm(x, m.adapted["transformer.norm_f.weight"])), gap
