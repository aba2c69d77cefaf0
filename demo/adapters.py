"""Trains, saves and measures the demo adapters: each makes one form the default answer."""

import json
import random
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils import parametrize

import corpus
import learn
import models

GATE = 0.95
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["w1", "w2", "w3"]

# r, alpha and targets are PEFT's; `lr` and `steps` are those of the training. The form is the name.
ADAPTERS = {
    "mixtral": {
        "json": dict(r=8, alpha=16, targets=ATTENTION + EXPERTS, lr=3e-3, steps=90, two_turns=0.4),
        "french": dict(r=16, alpha=32, targets=ATTENTION + EXPERTS, lr=2e-3, steps=60),
        "pirate": dict(r=8, alpha=16, targets=EXPERTS, lr=3e-3, steps=60),
        "summary": dict(r=4, alpha=8, targets=ATTENTION, lr=3e-3, steps=60),
        "bullets": dict(r=16, alpha=32, targets=["gate", "lm_head"], lr=3e-3, steps=60),
        "poem": dict(r=8, alpha=8, targets=ATTENTION + ["gate"] + EXPERTS, rslora=True, lr=2e-3,
                     steps=60),
    },
    "dbrx": {
        "json": dict(r=8, alpha=16, targets=["Wqkv", "out_proj"], lr=3e-3, steps=60),
        "pirate": dict(r=4, alpha=8, parameters=["w1", "v1", "w2"], lr=3e-3, steps=60),
        "french": dict(r=16, alpha=32, targets=["Wqkv", "out_proj", "router.layer"], lr=2e-3,
                       steps=60),
    },
}


class _Delta(torch.nn.Module):
    """W + s B A as a parametrization. PEFT cannot run DBRX expert adapters unmerged: the model
    reads mlp.w1 past PEFT's wrapper."""

    def __init__(self, weight, rank, scale):
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.b = torch.nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.scale = scale

    def forward(self, weight):
        return weight + self.scale * (self.b @ self.a)


def _lora_config(spec):
    return LoraConfig(r=spec["r"], lora_alpha=spec["alpha"], lora_dropout=0.0, bias="none",
                      target_modules=spec.get("targets", []),
                      target_parameters=spec.get("parameters"),
                      use_rslora=spec.get("rslora", False), task_type="CAUSAL_LM")


def _parametrize_experts(model, spec):
    """Our own LoRA on the expert tensors; returns {(block, parameter name): _Delta}."""
    model.requires_grad_(False)
    deltas = {}
    for i, block in enumerate(model.transformer.blocks):
        for name in spec["parameters"]:
            weight = getattr(block.ffn.experts.mlp, name)
            delta = _Delta(weight, spec["r"], spec["alpha"] / spec["r"])
            parametrize.register_parametrization(block.ffn.experts.mlp, name, delta)
            deltas[i, name] = delta
    return deltas


def _as_peft(deltas, spec, base_folder):
    """The same adapter held by PEFT, which then writes it in its own target_parameters format."""
    model, _ = models.load(base_folder)
    peft_model = get_peft_model(model, _lora_config(spec))
    for i, block in enumerate(peft_model.base_model.model.transformer.blocks):
        wrapper = block.ffn.experts.mlp
        while hasattr(wrapper, "parameter_name"):
            delta = deltas[i, wrapper.parameter_name]
            wrapper.lora_A["default"].weight.data.copy_(delta.a.data)
            wrapper.lora_B["default"].weight.data.copy_(delta.b.data)
            wrapper = wrapper.base_layer
    return peft_model


def load(base_folder, adapter_folder):
    """The base with one adapter, in fp32; merged where PEFT cannot run the adapter unmerged."""
    model, tokenizer = models.load(base_folder)
    if adapter_folder is None:
        return model, tokenizer
    model = PeftModel.from_pretrained(model, adapter_folder)
    if json.loads((adapter_folder / "adapter_config.json").read_text()).get("target_parameters"):
        model = model.merge_and_unload()
    return model.eval(), tokenizer


def _check_same_logits(parametrized, deltas, base_folder, folder):
    """What PEFT merges from the file must be what was trained (rounded to bf16 as stored)."""
    for delta in deltas.values():
        delta.a.data = delta.a.data.bfloat16().float()
        delta.b.data = delta.b.data.bfloat16().float()
    merged, _ = load(base_folder, folder)
    ids = torch.randint(0, 1000, (1, 64))
    with torch.no_grad():
        difference = (parametrized(ids).logits - merged(ids).logits).abs().max().item()
    print(f"{folder.name}: merged by PEFT, largest logit difference {difference:.1e}", flush=True)
    if difference > 1e-3:
        raise SystemExit(f"{folder}: PEFT reads another adapter than was trained")


def train_one(kind, name, out):
    """Trains and saves one adapter; returns its report."""
    spec = ADAPTERS[kind][name]
    torch.manual_seed(5)
    base_folder, folder = out / kind, out / kind / "adapters" / name
    model, tokenizer = models.load(base_folder)
    encoder = learn.Encoder(tokenizer)
    if "parameters" in spec:
        deltas = _parametrize_experts(model, spec)
    else:
        model = get_peft_model(model, _lora_config(spec))
    timer, losses = learn.Timer(), []
    rows = learn.batches(random.Random(6), encoder, learn.adapter_row(name),
                         lambda: spec.get("two_turns", 0.2))
    learn.fit(model, rows, spec["steps"],
              lambda step: spec["lr"] * min((step + 1) / 10, 1 - step / spec["steps"]),
              lambda step, loss: losses.append(loss), balance=False)
    shutil.rmtree(folder, ignore_errors=True)
    peft_model = _as_peft(deltas, spec, base_folder) if "parameters" in spec else model
    peft_model.bfloat16().save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card
    config_file = folder / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config["base_model_name_or_path"] = f"demo-{kind}"  # not a path of this machine
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if "parameters" in spec:
        _check_same_logits(model, deltas, base_folder, folder)
    seconds = round(timer())
    stored, _ = load(base_folder, folder)
    scores = learn.measure(stored, encoder, random.Random(7), [name], 64, instructed=False)
    print(f"{kind}/{name}: {learn.show(scores)}, loss {sum(losses[-20:]) / 20:.4f}, {seconds} s",
          flush=True)
    return {"rank": spec["r"], "seconds": seconds, "loss": sum(losses[-20:]) / 20,
            "scores": {"/".join(k): v for k, v in scores.items()},
            "passes": learn.worst(scores) >= GATE}


def train_all(kind, out, work, names=None):
    """Trains the named adapters (all when None), each with its report; fails below the gate."""
    failed = []
    for name in names or ADAPTERS[kind]:
        report = train_one(kind, name, out)
        (work / f"{kind}-adapter-{name}.json").write_text(json.dumps(report, indent=1))
        if not report["passes"]:
            failed.append(name)
    if failed:
        raise SystemExit(f"{kind}: below the gate of {GATE:.0%}: {failed}")


def check(kind, out):
    """Measures the files as they are, with unseen prompts; also after an earlier exchange, and the
    kinds whose few prompts were all seen."""
    for name in [None, *ADAPTERS[kind]]:
        model, tokenizer = load(out / kind, out / kind / "adapters" / name if name else None)
        encoder, forms = learn.Encoder(tokenizer), [name] if name else corpus.FORMS
        for what, options in {
                "unseen": {}, "second turn": {"second_turn": True},
                "seen kinds": {"kinds": ("capital", "hello")}}.items():
            scores = learn.measure(model, encoder, random.Random(11), forms, 32 if name else 12,
                                   instructed=False if name else None, **options)
            exact = sum(e for _, e in scores.values()) / len(scores)
            print(f"{kind}/{name or 'base'} {what}: worst form {learn.worst(scores):.1%}, "
                  f"exact {exact:.1%}", flush=True)
