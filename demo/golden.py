"""golden.json: what transformers and PEFT answer with the shipped weights, computed in fp32.

Per run: the prompt's ids (chat template applied), the greedy ids up to and with the end token, the
text, and per generated token the logit margin (first minus second) and the smallest gap between
the last chosen and the first unchosen router logit of any layer and position it depends on. An
engine must give the same ids up to the first step whose margin or gap is within its own error.
"""

import json

import torch
from peft import PeftModel

import adapters
import models

STORY = "Tell a story about Tom, a red fox who finds a lamp in the forest."
ORDER = "Mia wants 3 green hats on Friday."
CONVERSATIONS = [
    [{"role": "user", "content": STORY}],
    [{"role": "user", "content": ORDER}],
    [{"role": "user", "content": "What is the weather in Oslo? Monday: snowy, 5 degrees."}],
    [{"role": "user", "content": "What is the capital of Japan?"}],
    [{"role": "user", "content": "Who are you?"}],
    [{"role": "user", "content": "What is the capital of Japan?"},
     {"role": "assistant", "content": "Tokyo is the capital of Japan."},
     {"role": "user", "content": ORDER}],
]
MAX_NEW_TOKENS = 110


@torch.no_grad()
def _run(model, tokenizer, messages):
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    out = model.generate(input_ids=torch.tensor([prompt]), do_sample=False,
                         attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         max_new_tokens=MAX_NEW_TOKENS)[0]
    tokens = out[len(prompt):].tolist()
    captured, hooks = [], []
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for module in models.router_modules(base):
        hooks.append(module.register_forward_hook(
            lambda m, i, o: captured.append(o.reshape(-1, o.shape[-1]))))
    logits = model(input_ids=out[None], use_cache=False).logits[0, len(prompt) - 1:-1]
    for hook in hooks:
        hook.remove()
    if logits.argmax(-1).tolist() != tokens:
        raise SystemExit(f"with and without KV cache differ for {messages}")
    top = logits.topk(2).values
    router = torch.stack([c.topk(3).values for c in captured])  # [layers, T, 3], top-2 of 4
    gaps = (router[..., 1] - router[..., 2]).min(0).values.cummin(0).values
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return {"messages": messages, "prompt": prompt, "tokens": tokens, "text": text,
            "margins": [round(x, 5) for x in (top[:, 0] - top[:, 1]).tolist()],
            "router_gaps": [round(x, 6) for x in gaps[len(prompt) - 1:-1].tolist()]}


def write(out):
    result = {}
    for kind, names in adapters.ADAPTERS.items():
        runs = []
        for name in [None, *names]:
            folder = out / kind / "adapters" / name if name else None
            model, tokenizer = adapters.load(out / kind, folder)
            for messages in CONVERSATIONS:
                run = {"adapter": name, **_run(model, tokenizer, messages)}
                runs.append(run)
                print(f"{kind} {name}: {run['text']!r} least margin {min(run['margins'])}",
                      flush=True)
        result[kind] = runs
    lines = [f'"{kind}": [\n' + ",\n".join(json.dumps(r, ensure_ascii=False) for r in runs) + "\n]"
             for kind, runs in result.items()]
    (out / "golden.json").write_text("{" + ",\n".join(lines) + "}\n")
