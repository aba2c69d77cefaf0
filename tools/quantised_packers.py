"""Quantised Linears for tools/make_quantised.py: the integers are chosen here, the projects' own code packs them.

Each packer takes (w f32 [out, in], how, rng) and gives (the tensors of the module by their last name, w as the integers
and scales say, computed here in float32). Needs auto-gptq 0.7.1, autoawq 0.2.9 and gptqmodel 2.2.0 as unpacked source
archives (their packages cannot be imported whole without a GPU) and compressed-tensors 0.10.2 installed.
"""
import importlib
import importlib.util
import pathlib
import sys
import types

import numpy as np
import torch
from compressed_tensors.compressors.quantized_compressors.naive_quantized import (FloatQuantizationCompressor,
                                                                                 IntQuantizationCompressor)
from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs


class Sources:
    """The packing code out of the unpacked archives of a folder."""

    def __init__(self, folder):
        gptq = folder / "auto_gptq-0.7.1/auto_gptq/nn_modules/qlinear/qlinear_cuda.py"
        spec = importlib.util.spec_from_file_location("auto_gptq_qlinear_cuda", gptq)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.AutoGptq = module.QuantLinear
        awq = folder / "autoawq-0.2.9/awq"
        for name in ("", ".modules", ".modules.linear", ".utils"):
            self.package("awq" + name, awq / name.replace(".", "/").lstrip("/"))
        self.Awq = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
        model = folder / "gptqmodel-2.2.0/gptqmodel"
        for name in ("", ".nn_modules", ".utils", ".models"):
            self.package("gptqmodel" + name, model / name.replace(".", "/").lstrip("/"))
        sys.modules["gptqmodel.utils"].BACKEND = importlib.import_module("gptqmodel.utils.backend").BACKEND
        self.GptqModel = importlib.import_module("gptqmodel.nn_modules.qlinear").PackableQuantLinear

    @staticmethod
    def package(name, folder):
        """A package whose __init__ is not run."""
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


SOURCES = None  # set by make_quantised.py


def linear_of(w):
    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = torch.tensor(w)
    return linear


def groups_of(n_in, group, rng=None):
    """The group of each input; with an rng in an order of its own, as act-order leaves them."""
    g_idx = np.arange(n_in) // (group or n_in)
    return rng.permutation(g_idx) if rng is not None else g_idx


def integers(w, bits, g_idx, symmetric, scale_dtype):
    """q [out, in], zero [out, groups] (both unsigned), scale [out, groups] and what they stand for."""
    top = 2 ** bits - 1
    n = g_idx.max() + 1
    zero = np.full((w.shape[0], n), 2 ** (bits - 1), np.int32)
    scale = np.zeros((w.shape[0], n), np.float32)
    for g in range(n):
        part = w[:, g_idx == g]
        if symmetric:
            scale[:, g] = np.abs(part).max(1) / (top // 2)
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale[:, g] = (high - low) / top
            zero[:, g] = np.clip(np.round(-low / scale[:, g]), 0, top)
    scale = torch.tensor(scale).to(scale_dtype).float().numpy()
    q = np.clip(np.round(w / scale[:, g_idx]) + zero[:, g_idx], 0, top).astype(np.int32)
    return q, zero, scale, scale[:, g_idx] * (q - zero[:, g_idx]).astype(np.float32)


def gptq(w, how, rng):
    """how: bits, group (0: whole rows), sym, order, version (1, 2), by ("auto-gptq" or "gptqmodel")."""
    g_idx = groups_of(w.shape[1], how["group"], rng if how["order"] else None)
    if not how["sym"]:  # some groups without a negative weight: their zero point is 0
        positive = np.repeat((np.arange(w.shape[0]) % 5 == 0)[:, None], w.shape[1], 1) & (g_idx == 0)
        w = np.where(positive, np.abs(w), w)
    q, zero, scale, value = integers(w, how["bits"], g_idx, how["sym"], torch.float16)
    scales, zeros = torch.tensor(scale), torch.tensor(zero.astype(np.float32))
    order = torch.tensor(g_idx.astype(np.int32))
    if how["by"] == "auto-gptq":
        assert how["version"] == 1 and (zero > 0).all()
        packed = SOURCES.AutoGptq(how["bits"], how["group"] or -1, w.shape[1], w.shape[0], False,
                                  weight_dtype=torch.float32)
        packed.pack(linear_of(value), scales, zeros, order)
        qzeros = packed.qzeros
    else:
        packed = types.SimpleNamespace(bits=how["bits"], pack_dtype_bits=32, pack_factor=32 // how["bits"],
                                       pack_np_math_dtype=np.uint32, pack_np_dtype=np.int32)
        SOURCES.GptqModel.pack(packed, linear_of(value), scales, zeros, order)
        qzeros = packed.qzeros
        if how["version"] == 1:  # gptqmodel/utils/model.py: convert_gptq_v2_to_v1_format_module
            qzeros = qzeros - (0x11111111 if how["bits"] == 4 else 0x01010101)
    tensors = {"qweight": packed.qweight, "qzeros": qzeros, "scales": packed.scales.half(), "g_idx": packed.g_idx}
    if how.get("bias"):
        tensors["bias"] = torch.zeros(w.shape[0], dtype=torch.float16)
    return tensors, value


def awq(w, how, _):
    """how: group."""
    group = how["group"]
    _, zero, scale, value = integers(w, 4, groups_of(w.shape[1], group), False, torch.float16)
    packed = SOURCES.Awq.from_linear(linear_of(value), 4, group, False, torch.tensor(scale.T.copy()),
                                     torch.tensor(zero.T.astype(np.float32)))
    return {k: getattr(packed, k) for k in ("qweight", "qzeros", "scales")}, value


def blocks(w, rows, cols):
    """The largest absolute value of each block, and the block of each row and column."""
    r, c = np.arange(w.shape[0]) // rows, np.arange(w.shape[1]) // cols
    scale = np.zeros((r.max() + 1, c.max() + 1), np.float32)
    np.maximum.at(scale, (r[:, None], c[None, :]), np.abs(w))
    return scale, r, c


def fp8(w, how, rng):
    """how: rows, cols of a block (0: all), scale (its dtype), scale_name, shape (of the scales), static."""
    scale, r, c = blocks(w, how["rows"] or w.shape[0], how["cols"] or w.shape[1])
    scale = torch.tensor(scale / 448).to(how["scale"])
    wide = scale.float().numpy()[r[:, None], c[None, :]]
    q = torch.tensor(w / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
    tensors = {"weight": q, how["scale_name"]: scale.reshape(how.get("shape", scale.shape))}
    if how.get("static"):
        tensors["input_scale"] = torch.tensor(float(rng.uniform(0.01, 0.1)))
    return tensors, wide * q.float().numpy()


COMPRESSORS = {"pack-quantized": PackedQuantizationCompressor, "int-quantized": IntQuantizationCompressor,
               "float-quantized": FloatQuantizationCompressor}


def compressed(w, how, rng):
    """how: format, args (QuantizationArgs' fields), order."""
    args = QuantizationArgs(**how["args"])
    if args.type == "float":
        scale, r, c = blocks(w, 1, w.shape[1])
        scale = torch.tensor(scale / 448).to(torch.bfloat16)
        zero, g_idx = None, None
        value = scale.float().numpy() * torch.tensor(w / scale.float().numpy()).to(torch.float8_e4m3fn).float().numpy()
    else:
        order = rng if args.actorder == "group" else None
        g_idx = groups_of(w.shape[1], args.group_size or 0, order)
        _, zero, scale, value = integers(w, args.num_bits, g_idx, args.symmetric, torch.bfloat16)
        scale = torch.tensor(scale).to(torch.bfloat16)
        zero = torch.tensor((zero - 2 ** (args.num_bits - 1)).astype(np.int8))
        g_idx = torch.tensor(g_idx.astype(np.int32)) if order is not None else None
    tensors = COMPRESSORS[how["format"]]().compress_weight(weight=torch.tensor(value), scale=scale, zero_point=zero,
                                                          quantization_args=args, g_idx=g_idx)
    tensors = {k: v.contiguous() for k, v in tensors.items()} | {"weight_scale": scale}
    if not args.symmetric and "weight_zero_point" not in tensors:
        tensors["weight_zero_point"] = zero
    if g_idx is not None:
        tensors["weight_g_idx"] = g_idx
    return tensors, value
