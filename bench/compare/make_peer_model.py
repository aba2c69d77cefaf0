#!/usr/bin/env python3
"""Makes one Mixtral of random weights twice, for llama.cpp (GGUF) and for Lorry (Hugging Face), with LoRA adapters.

The weights are the same in both, so are the adapters; greedy answers agree until two logits are a tie in bf16. Nothing is
held in memory but the tensor being written. mini-mixtral is 6.2 GB in each format, an adapter of rank 16 is 7 MB
(q, k, v, o) or 77 MB (all linears).

  FOLDER/model.gguf                 FOLDER/hf/                    the model
  FOLDER/gguf/attention-0.gguf ...  FOLDER/peft/attention-0/ ...  adapters of q, k, v, o
  FOLDER/gguf/all-0.gguf ...        FOLDER/peft/all-0/ ...        of all linears: router and experts too

Quantised peers come from llama.cpp:  llama-quantize FOLDER/model.gguf FOLDER/model-q8_0.gguf Q8_0
Needs numpy and gguf:  python3 -m venv VENV && VENV/bin/pip install numpy gguf
"""

from __future__ import annotations

import argparse
import pathlib

import peer_gguf
import peer_hf
from peer_shape import SHAPES


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where everything is written; made if missing")
    parser.add_argument("--shape", choices=SHAPES, default="mini-mixtral", help="default: %(default)s")
    parser.add_argument("--adapters", type=int, default=16, metavar="N", help="of each set (default: %(default)s)")
    parser.add_argument("--sets", nargs="*", choices=["attention", "all"], default=["attention", "all"],
                        help="which linears the adapters touch (default: both sets)")
    parser.add_argument("--rank", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--f16-adapters", action="store_true", help="GGUF adapters in fp16 instead of bf16")
    parser.add_argument("--formats", nargs="+", choices=["gguf", "hf"], default=["gguf", "hf"],
                        help="default: both")
    parser.add_argument("--only-adapters", action="store_true", help="the model exists already")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    shape, folder = SHAPES[args.shape], args.folder
    (folder / "gguf").mkdir(parents=True, exist_ok=True)
    if not args.only_adapters:
        if "gguf" in args.formats:
            peer_gguf.write_model(folder / "model.gguf", shape)
        if "hf" in args.formats:
            peer_hf.write_model(folder / "hf", shape)
    for which in args.sets:
        for number in range(args.adapters):
            name = f"{which}-{number}"
            if "gguf" in args.formats:
                peer_gguf.write_adapter(folder / "gguf" / f"{name}.gguf", shape, which, args.rank, args.f16_adapters)
            if "hf" in args.formats:
                peer_hf.write_adapter(folder / "peft" / name, shape, which, args.rank)
    print(f"{args.shape} and {args.adapters} adapters of each of {args.sets} are in {folder}")


if __name__ == "__main__":
    main()
