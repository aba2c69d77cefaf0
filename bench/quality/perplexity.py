"""Perplexity of the demo model on held-out conversations, for each type and way to store weights and keys.

    python3 bench/quality/perplexity.py build/release/lorry

Needs numpy and tokenizers. The conversations are drawn by demo/corpus.py from combinations of facts
that training never saw; each asks for one of the forms. Every token counts ("all"), or those of the
answers ("answers"), which the prompt decides nearly to the letter.
"""

import argparse
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "demo"))
import corpus  # noqa: E402

# --dtype, --quantize and --kv-cache-dtype; the first is what the others are compared with.
FORMATS = [("bf16", "", ""), ("fp16", "", ""), ("fp32", "", ""), ("bf16", "int8", ""), ("bf16", "int4", ""),
           ("bf16", "int4-32", ""), ("bf16", "fp8", ""), ("bf16", "", "int8"), ("bf16", "int4", "int8")]
BOS, EOS = "<s>", "<|end|>"


def conversations(tokenizer: tokenizers.Tokenizer, n: int) -> list[tuple[list[int], int]]:
    """Token ids as the chat template gives them, and where the answer begins."""
    rng = random.Random(2)
    special = tokenizer.token_to_id

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    rows = []
    for _ in range(n):
        kind, form = rng.choice(corpus.OPEN_KINDS), rng.choice(corpus.FORMS)
        example = corpus.sample(rng, held_out=True, kind=kind)
        ids = [special(BOS)]
        for message in corpus.conversation(rng, example, form, instructed=form != "plain"):
            ids += [special(f"<|{message['role']}|>"), *plain("\n" + message["content"]),
                    special(EOS), *plain("\n")]
        ids += [special("<|assistant|>"), *plain("\n")]
        rows.append((ids + plain(example.answers[form]) + [special(EOS)], len(ids)))
    return rows


def read_logits(path: pathlib.Path) -> list[numpy.ndarray]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    out = []
    for i in range(sum(name != "__metadata__" for name in header)):
        entry = header[f"logits.{i}"]
        begin, end = (8 + size + x for x in entry["data_offsets"])
        out.append(numpy.frombuffer(data[begin:end], numpy.float32).reshape(entry["shape"]))
    return out


def losses(logits: numpy.ndarray, ids: list[int]) -> numpy.ndarray:
    """-log p of ids[1:]."""
    x = logits[:-1].astype(numpy.float64)
    top = x.max(axis=1)
    total = top + numpy.log(numpy.exp(x - top[:, None]).sum(axis=1))
    return total - x[numpy.arange(len(ids) - 1), ids[1:]]


def perplexities(lorry: str, model: str, rows: list, dtype: str, form: str, kv: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        prompts = pathlib.Path(folder) / "prompts.json"
        out = pathlib.Path(folder) / "logits.safetensors"
        prompts.write_text(json.dumps([{"tokens": ids, "adapter": None} for ids, _ in rows]))
        command = [lorry, "logits", model, "--prompts", str(prompts), "--out", str(out), "--dtype", dtype]
        command += ["--quantize", form] if form else []
        command += ["--kv-cache-dtype", kv] if kv else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        every, answers = [], []
        for logits, (ids, begin) in zip(read_logits(out), rows):
            loss = losses(logits, ids)
            every.append(loss)
            answers.append(loss[begin - 1:])
        return tuple(math.exp(numpy.concatenate(x).mean()) for x in (every, answers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lorry", help="the program")
    parser.add_argument("--model", default="demo", choices=["demo", "demo:dbrx"])
    parser.add_argument("--conversations", type=int, default=400)
    args = parser.parse_args()
    folder = ROOT / "demo" / ("dbrx" if args.model == "demo:dbrx" else "mixtral")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = conversations(tokenizer, args.conversations)
    print(f"{args.model}: {len(rows)} conversations, {sum(len(ids) for ids, _ in rows)} tokens")
    print(f"{'format':16} {'all':>9} {'':>9} {'answers':>9}")
    first = None
    for dtype, form, kv in FORMATS:
        every, answers = perplexities(args.lorry, args.model, rows, dtype, form, kv)
        first = first or (every, answers)
        name = (form or dtype) + (f", KV {kv}" if kv else "")
        print(f"{name:16} {every:9.4f} {100 * (every / first[0] - 1):+8.2f}% "
              f"{answers:9.5f} {100 * (answers / first[1] - 1):+8.3f}%")


if __name__ == "__main__":
    main()
