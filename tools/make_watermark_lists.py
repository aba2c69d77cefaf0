#!/usr/bin/env python3
"""Writes tests/golden/watermark.json: green lists as torch's CPU generator makes them for the detectors of
"A Watermark for Large Language Models". Needs torch (2.15 wrote the file); not part of the build."""

import hashlib
import json
import pathlib
import struct
import sys

import torch

HASH_KEY = 15485863
# Vocabulary, part of it that is green; the last one has a product that is just below a whole number.
SIZES = [(1, 0.5), (2, 0.5), (3, 0.5), (300, 0.5), (1300, 0.25), (32000, 0.5), (100352, 0.5), (100, 0.29)]


def case(vocab, gamma, previous):
    rng = torch.Generator(device="cpu")
    rng.manual_seed(HASH_KEY * previous)
    green = torch.randperm(vocab, generator=rng)[:int(vocab * gamma)].tolist()
    return {"vocab": vocab, "gamma": gamma, "previous": previous, "size": len(green), "first": green[:10],
            "sha256": hashlib.sha256(struct.pack(f"<{len(green)}i", *green)).hexdigest()}


def main():
    cases = [case(vocab, gamma, previous) for vocab, gamma in SIZES
             for previous in sorted({0, 1 % vocab, vocab // 3, vocab - 1})]
    lines = ",\n".join("  " + json.dumps(c) for c in cases)
    path = pathlib.Path(__file__).parent.parent / "tests/golden/watermark.json"
    path.write_text(f'{{"hash_key": {HASH_KEY}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    sys.exit(main())
