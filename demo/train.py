"""Makes the demo models: train.py base|adapters|check mixtral|dbrx, train.py golden, or all of it
in order: train.py all.

Run on idle cores this takes under 45 minutes; it is not part of the build. Needs torch,
transformers 4.57, peft 0.21, safetensors, tokenizers. See README.md beside it.
"""

import argparse
import functools
import json
import pathlib
import random
import subprocess
import sys

import torch

import corpus
import learn
import models

MAX_STEPS, DECAY_STEPS, WARMUP, PEAK_LR = 5000, 200, 40, 2e-3
LATER_LR, LATER = 1.2e-3, 2000  # the rate from step 2000 on
CHECK_EVERY = 100
GATE, NEARLY = 0.95, 0.93  # worst form: to ship; to let the decay begin


def early(folder):
    """Untrained models of the right shapes, with the tokenizer."""
    tokenizer = models.train_tokenizer(random.Random(0))
    for kind in ("mixtral", "dbrx"):
        models.save(models.new_model(kind, len(tokenizer)), tokenizer, folder / kind)


def _schedule(state, resumed):
    """Warm-up, two constant rates until the gate is nearly met, then a decay to zero."""
    def lr_of(step):
        peak = LATER_LR if resumed or step >= LATER else PEAK_LR
        left = state["decay_from"] + DECAY_STEPS - step
        return peak * min((step + 1) / WARMUP, 1.0, left / DECAY_STEPS)
    return lr_of


def train_base(kind, out, work, resume=None):
    """Trains one base model until every form is nearly right, saves it and gates it."""
    torch.manual_seed(1)
    if resume:
        model, tokenizer = models.load(resume)
    else:
        tokenizer = models.train_tokenizer(random.Random(0))
        model = models.new_model(kind, len(tokenizer))
    encoder = learn.Encoder(tokenizer)
    n_params = sum(p.numel() for p in model.parameters())
    print(f"{kind}: {n_params / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}", flush=True)
    timer, losses, hard = learn.Timer(), [], []
    state = {"decay_from": MAX_STEPS - DECAY_STEPS}

    def log(step, loss):
        losses.append(loss)
        if step % 50 == 49:
            print(f"{kind} step {step + 1} loss {sum(losses[-50:]) / 50:.4f} {timer():.0f} s",
                  flush=True)
        if (step == 0 and resume) or ((step + 1) % CHECK_EVERY == 0 and loss < 0.2):
            scores = learn.measure(model, encoder, random.Random(step), corpus.FORMS, 8)
            # A slot that is still guessed stays so for long; more of its examples end that.
            hard[:] = [cell for cell, (slot, _) in scores.items() if slot < 0.97]
            print(f"  least {learn.worst(scores):.1%}, hard: {hard}", flush=True)
            models.save(model, tokenizer, work / f"{kind}-checkpoint")
            if learn.worst(scores) >= NEARLY:
                state["decay_from"] = min(state["decay_from"], step + 1)
            model.train()
        return step + 1 >= state["decay_from"] + DECAY_STEPS

    # Two turns come in with the decay, once copying is learnt: they make it harder to learn.
    rows = learn.batches(random.Random(str(resume)), encoder,
                         functools.partial(learn.pretraining_row, hard=hard),
                         lambda: 0.2 if len(losses) >= state["decay_from"] else 0.0)
    learn.fit(model, rows, MAX_STEPS, _schedule(state, resume), log)
    models.save(model, tokenizer, out / kind)
    stored, _ = models.load(out / kind)
    scores = learn.measure(stored, encoder, random.Random(3), corpus.FORMS, 32)
    report = {"steps": len(losses), "seconds": round(timer()), "loss": sum(losses[-50:]) / 50,
              "parameters": n_params, "scores": {"/".join(k): v for k, v in scores.items()}}
    (work / f"{kind}-base.json").write_text(json.dumps(report, indent=1))
    print(f"{kind}: {learn.show(scores)}\nworst form {learn.worst(scores):.1%}", flush=True)
    if learn.worst(scores) < GATE:
        raise SystemExit(f"{kind}: below the gate of {GATE:.0%}; not fit to ship")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["early", "base", "adapters", "golden", "check", "all"])
    parser.add_argument("kind", nargs="?", choices=["mixtral", "dbrx"])
    parser.add_argument("--out", type=pathlib.Path, default=models.HERE)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/lorry-demo"))
    parser.add_argument("--resume", type=pathlib.Path, help="base: start from this checkpoint")
    parser.add_argument("--names", nargs="+", help="adapters: only these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "early":
        early(args.out)
    elif args.what == "base":
        train_base(args.kind, args.out, args.work, args.resume)
    elif args.what == "adapters":
        import adapters
        adapters.train_all(args.kind, args.out, args.work, args.names)
    elif args.what == "golden":
        import golden
        golden.write(args.out)
    elif args.what == "check":
        import adapters
        adapters.check(args.kind, args.out)
    else:
        for step in ("base", "adapters"):  # one thread each beats two threads one by one
            jobs = [subprocess.Popen([sys.executable, __file__, step, kind, "--out", args.out,
                                      "--work", args.work])
                    for kind in ("mixtral", "dbrx")]
            if any(job.wait() for job in jobs):
                raise SystemExit(f"{step} failed")
        subprocess.run([sys.executable, __file__, "golden", "--out", args.out], check=True)


if __name__ == "__main__":
    main()
