"""Batches, the training loop, and the measure that gates it: slot accuracy on unseen prompts."""

import collections
import time

import torch
import torch.nn.functional as F

import corpus
import models

BATCH_TOKENS = 2048
AUX_WEIGHT = 0.02     # load balance, per layer
PROMPT_WEIGHT = 0.05  # of the loss on prompt tokens, whose slots are pure chance


class Encoder:
    """Chat form to token ids, as the chat template does it (checked at the start) but faster."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.roles = {r: tokenizer.convert_tokens_to_ids(f"<|{r}|>")
                      for r in ("system", "user", "assistant")}
        self.newline = self.plain("\n")
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        if self.prompt(chat) != expected:
            raise SystemExit("the chat template and Encoder.prompt differ")

    def plain(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt(self, messages):
        ids = [models.BOS]
        for message in messages:
            ids += [self.roles[message["role"]], *self.plain("\n" + message["content"]),
                    models.EOS, *self.newline]
        return ids + [self.roles["assistant"], *self.newline]

    def answer(self, text):
        return [*self.plain(text), models.EOS]


def _draw(rng, hard):
    """Form and kind of one turn, and whether the form is asked for. One turn in two is drawn from
    the `hard` (form, kind) pairs, if any. Of the rest 40 % are plain, 45 % another form behind its
    instruction and 15 % "free": any form without an instruction."""
    if hard and rng.random() < 0.5:
        form, kind = rng.choice(hard)
        return form, kind, "asked" if form != "plain" and rng.random() < 0.75 else "free"
    dice = rng.random()
    if dice < 0.4:
        return "plain", None, "default"
    return rng.choice(corpus.FORMS[1:]), None, "asked" if dice < 0.85 else "free"


def pretraining_row(rng, encoder, two_turns, hard):
    """Token ids and loss weights of one example as the base model needs it.

    A free turn has no loss on its first answer token: from there on the form follows from what is
    already written, which is what an adapter that only changes the default relies on.
    """
    messages, form, how = [], None, None
    for _ in range(2 if two_turns else 1):
        if messages and messages[0]["role"] == "system":  # its instruction stays in force
            example = corpus.sample(rng)
            messages += corpus.conversation(rng, example, form, instructed=False)
        else:
            form, kind, how = _draw(rng, hard)
            example = corpus.sample(rng, kind=kind)
            messages += corpus.conversation(rng, example, form, how == "asked",
                                            may_use_system=not messages)
        messages.append({"role": "assistant", "content": example.answers[form]})
    prompt = encoder.prompt(messages[:-1])
    answer = encoder.answer(messages[-1]["content"])
    return prompt + answer, [PROMPT_WEIGHT] * len(prompt) + [0.0 if how == "free" else 1.0] + [1.0] * (
        len(answer) - 1)


def _exchange(rng):
    """An earlier question and its answer in any form, as when adapters are switched in a chat."""
    example, form = corpus.sample(rng), rng.choice(corpus.FORMS)
    return [*corpus.conversation(rng, example, form, instructed=False),
            {"role": "assistant", "content": example.answers[form]}]


def adapter_row(form):
    """A function like pretraining_row for one adapter: its form, without any instruction."""
    def row(rng, encoder, two_turns):
        messages = _exchange(rng) if two_turns else []
        example = corpus.sample(rng)
        messages += corpus.conversation(rng, example, form, instructed=False)
        messages.append({"role": "assistant", "content": example.answers[form]})
        prompt = encoder.prompt(messages[:-1])
        answer = encoder.answer(messages[-1]["content"])
        return prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)
    return row


def batches(rng, encoder, row, two_turn_share):
    """Endless batches of about BATCH_TOKENS, rows of like length: ids [B, T], weights [B, T]."""
    while True:
        rows = [row(rng, encoder, rng.random() < two_turn_share()) for _ in range(400)]
        rows.sort(key=lambda r: len(r[0]))
        groups, group = [], []
        for r in rows:
            if group and len(r[0]) * (len(group) + 1) > BATCH_TOKENS:
                groups.append(group)
                group = []
            group.append(r)
        rng.shuffle(groups)  # the last, partial group is dropped
        for g in groups:
            width = max(len(ids) for ids, _ in g)
            yield (torch.tensor([ids + [models.PAD] * (width - len(ids)) for ids, _ in g]),
                   torch.tensor([w + [0.0] * (width - len(w)) for _, w in g]))


def _balance_loss(router_logits, top_k):
    """Mean over the layers of E * sum(share of tokens * mean probability); 1 when balanced."""
    losses = []
    for logits in router_logits:
        p = logits.float().softmax(-1)
        chosen = torch.zeros_like(p).scatter_(1, p.topk(top_k, -1).indices, 1.0 / top_k)
        losses.append(p.shape[1] * (chosen.mean(0) * p.mean(0)).sum())
    return torch.stack(losses).mean()


def fit(model, rows, steps, lr_of, log=None, balance=True):
    """Trains the parameters that require gradients. lr_of(step); log(step, loss) may return True
    to stop early. `balance` adds the router's load balance loss."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05,
                                  fused=True)
    captured, hooks = [], []
    if balance:
        hooks = [m.register_forward_hook(lambda m, i, out: captured.append(out.flatten(0, -2)))
                 for m in models.router_modules(model)]
    model.train()
    for step in range(steps):
        ids, weights = next(rows)
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        captured.clear()
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(),
                               reduction="none")
        w = weights[:, 1:].flatten()
        loss = (each * w).sum() / w.sum()
        total = loss
        if captured:
            keep = (ids != models.PAD).flatten()
            total = loss + AUX_WEIGHT * _balance_loss([c[keep] for c in captured], 2)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        if log and log(step, loss.item()):
            break
    for hook in hooks:
        hook.remove()
    model.eval()


@torch.no_grad()
def generate(model, prompts, max_new_tokens=110):
    """Greedy answers (token ids without the end token) to prompts of any lengths."""
    width = max(map(len, prompts))
    ids = torch.tensor([[models.PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False,
                         max_new_tokens=max_new_tokens, eos_token_id=models.EOS,
                         pad_token_id=models.PAD)
    return [[t for t in row[width:].tolist() if t not in (models.EOS, models.PAD)] for row in out]


def measure(model, encoder, rng, forms, n, instructed=None, kinds=tuple(corpus.OPEN_KINDS),
            second_turn=False):
    """Per (form, kind): slot accuracy and share of answers exact to the letter, over n unseen
    prompts. `instructed` None: all forms but plain behind their instruction. `second_turn`: after
    an earlier exchange in any form."""
    model.eval()
    cases = []
    for form in forms:
        for kind in kinds:
            for _ in range(n):
                example = corpus.sample(rng, held_out=True, kind=kind)
                ask = form != "plain" if instructed is None else instructed
                chat = corpus.conversation(rng, example, form, ask, not second_turn)
                if second_turn:
                    chat = _exchange(rng) + chat
                cases.append((form, kind, example, encoder.prompt(chat)))
    counts = collections.defaultdict(lambda: [0, 0, 0])
    for start in range(0, len(cases), 64):
        part = cases[start:start + 64]
        for (form, kind, example, _), out in zip(part, generate(model, [c[3] for c in part])):
            text = encoder.tokenizer.decode(out)
            hit, of = corpus.slot_hits(text, example.slots[form])
            count = counts[form, kind]
            count[0] += hit
            count[1] += of
            count[2] += text == example.answers[form]
    return {key: (hit / of, exact / n) for key, (hit, of, exact) in counts.items()}


def worst(scores):
    """The lowest slot accuracy of any form, averaged over its kinds."""
    forms = {form for form, _ in scores}
    return min(sum(s[0] for (f, _), s in scores.items() if f == form) /
               sum(f == form for f, _ in scores) for form in forms)


def show(scores):
    return "; ".join(f"{form}/{kind} {slot:.1%} ({exact:.0%} exact)"
                     for (form, kind), (slot, exact) in scores.items())


class Timer:
    def __init__(self):
        self.start = time.time()

    def __call__(self):
        return time.time() - self.start
