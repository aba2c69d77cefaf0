"""The shape that both servers are given, and its random values: one source for GGUF and Hugging Face files.

Values are uniform in +-sqrt(3 / columns), norms are 1, as `lorry bench` makes them: activations keep their size from layer
to layer, and the router spreads the tokens evenly over the experts. A tensor's values depend on its name alone, so that
both formats hold the same model and may be written one tensor at a time.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bf16 = npt.NDArray[np.uint16]  # the bits


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Mixtral; see `SHAPES` for those that exist."""

    dim: int
    layers: int
    experts: int
    top_k: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float
    positions: int


SHAPES = {
    "mini-mixtral": Shape(2048, 16, 8, 2, 3584, 32, 8, 64, 32000, 1e6, 32768),
    "tiny-mixtral": Shape(256, 2, 4, 2, 512, 4, 2, 64, 512, 1e4, 4096),
}

EPS = 1e-5
ATTENTION = ("q", "k", "v", "o")


@dataclasses.dataclass(frozen=True)
class Linear:
    """One matrix of a layer. `expert` is -1 where there is one for all tokens."""

    layer: int
    kind: str  # q k v o router gate up down
    rows: int
    columns: int
    expert: int = -1

    @property
    def module(self) -> str:
        """The module's path in transformers."""
        layer = f"model.layers.{self.layer}."
        if self.kind in ATTENTION:
            return f"{layer}self_attn.{self.kind}_proj"
        if self.kind == "router":
            return f"{layer}block_sparse_moe.gate"
        return f"{layer}block_sparse_moe.experts.{self.expert}.{ {'gate': 'w1', 'up': 'w3', 'down': 'w2'}[self.kind]}"


def layer_linears(shape: Shape, layer: int) -> Iterator[Linear]:
    """All matrices of a layer; those of the experts kind by kind, so that a format may stack them."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield Linear(layer, "q", q, shape.dim)
    yield Linear(layer, "k", kv, shape.dim)
    yield Linear(layer, "v", kv, shape.dim)
    yield Linear(layer, "o", shape.dim, q)
    yield Linear(layer, "router", shape.experts, shape.dim)
    for kind, rows, columns in (("gate", shape.ffn, shape.dim), ("up", shape.ffn, shape.dim),
                                ("down", shape.dim, shape.ffn)):
        for expert in range(shape.experts):
            yield Linear(layer, kind, rows, columns, expert)


def linears(shape: Shape, which: str = "all") -> Iterator[Linear]:
    """Those that an adapter touches: `attention` (q, k, v, o) or `all` (router and experts too)."""
    for layer in range(shape.layers):
        for linear in layer_linears(shape, layer):
            if which == "all" or linear.kind in ATTENTION:
                yield linear


def to_bf16(values: npt.NDArray[np.float32]) -> Bf16:
    """Rounded to nearest, ties to even. Requires: finite values."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def to_f32(values: Bf16) -> npt.NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32)


def random_values(name: str, rows: int, columns: int, gain: float = 1.0) -> Bf16:
    """[rows, columns], of variance gain^2 / columns."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    integers = random.integers(-32768, 32768, (rows, columns), dtype=np.int16)
    return to_bf16(integers.astype(np.float32) * np.float32(gain * (3 / columns) ** 0.5 / 32768))


def lora_pair(adapter: str, linear: Linear, rank: int) -> tuple[Bf16, Bf16]:
    """A [rank, columns] and B [rows, rank]; what they add is a tenth of what the base gives."""
    name = f"{adapter}/{linear.module}"
    return (random_values(f"{name}/A", rank, linear.columns),
            random_values(f"{name}/B", linear.rows, rank, 0.1))


def token_names(shape: Shape) -> list[str]:
    """A vocabulary of the size that is needed: three special tokens, 256 bytes, made-up words."""
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    return names + [f"\u2581w{number}" for number in range(len(names), shape.vocab)]
