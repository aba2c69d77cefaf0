"""What tools/make_golden.py makes: models, adapters (fields of PEFT's LoraConfig) and merges, case by case."""

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR_OF_V4 = [*ATTENTION, "gate", "w1", "w2", "w3"]
DBRX_LINEAR = ["Wqkv", "out_proj", "layer"]
# The first prompt of a case leaves no doubt about experts and tokens, not even in bf16.
PROMPTS = {"p0": [94, 88, 204], "p1": [33, 140, 7, 300, 250, 88, 204]}
DBRX_PROMPTS = {"p0": [66, 88, 204], "p1": [88, 204, 278, 7, 33, 250, 140]}
BASE_MIXTRAL = {"model": "../mixtral-base/model", "prompts": PROMPTS}
BASE_DBRX = {"model": "../dbrx-base/model", "prompts": DBRX_PROMPTS}


def lora(r, target_modules, **fields):
    """Fields of LoraConfig. Besides: `copies`, whether base weights of tables are saved; `trained`, the dtype of the
    model that it is made on; `half`, whether A and B have that dtype, not float32."""
    return {"r": r, "lora_alpha": 2 * r, "target_modules": target_modules, **fields}


def pairs(adapters, hows, **fields):
    return [{"adapters": adapters, **how, **fields} for how in hows]


LINEAR, NEGATIVE = {"how": "linear", "weights": [0.7, 0.3]}, {"how": "linear", "weights": [1.0, -0.6]}
CAT = {"how": "cat", "weights": [0.8, -0.5]}
TIES = {"how": "ties", "weights": [1.0, 0.8], "density": 0.6, "sign": "total"}
FREQUENCY = {"how": "ties", "weights": [1.2, -0.7], "density": 0.4, "sign": "frequency"}
PRUNE = {"how": "magnitude_prune", "weights": [0.9, -0.4], "density": 0.3}
ALL_HOWS = [LINEAR, NEGATIVE, CAT, TIES, FREQUENCY, PRUNE]

# Models of their own: sizes small enough to be committed.
TIED = {"kind": "mixtral", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2}
P2 = {"kind": "dbrx", "vocab_size": 320, "d_model": 48, "n_heads": 3, "n_layers": 2, "max_seq_len": 256,
      "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
      "attn_config": {"clip_qkv": None, "kv_n_heads": 3, "rope_theta": 500000.0},
      "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 5, "moe_top_k": 3, "moe_normalize_expert_weights": 2.0,
                     "ffn_act_fn": {"name": "silu"}}}

CASES = {
    "mixtral-dora": {**BASE_MIXTRAL, "adapters": {
        "dora-all-rslora-r2": lora(2, "all-linear", use_dora=True, use_rslora=True, half=True),
        "dora-embed-r3": lora(3, ["embed_tokens"], use_dora=True, copies=False),
        "dora-lm-head-r4": lora(4, ["lm_head"], use_dora=True, copies=False),
        "dora-embed-attn-lm-head-r2": lora(2, ["embed_tokens", "lm_head", *ATTENTION], use_dora=True, use_rslora=True),
        "dora-expert-subset-r4": lora(4, r"model\.layers\.1\..*experts\.[0-3]\.w[12]", use_dora=True,
                                      rank_pattern={"w2": 3}, alpha_pattern={r"experts\.1\.w1": 2}),
    }},
    "mixtral-saved": {**BASE_MIXTRAL, "adapters": {
        "save-norms": lora(4, ["q_proj", "v_proj"], modules_to_save=["norm"]),
        "save-norms-of-layers": lora(2, ["o_proj"], modules_to_save=[
            "layers.0.input_layernorm", "layers.1.post_attention_layernorm"]),
        "save-final-norm": lora(2, ["w3"], modules_to_save=["model.norm"], layers_to_transform=[1]),
        "save-router": lora(4, ["k_proj", "v_proj"], modules_to_save=["gate"]),
        "save-embed-lm-head": lora(2, ["w1", "gate"], modules_to_save=["embed_tokens", "lm_head"]),
        "save-o-proj": lora(4, ["q_proj", "v_proj"], modules_to_save=["o_proj"]),
        "save-an-expert-dora": lora(2, ["q_proj", "o_proj"], use_dora=True, modules_to_save=["experts.3.w2"]),
    }},
    "mixtral-embeddings": {**BASE_MIXTRAL, "adapters": {
        "embed-only-r4": lora(4, ["embed_tokens"]),
        "embed-experts-rslora-r3": lora(3, r".*(embed_tokens|layers\.0\..*\.w2)", use_rslora=True),
        "tokens-list": lora(4, ["q_proj", "v_proj"], trainable_token_indices=[88, 17, 300, 5]),
        "tokens-embed-and-head": lora(2, ["o_proj"], trainable_token_indices={
            "embed_tokens": [204, 33], "lm_head": [7, 250, 118]}),
        "tokens-head-only": lora(2, ["k_proj"], trainable_token_indices={"lm_head": [19, 204, 60, 61, 62]}),
        "tokens-and-lm-head-lora": lora(4, ["lm_head", "v_proj"], trainable_token_indices=[94, 140]),
        "tokens-dora": lora(2, ATTENTION, use_dora=True, trainable_token_indices={"model.embed_tokens": [140, 62]}),
    }},
    "mixtral-targets": {**BASE_MIXTRAL, "adapters": {
        "layers-excluded-r1": lora(1, [*ATTENTION, "gate"], layers_to_transform=[1], exclude_modules=["k_proj"]),
        "regex-r24": lora(24, r".*\.layers\.[01]\.self_attn\.(q|o)_proj", half=True),
        "regex-excluded-r3": lora(3, r".*experts\.\d+\.w[13]", exclude_modules=r".*experts\.[2-7].*", use_rslora=True,
                                  trained="float16", half=True),
        "ranks-1-3-24-40-64": lora(3, [*ATTENTION, "gate"], rank_pattern={
            r"layers\.0\.self_attn\.q_proj": 1, "k_proj": 24, r"layers\.1.*\.v_proj": 40, "o_proj": 64},
            alpha_pattern={"q_proj": 1, "o_proj": 16, r"layers\.0.*\.k_proj": 48}, half=True),
        "experts-ranks": lora(1, ["w1", "w2"], rank_pattern={r"experts\.0\.w1": 5, r"experts\.[12]\.w2": 3,
                                                             r"0.*experts\.7\.w2": 7}, use_rslora=True),
    }},
    "mixtral-alora": {"model": "../mixtral-base/model", "prompts": {
        "last": [31, 219, 33, 17, 88], "middle": [31, 241, 33, 17, 88, 313, 209],
        "absent": [256, 33, 18, 33, 181, 278], "twice": [152, 33, 17, 88, 54, 33, 33, 17, 88, 70]},
        "adapters": {
            "alora-attn-r4": lora(4, ATTENTION, alora_invocation_tokens=[33, 17, 88]),
            "alora-qv-lm-head-rslora-r3": lora(3, ["q_proj", "v_proj", "lm_head"], use_rslora=True, copies=False,
                                               alora_invocation_tokens=[33, 17, 88])}},
    "mixtral-tied": {"own_model": TIED, "tokenizer": "mixtral-base", "prompts": PROMPTS, "adapters": {
        "embed-r4": lora(4, ["embed_tokens"]),
        "lm-head-r4": lora(4, ["lm_head"]),
        "embed-lm-head-dora-r2": lora(2, ["embed_tokens", "lm_head"], use_dora=True),
        "tokens-list": lora(2, ["q_proj", "v_proj"], trainable_token_indices=[88, 17, 300, 5]),
        "tokens-dict": lora(2, ["q_proj"], trainable_token_indices={"embed_tokens": [204, 33, 7]}),
        "tokens-dict-two": lora(2, ["q_proj"], trainable_token_indices={"embed_tokens": [204, 33], "lm_head": [7, 118]}),
        "tokens-head-only": lora(2, ["q_proj"], trainable_token_indices={"lm_head": [19, 204, 60]}),
        "save-embed": lora(2, ["v_proj"], modules_to_save=["embed_tokens"]),
        "save-lm-head": lora(2, ["v_proj"], modules_to_save=["lm_head"]),
        "embed-ensure-tied-r2": lora(2, ["embed_tokens"], ensure_weight_tying=True, trained="float32", copies=False),
        "save-embed-ensure-tied": lora(2, ["v_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    }},
    "dbrx-saved": {**BASE_DBRX, "adapters": {
        "save-norms": lora(4, ["Wqkv"], modules_to_save=["norm_1", "norm_2", "norm_f"]),
        "save-layer-quirk": lora(4, ["Wqkv"], modules_to_save=["layer"]),
        "save-wte": lora(2, ["out_proj"], modules_to_save=["wte"]),
        "save-lm-head": lora(2, ["layer"], modules_to_save=["lm_head"]),
        "wte-r4": lora(4, ["wte"]),
        "wte-dora-r2": lora(2, ["wte", "Wqkv"], use_dora=True),
        "dora-out-proj-router-r3": lora(3, ["out_proj", "layer"], use_dora=True, use_rslora=True),
        "tokens-list": lora(2, ["Wqkv"], trainable_token_indices=[88, 17, 300]),
        "tokens-wte-and-head": lora(2, ["layer"], trainable_token_indices={"wte": [204, 33], "lm_head": [7, 250]}),
    }},
    "dbrx-norm2-noclip": {"own_model": P2, "tokenizer": "dbrx-base", "prompts": DBRX_PROMPTS, "adapters": {
        "attn-router-r4": lora(4, DBRX_LINEAR),
        "experts-r3": lora(3, [], target_parameters=["mlp.w1", "mlp.v1", "mlp.w2"]),
        "save-layer-quirk-both": lora(2, ["Wqkv", "out_proj"], use_rslora=True, modules_to_save=["layer"]),
    }},
    "mixtral-merges": {"model": "../mixtral-base/model", "prompts": {"p0": PROMPTS["p0"]}, "adapters": {
        "attn-a": lora(3, ATTENTION), "attn-b": lora(3, ATTENTION, lora_alpha=12), "qv-r2": lora(2, ["q_proj", "v_proj"]),
        "experts-a": lora(1, r".*layers\.1\..*experts\.\d\.w[123]"),
        "experts-b": lora(1, r".*layers\.1\..*experts\.[0-4]\.w[123]", lora_alpha=1),
        "rslora-a": lora(1, LINEAR_OF_V4, use_rslora=True, layers_to_transform=[1]),
        "rslora-b": lora(1, LINEAR_OF_V4, use_rslora=True, layers_to_transform=[1], lora_alpha=1),
        "embed-a": lora(2, ["embed_tokens"], copies=False), "embed-b": lora(2, ["embed_tokens"], lora_alpha=2, copies=False),
        "patterns-a": lora(2, ATTENTION, rank_pattern={"k_proj": 4}, alpha_pattern={"v_proj": 6}),
        "patterns-b": lora(4, ATTENTION, rank_pattern={"v_proj": 2, r"[oq]_proj": 2}, alpha_pattern={r"0.*o_proj": 1}),
        "vo-r3": lora(3, ["v_proj", "o_proj"], layers_to_transform=[1]),
    }, "merges": [
        *pairs(["attn-a", "attn-b"], ALL_HOWS, store="layers.0.self_attn.[kv]_proj"),
        {"adapters": ["attn-a", "attn-b", "vo-r3"], "how": "ties", "weights": [0.6, 0.9, -0.8], "density": 0.5,
         "sign": "total", "store": "layers.1.self_attn.[qv]_proj"},
        {"adapters": ["attn-a", "attn-b", "qv-r2"], "how": "cat", "weights": [0.5, -0.5, 1.5],
         "store": "layers.1.self_attn.[qo]_proj"},
        *pairs(["experts-a", "experts-b"], [LINEAR, CAT, TIES, PRUNE], store=r"experts\.[47]\.w2"),
        *pairs(["rslora-a", "rslora-b"], [NEGATIVE, CAT, FREQUENCY], store="gate"),
        *pairs(["embed-a", "embed-b"], [NEGATIVE, CAT, TIES, PRUNE], store=""),
        *pairs(["patterns-a", "patterns-b"], [LINEAR, CAT, TIES], store="layers.0.self_attn"),
        *pairs(["attn-a", "vo-r3"], [NEGATIVE, CAT, TIES, PRUNE], store="layers.1.self_attn.[qv]_proj"),
    ]},
    "dbrx-merges": {"model": "../dbrx-base/model", "prompts": {"p0": DBRX_PROMPTS["p0"]}, "adapters": {
        "attn-a": lora(2, ["Wqkv", "out_proj"]), "attn-b": lora(2, ["Wqkv", "layer"], lora_alpha=1),
    }, "merges": pairs(["attn-a", "attn-b"], [NEGATIVE, CAT, FREQUENCY, PRUNE], store=r"blocks\.0\..*(out_proj|layer)")},
}
