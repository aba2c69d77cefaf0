#!/usr/bin/env python3
"""Writes golden cases of tests/golden: adapters made, saved, loaded and run by PEFT, one folder per case.

    PYTHONHASHSEED=0 tools/make_golden.py [case ...]

Without arguments it writes all that tools/golden_cases.py lists, each time the same bytes (the seed orders PEFT's sets).

Needs torch, transformers 4.57.6, peft 0.21.2, safetensors and numpy; not part of the build. Every number is
compared with tools/golden_reference.py, which reads the written files with numpy alone. tests/golden/README.md
says what is in a case.
"""
import json
import os
import pathlib
import re
import shutil
import sys
import warnings
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors.torch import save_file

import golden_reference as reference
from golden_cases import CASES

GOLDEN = pathlib.Path(__file__).parent.parent / "tests/golden"
NEW_TOKENS = 24
MIN_ROUTER_GAP = 1e-3  # of every prompt, so that the choice of experts is beyond doubt
CLEAR = {"min_router_gap": 0.12, "margin": 0.25}  # of the first prompt, so that it is in bf16 too
MIN_EFFECT = 0.05
MAX_ERROR = 3e-5


# ---------------------------------------------------------------- models
def own_model(folder, fields, tokenizer):
    """A random model whose outputs spread like those of a trained one."""
    fields = dict(fields)
    kind = fields.pop("kind")
    config = transformers.AutoConfig.for_model(kind, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    rng = np.random.default_rng(7)
    for name, p in model.named_parameters():
        gain = next((g for n, g in (("embed", 2.5), ("wte", 8), ("lm_head", 2.5), ("q_proj", 1.5), ("k_proj", 1.5),
                                    ("gate", 1.5), ("router", 1.5), ("Wqkv", 1.2)) if n in name), 1)
        value = rng.standard_normal(p.shape)
        value = 1 + 0.1 * value if p.dim() == 1 else value * gain * p.shape[1] ** -0.5
        p.data = torch.tensor(value, dtype=torch.bfloat16)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(GOLDEN / tokenizer / "model" / name, folder)


def load_base(folder, dtype, name):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.name_or_path = f"tiny/{name}"
    return model.eval()


# ---------------------------------------------------------------- adapters
def train(model, rng, strength=0.5):
    """Stands in for training: moves all that the adapter trains, each part by about `strength` of what it changes."""
    def normal(p, std):
        p.data.copy_(torch.tensor(rng.standard_normal(p.shape) * float(std)))  # in place: some are shared

    for module in model.modules():
        if isinstance(module, LoraLayer):
            w = module.get_param() if isinstance(module, ParamWrapper) else module.get_base_layer().weight
            r, scale = module.r["default"], module.scaling["default"]
            b = strength * w.float().std() / (scale * r ** 0.5)
            if "default" in module.lora_embedding_A:
                normal(module.lora_embedding_A["default"], 1)
                normal(module.lora_embedding_B["default"], b)
            else:
                size = module.lora_A["default"].weight.shape[1]
                normal(module.lora_A["default"].weight, size ** -0.5)
                normal(module.lora_B["default"].weight, b * size ** 0.5)
            if module.lora_magnitude_vector:
                m = module.lora_magnitude_vector["default"].weight
                m.data *= torch.tensor(np.exp(0.25 * rng.standard_normal(m.shape)), dtype=m.dtype)
        elif isinstance(module, ModulesToSaveWrapper):
            p = module.modules_to_save["default"].weight
            noise = rng.standard_normal(p.shape) * (0.3 if p.dim() == 1 else strength * float(p.float().std()))
            p.data += torch.tensor(noise, dtype=p.dtype)
        elif isinstance(module, TrainableTokensWrapper) and module.token_adapter.tied_adapter is None:
            normal(module.token_adapter.trainable_tokens_delta["default"], module.weight.float().std())


def write_adapter(folder, model_folder, fields, seed):
    fields = dict(fields)
    copies = fields.pop("copies", "auto")  # of the base weights of embed_tokens and lm_head
    trained, half = getattr(torch, fields.pop("trained", "bfloat16")), fields.pop("half", False)
    model = load_base(model_folder, trained, model_folder.parent.name)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields), autocast_adapter_dtype=not half)
    train(model, np.random.default_rng(seed))
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=copies)
    (folder / "README.md").unlink()


# ---------------------------------------------------------------- runs
def invocation(config, ids):
    """The position of the last invocation of an aLoRA adapter, None without one; 0 for other adapters."""
    wanted = config.get("alora_invocation_tokens")
    if wanted is None:
        return 0
    return max((i for i in range(len(ids)) if ids[i:i + len(wanted)] == wanted), default=None)


class Runner:
    """Runs prompts and collects the tensors of a golden.safetensors."""

    def __init__(self, case, prompts, base_model):
        self.case, self.prompts, self.model = case, prompts, base_model
        self.tensors, self.base_logits = {}, {}

    @torch.no_grad()
    def run(self, key, prompt, torch_model, effective):
        """`effective(ids)` -> reference.Effective. The fields of a run."""
        ids = self.prompts[prompt]
        logits = torch_model(torch.tensor([ids])).logits[0].float()
        tokens, steps = self.greedy(torch_model, ids, logits)
        expected, gap = reference.forward(effective(ids), ids + tokens[:-1])
        found = torch.cat([logits, torch.stack(steps[1:])]).numpy()
        error = float(np.abs(found - expected).max())
        assert error < MAX_ERROR, (self.case, key, prompt, error)
        self.tensors[f"{key}.{prompt}.logits"] = logits
        self.tensors[f"{key}.{prompt}.router_gap"] = torch.tensor(gap[:len(ids)], dtype=torch.float32)
        tops = torch.stack(steps).topk(2)
        margins = (tops.values[:, 0] - tops.values[:, 1]).tolist()
        logprobs = torch.stack(steps).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        rounded = lambda values: [round(float(v), 6) for v in values]
        out = {"key": key, "prompt": prompt, "logits": f"{key}.{prompt}.logits", "router_gap": f"{key}.{prompt}.router_gap",
               "generated": {"tokens": tokens, "logprobs": rounded(logprobs), "runner_up": tops.indices[:, 1].tolist(),
                             "margins": rounded(margins),
                             "router_gaps": rounded(np.minimum.accumulate(gap)[len(ids) - 1:])},
               "min_margin": round(min(margins), 6), "min_router_gap": round(float(gap[:len(ids)].min()), 6),
               "numpy_max_diff": float(f"{error:.3e}"), "logits_std": round(float(logits.std()), 4)}
        base = self.base_logits.setdefault(prompt, logits)
        if key != "base":
            out["max_diff_from_base"] = round(float((logits - base).abs().max()), 4)
        return out

    def greedy(self, model, ids, logits):
        """24 tokens with the KV cache, and the logits that each was chosen by."""
        cache, tokens, steps = transformers.DynamicCache(), [], [logits[-1]]
        given, config = {}, model.active_peft_config.to_dict() if isinstance(model, PeftModel) else {}
        if config.get("alora_invocation_tokens"):  # found in the prompt, kept for all that is generated
            start = invocation(config, ids)
            given = {"alora_offsets": [None if start is None else len(ids) - start]}
        model(torch.tensor([ids]), past_key_values=cache, use_cache=True, **given)
        while True:
            tokens.append(int(steps[-1].argmax()))
            if len(tokens) == NEW_TOKENS:
                break
            out = model(torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True, **given)
            steps.append(out.logits[0, -1].float())
        if given:  # PEFT's own generate agrees
            text = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False,
                                  min_new_tokens=NEW_TOKENS, pad_token_id=0)[0].tolist()
            assert 2 in tokens or text == ids + tokens, (ids, text, tokens)
        return tokens, steps

    def adapter(self, name, folder, model_folder):
        """Runs of one adapter, or None at a near tie of experts or tokens."""
        config, tensors = reference.read_adapter(folder)
        model = PeftModel.from_pretrained(load_base(model_folder, torch.float32, self.case), folder).eval()
        via = "forward"
        if self.model[0]["model_type"] == "dbrx" and config.get("target_parameters"):
            model, via = model.merge_and_unload(), "merge_and_unload"  # PEFT cannot run these unmerged
        weights = reference.fold(self.model, config, tensors)

        def effective(ids):
            first = invocation(config, ids)
            return reference.Effective(self.model, None if first is None else weights, first or 0)

        runs = [{**self.run(name, prompt, model, effective), "adapter": name, "via": via,
                 "transformers": transformers.__version__} for prompt in self.prompts]
        unused = [r["prompt"] for r in runs
                  if r["max_diff_from_base"] < MIN_EFFECT and invocation(config, self.prompts[r["prompt"]]) is not None]
        assert not unused, (name, unused)
        first = {**runs[0], "margin": runs[0]["generated"]["margins"][0]}
        clear = all(first[k] >= v for k, v in CLEAR.items())
        return runs if clear and min(r["min_router_gap"] for r in runs) >= MIN_ROUTER_GAP else None

    def merge(self, spec, folder, model_folder):
        """The run of one merge; the tensors that `store` names are kept."""
        names, how, weights = spec["adapters"], spec["how"], spec["weights"]
        more = {"density": spec["density"]} if "density" in spec else {}
        if "sign" in spec:
            more["majority_sign_method"] = spec["sign"]
        title = "-".join([how, *more.get("majority_sign_method", "").split(), *(f"{w:g}" for w in weights)])
        title += "-" + "+".join(names)
        model = PeftModel.from_pretrained(load_base(model_folder, torch.float32, self.case), folder / names[0],
                                          adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(folder / name, adapter_name=name)
        model.add_weighted_adapter(names, weights, "merged", combination_type=how, **more)
        model.set_adapter("merged")
        model.eval()
        config, merged = reference.merge([reference.read_adapter(folder / n) for n in names], weights, how,
                                         spec.get("density"), spec.get("sign"))
        state = get_peft_model_state_dict(model, adapter_name="merged", save_embedding_layers=False)
        assert state.keys() == merged.keys(), state.keys() ^ merged.keys()
        for key, t in state.items():
            error = np.abs(t.numpy() - merged[key]).max() if t.shape == merged[key].shape else np.inf
            assert error < 1e-6, (title, key, t.shape, merged[key].shape, error)
            if re.search(spec["store"], key):
                self.tensors[f"merge:{title}.{key}"] = t.contiguous()
        weights_under = reference.fold(self.model, config, merged)
        run = self.run(f"merge:{title}", "p0", model, lambda ids: reference.Effective(self.model, weights_under))
        assert run["max_diff_from_base"] > MIN_EFFECT and run["min_router_gap"] > MIN_ROUTER_GAP / 5, run
        theirs = model.peft_config["merged"]
        return {**run, "name": title, "adapters": names, "weights": weights, "combination_type": how, **more,
                "merged_config": {"r": theirs.r, "lora_alpha": theirs.lora_alpha, "use_rslora": theirs.use_rslora}}


# ---------------------------------------------------------------- cases
def write_json(path, doc, lists):
    """One run a line, so that a difference can be read."""
    head = json.dumps(doc, indent=0)[:-2]
    head = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), head)
    body = [f'"{k}": [' + "".join("\n" + json.dumps(e) + ("," if e is not v[-1] else "") for e in v) + "]"
            for k, v in lists.items()]
    path.write_text(",\n".join([head, *body]) + "\n}\n")


def make(name, case):
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model_folder = (folder / case.get("model", "model")).resolve()
    if "own_model" in case:
        own_model(model_folder, case["own_model"], case["tokenizer"])
    model = reference.read_model(model_folder)
    runner = Runner(name, case["prompts"], model)
    base = load_base(model_folder, torch.float32, name)
    runs = [{**runner.run("base", p, base, lambda ids: reference.Effective(model)), "adapter": None, "via": "forward",
             "transformers": transformers.__version__} for p in case["prompts"]]
    for adapter, fields in case["adapters"].items():
        found = None
        for attempt in range(300):
            write_adapter(folder / "adapters" / adapter, model_folder, fields,
                          zlib.crc32(f"{name}/{adapter}/{attempt}".encode()))
            found = runner.adapter(adapter, folder / "adapters" / adapter, model_folder)
            if found:
                break
        assert found, f"{name}/{adapter}: no seed without a near tie"
        print(f"{name}/{adapter}: attempt {attempt}, from base {[r['max_diff_from_base'] for r in found]}, "
              f"numpy {max(r['numpy_max_diff'] for r in found)}", flush=True)
        if "merges" in case:  # only their combinations are kept
            runner.tensors = {k: t for k, t in runner.tensors.items() if not k.startswith(adapter + ".")}
        else:
            runs += found
    merges = [runner.merge(spec, folder / "adapters", model_folder) for spec in case.get("merges", [])]
    for m in merges:
        print(f"{name}/{m['name']}: from base {m['max_diff_from_base']}, numpy {m['numpy_max_diff']}", flush=True)
    save_file(runner.tensors, folder / "golden.safetensors")
    doc = {"case": name, "model_type": model[0]["model_type"],
           **({"model": case["model"]} if "model" in case else {}),
           "versions": {"transformers": transformers.__version__, "peft": peft.__version__,
                        "torch": torch.__version__.partition("+")[0]},
           "stored_dtype": "bf16", "compute": "float32", "new_tokens": NEW_TOKENS, "eos_stops": False,
           "prompts": case["prompts"]}
    write_json(folder / "golden.json", doc, {"runs": runs, "merges": merges})
    print(f"{name}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e3:.0f} KB", flush=True)


def main():
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name])


if __name__ == "__main__":
    main()
