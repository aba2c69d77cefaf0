"""Writes a `Shape` and adapters for it as GGUF, the format of llama.cpp. Needs numpy and gguf."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator

import gguf
import numpy as np
import numpy.typing as npt

from peer_shape import EPS, Bf16, Linear, Shape, layer_linears, linears, lora_pair, random_values, to_f32, token_names

Array = npt.NDArray[np.generic]
Maker = Callable[[], Array]  # makes a tensor's values when it is its turn to be written

NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "router": "ffn_gate_inp",
         "gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # gguf.TokenType


def interleaved(rows: Bf16, heads: int) -> Bf16:
    """llama.cpp rotates neighbouring pairs, transformers two halves: q and k change the order of a head's rows."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def rows_of(shape: Shape, linear: Linear, rows: Bf16) -> Bf16:
    heads = {"q": shape.heads, "k": shape.kv_heads}.get(linear.kind)
    return interleaved(rows, heads) if heads else rows


class Tensors:
    """Declares tensors, then writes them in that order, each made only when its turn comes."""

    def __init__(self, writer: gguf.GGUFWriter) -> None:
        self.writer = writer
        self.makers: list[Maker] = []

    def add(self, name: str, shape: tuple[int, ...], dtype: type[np.generic], make: Maker) -> None:
        """`dtype`: float32, float16, or uint16 for the bits of bf16."""
        raw = gguf.GGMLQuantizationType.BF16 if dtype is np.uint16 else None
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.writer.add_tensor_info(name, shape, np.dtype(dtype), n_bytes, raw)
        self.makers.append(make)

    def write(self, path: pathlib.Path) -> None:
        self.writer.write_header_to_file(path)
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()
        for make in self.makers:
            self.writer.write_tensor_data(np.ascontiguousarray(make()))
        self.writer.close()


def add_config(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def add_tokenizer(writer: gguf.GGUFWriter, shape: Shape) -> None:
    names = token_names(shape)
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(names) - 259)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores([-float(i) for i in range(len(names))])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def grouped(all_linears: Iterator[Linear]) -> Iterator[list[Linear]]:
    """A matrix alone; the experts' matrices of one kind together."""
    group: list[Linear] = []
    for linear in all_linears:
        if group and (linear.kind, linear.layer) != (group[0].kind, group[0].layer):
            yield group
            group = []
        group.append(linear)
    yield group


def stacked(parts: list[Bf16], experts: bool) -> Bf16:
    return np.stack(parts) if experts else parts[0]


def weight(shape: Shape, group: list[Linear]) -> Bf16:
    parts = [rows_of(shape, x, random_values(x.module, x.rows, x.columns)) for x in group]
    return stacked(parts, group[0].expert >= 0)


def router(shape: Shape, group: list[Linear]) -> Array:
    return to_f32(weight(shape, group))


def write_model(path: pathlib.Path, shape: Shape) -> None:
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_name(path.stem)
    add_config(writer, shape)
    add_tokenizer(writer, shape)
    tensors = Tensors(writer)

    def norm() -> Array:
        return np.ones(shape.dim, np.float32)

    def table(name: str) -> None:
        tensors.add(f"{name}.weight", (shape.vocab, shape.dim), np.uint16,
                    lambda: random_values(name, shape.vocab, shape.dim))

    table("token_embd")
    for layer in range(shape.layers):
        tensors.add(f"blk.{layer}.attn_norm.weight", (shape.dim,), np.float32, norm)
        tensors.add(f"blk.{layer}.ffn_norm.weight", (shape.dim,), np.float32, norm)
        for group in grouped(layer_linears(shape, layer)):
            first, stack = group[0], (len(group),) if group[0].expert >= 0 else ()
            name, size = f"blk.{layer}.{NAMES[first.kind]}.weight", (*stack, first.rows, first.columns)
            if first.kind == "router":  # llama.cpp keeps it in fp32
                tensors.add(name, size, np.float32, functools.partial(router, shape, group))
            else:
                tensors.add(name, size, np.uint16, functools.partial(weight, shape, group))
    tensors.add("output_norm.weight", (shape.dim,), np.float32, norm)
    table("output")
    tensors.write(path)


def write_adapter(path: pathlib.Path, shape: Shape, which: str, rank: int, f16: bool) -> None:
    """`which`: see linears(). `f16`: fp16 instead of bf16 pairs."""
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    tensors = Tensors(writer)
    dtype = np.float16 if f16 else np.uint16

    def stored(values: Bf16) -> Array:
        return to_f32(values).astype(np.float16) if f16 else values

    for group in grouped(linears(shape, which)):
        first, experts = group[0], group[0].expert >= 0
        pairs = [lora_pair(path.stem, x, rank) for x in group]
        a = stacked([pair[0] for pair in pairs], experts)
        b = stacked([rows_of(shape, x, pair[1]) for x, pair in zip(group, pairs)], experts)
        name = f"blk.{first.layer}.{NAMES[first.kind]}.weight"
        tensors.add(f"{name}.lora_a", a.shape, dtype, functools.partial(stored, a))
        tensors.add(f"{name}.lora_b", b.shape, dtype, functools.partial(stored, b))
    tensors.write(path)
