"""Quantised checkpoints, made from a tiny model: each number is drawn or rounded here, packed one by one, and its true value kept.

Written from the descriptions of the formats, without a look at how the product reads them: plain loops over plain numbers.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Tensors = dict[str, torch.Tensor]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Made = tuple[Tensors, Floats]
"""A layer's tensors by what follows its name, and the weight [out, in] that they stand for."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(sign * one / 12 for sign in (1, -1) for one in (0, 0.0625, 8, 12, 4, 6, 2, 3))


def words_of(codes: Sequence[int], bits: int) -> list[int]:
    """Pack codes into 32-bit words, the first in the lowest bits; as signed numbers."""
    per_word = 32 // bits
    words = []
    for begin in range(0, len(codes), per_word):
        word = sum(int(code) << (bits * place) for place, code in enumerate(codes[begin : begin + per_word]))
        words.append(word - (1 << 32) if word >= 1 << 31 else word)
    return words


def _ints(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(np.array(rows, dtype=np.int64).astype(np.int32))


def _grouped(weight: Floats, group: int, bits: int, order: Sequence[int], *, symmetric: bool) -> tuple[Any, Any, Any]:
    """Return codes [out, in], scales and zeros [out, groups] of the nearest numbers; scales are numbers of 16 bits."""
    num_out, num_in = weight.shape
    num_groups, top = num_in // group, (1 << bits) - 1
    codes = np.zeros((num_out, num_in), dtype=np.int64)
    scales, zeros = np.zeros((num_out, num_groups), np.float16), np.zeros((num_out, num_groups), np.int64)
    for row in range(num_out):
        for number in range(num_groups):
            columns = [column for column in range(num_in) if order[column] == number]
            part = weight[row, columns]
            if symmetric:
                scales[row, number], zeros[row, number] = max(abs(part)) * 2 / top, (top + 1) // 2
            else:
                low, high = min(0.0, part.min()), max(0.0, part.max())
                scales[row, number] = (high - low) / top
                zeros[row, number] = round(-low / float(scales[row, number]))
            for column in columns:
                code = round(float(weight[row, column]) / float(scales[row, number])) + zeros[row, number]
                codes[row, column] = min(top, max(0, code))
    return codes, scales, zeros


def _values(codes: Any, scales: Any, zeros: Any, order: Sequence[int]) -> Floats:
    made = np.zeros(codes.shape, np.float32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            group = order[column]
            made[row, column] = np.float32(codes[row, column] - zeros[row, group]) * np.float32(scales[row, group])
    return made


def _order(num_in: int, group: int, seed: int | None) -> list[int]:
    usual = [column // group for column in range(num_in)]
    return usual if seed is None else np.random.default_rng(seed).permutation(usual).tolist()


def gptq(weight: Floats, *, bits: int, group: int, symmetric: bool, seed: int | None, less_one: bool) -> Made:
    """Words of 32 bits along the inputs; `seed`: of the order of groups."""
    num_out, num_in = weight.shape
    group = num_in if group == -1 else group
    order = _order(num_in, group, seed)
    codes, scales, zeros = _grouped(weight, group, bits, order, symmetric=symmetric)
    stored = [[(int(zero) - 1) % (1 << bits) if less_one else int(zero) for zero in row] for row in zeros.T]
    by_output = [words_of(codes[row], bits) for row in range(num_out)]
    tensors = {
        "qweight": _ints(by_output).t().contiguous(),
        "qzeros": _ints([words_of(row, bits) for row in stored]),
        "scales": torch.tensor(scales.T.copy()),
        "g_idx": torch.tensor(order, dtype=torch.int32),
    }
    return tensors, _values(codes, scales, zeros, order)


def awq(weight: Floats, *, group: int) -> Made:
    """Words of 32 bits along the outputs; within one, outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    order = _order(weight.shape[1], group, None)
    codes, scales, zeros = _grouped(weight, group, 4, order, symmetric=False)

    def mixed(row: Sequence[int]) -> list[int]:
        eights = [row[begin : begin + 8] for begin in range(0, len(row), 8)]
        return [eight[place] for eight in eights for place in (0, 2, 4, 6, 1, 3, 5, 7)]

    tensors = {
        "qweight": _ints([words_of(mixed(column), 4) for column in codes.T]),
        "qzeros": _ints([words_of(mixed(column), 4) for column in zeros.T]),
        "scales": torch.tensor(scales.T.copy()),
    }
    return tensors, _values(codes, scales, zeros, order)


def packed(weight: Floats, *, bits: int, group: int, symmetric: bool, seed: int | None = None) -> Made:
    """compressed-tensors' pack-quantized; `group` -1: a row."""
    num_out, num_in = weight.shape
    group = num_in if group == -1 else group
    order = _order(num_in, group, seed)
    codes, scales, zeros = _grouped(weight, group, bits, order, symmetric=symmetric)
    tensors = {
        "weight_packed": _ints([words_of(row, bits) for row in codes]),
        "weight_scale": torch.tensor(scales),
        "weight_shape": torch.tensor([num_out, num_in]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = _ints([words_of(column, bits) for column in zeros.T]).t().contiguous()
    if seed is not None:
        tensors["weight_g_idx"] = torch.tensor(order, dtype=torch.int32)
    return tensors, _values(codes, scales, zeros, order)


def int8(weight: Floats, *, scale: str, symmetric: bool = True) -> Made:
    """Signed bytes, with a scale a row or one for all."""
    num_out, num_in = weight.shape
    tensors, made = {}, np.zeros(weight.shape, np.float32)
    codes, scales, zeros = np.zeros(weight.shape, np.int8), np.zeros((num_out, 1), np.float32), np.zeros((num_out, 1))
    for row in range(num_out):
        part = weight if scale == "tensor" else weight[row]
        scales[row, 0] = abs(part).max() / 120
        zeros[row, 0] = 0 if symmetric else row % 5 - 2
        for column in range(num_in):
            codes[row, column] = round(float(weight[row, column] / scales[row, 0])) + zeros[row, 0]
            made[row, column] = np.float32(codes[row, column] - zeros[row, 0]) * scales[row, 0]
    tensors["weight"] = torch.tensor(codes)
    tensors["weight_scale"] = torch.tensor(scales[:1, 0] if scale == "tensor" else scales)
    if not symmetric:
        tensors["weight_zero_point"] = torch.tensor(zeros.astype(np.int8))
    return tensors, made


def e4m3(code: int) -> float:
    """Return the number of a code: 1 bit of sign, 4 of exponent, 3 of fraction."""
    exponent, fraction = (code >> 3) & 15, code & 7
    size = fraction * 2.0**-9 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return -size if code & 128 else size


_E4M3 = np.array([e4m3(code) for code in range(256) if code & 127 != 127])
_E4M3_CODES = np.array([code for code in range(256) if code & 127 != 127])


def fp8(
    weight: Floats,
    *,
    block: tuple[int, int],
    scale: str,
    scale_dtype: torch.dtype = torch.float32,
    input_scale: float | None = None,
) -> Made:
    """Codes of e4m3 with a scale for each block; `scale`: its name. A block of (0, 0) is the whole, one of (1, 0) a row."""
    num_out, num_in = weight.shape
    height, width = block[0] or num_out, block[1] or num_in
    down, across = -(-num_out // height), -(-num_in // width)
    codes, made = np.zeros(weight.shape, np.uint8), np.zeros(weight.shape, np.float32)
    scales = torch.zeros(down, across, dtype=scale_dtype)
    for row in range(down):
        for column in range(across):
            place = np.s_[row * height : (row + 1) * height, column * width : (column + 1) * width]
            scales[row, column] = float(abs(weight[place]).max()) / 448
            one = np.float32(scales[row, column].item())
            nearest = abs(weight[place][..., None] / one - _E4M3).argmin(-1)
            codes[place] = _E4M3_CODES[nearest]
            made[place] = _E4M3[nearest].astype(np.float32) * one
    stored = torch.tensor(codes).view(torch.float8_e4m3fn)
    tensors = {"weight": stored, scale: scales.view(()) if block == (0, 0) else scales}
    return tensors | ({} if input_scale is None else {"input_scale": torch.tensor(input_scale)}), made


def four_bits(weight: Floats, *, kind: str, nested: bool, blocksize: int = 64) -> Made:
    """bitsandbytes' nf4 and fp4."""
    table = np.array(NF4 if kind == "nf4" else FP4, np.float32)
    flat = weight.reshape(-1)
    num_blocks = -(-len(flat) // blocksize)
    scales = np.array([abs(flat[at * blocksize : (at + 1) * blocksize]).max() for at in range(num_blocks)], np.float32)
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": blocksize,
        "dtype": "float32",
        "shape": list(weight.shape),
    }
    tensors: Tensors = {}
    if nested:
        offset, inner = float(scales.mean()), 4
        centred = scales - np.float32(offset)
        map_of_scales = np.linspace(-1, 1, 256).astype(np.float32)
        outer = np.array([abs(centred[at : at + inner]).max() for at in range(0, num_blocks, inner)], np.float32)
        codes = [int(abs(centred[at] / outer[at // inner] - map_of_scales).argmin()) for at in range(num_blocks)]
        scales = np.array([map_of_scales[code] * outer[at // inner] for at, code in enumerate(codes)], np.float32)
        scales += np.float32(offset)
        tensors |= {"weight.nested_absmax": torch.tensor(outer), "weight.nested_quant_map": torch.tensor(map_of_scales)}
        state |= {"nested_blocksize": inner, "nested_dtype": "float32", "nested_offset": offset}
        tensors["weight.absmax"] = torch.tensor(codes, dtype=torch.uint8)
    else:
        tensors["weight.absmax"] = torch.tensor(scales)
    nibbles = [int(abs(number / scales[at // blocksize] - table).argmin()) for at, number in enumerate(flat)]
    stored = [nibbles[at] << 4 | nibbles[at + 1] for at in range(0, len(nibbles), 2)]
    tensors |= {
        "weight": torch.tensor(stored, dtype=torch.uint8)[:, None],
        "weight.quant_map": torch.tensor(table),
        f"weight.quant_state.bitsandbytes__{kind}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    made = np.array([table[code] * scales[at // blocksize] for at, code in enumerate(nibbles)], np.float32)
    return tensors, made.reshape(weight.shape)


def eight_bits(weight: Floats) -> Made:
    """bitsandbytes' LLM.int8."""
    largest = abs(weight).max(1)
    codes = np.array(
        [[round(float(one) * 127 / float(top)) for one in row] for row, top in zip(weight, largest, strict=True)]
    )
    made = codes.astype(np.float32) * (torch.tensor(largest) / 127).numpy()[:, None]
    tensors = {"weight": torch.tensor(codes.astype(np.int8)), "SCB": torch.tensor(largest)}
    return tensors | {"weight_format": torch.tensor(0, dtype=torch.uint8)}, made


Quantise = Callable[[Floats], Made]


def save_quantised(
    base: Path, folder: Path, quantise: Quantise, config: Mapping[str, Any], *, skip: Sequence[str] = ("lm_head",)
) -> tuple[Path, Path]:
    """Quantise the linear layers of a model; return the folder with it, and one with the same numbers in 32 bit."""
    quantised, plain = folder / "quantised", folder / "plain"
    for one in (quantised, plain):
        shutil.copytree(base, one)
    tensors = load_file(base / WEIGHTS)
    small, whole = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module == name or tensor.dim() != 2 or any(part in name for part in (*skip, "embed", "norm", "gate.weight")):
            continue
        made, values = quantise(tensor.float().numpy())
        del small[name]
        small |= {f"{module}.{suffix}": one.contiguous() for suffix, one in made.items()}
        whole[name] = torch.tensor(values)
    save_file(small, quantised / WEIGHTS, metadata={"format": "pt"})
    save_file(whole, plain / WEIGHTS, metadata={"format": "pt"})
    fields = json.loads((base / CONFIG).read_text())
    (quantised / CONFIG).write_text(json.dumps({**fields, "quantization_config": dict(config)}))
    return quantised, plain


def _compressed(form: str, weights: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {**group, **more}},
            "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed",
            "sparsity_config": {}, "transform_config": {}, "version": "0.12.2"}  # fmt: skip


def _gptq(
    bits: int, *, group: int = 16, symmetric: bool = True, seed: int | None = None, form: str | None = "gptq"
) -> Any:
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": seed is not None, "sym": symmetric,
              "damp_percent": 0.1, "true_sequential": True, "lm_head": False}  # fmt: skip
    if form is not None:
        config["checkpoint_format"] = form

    def quantise(weight: Floats) -> Made:
        return gptq(weight, bits=bits, group=group, symmetric=symmetric, seed=seed, less_one=form != "gptq_v2")

    return quantise, config


def _packed(bits: int, *, group: int = 16, symmetric: bool = True, seed: int | None = None) -> Any:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "channel" if group == -1 else "group",
               "group_size": None if group == -1 else group, "actorder": None if seed is None else "group",
               "observer": "minmax", "dynamic": False, "block_structure": None}  # fmt: skip

    def quantise(weight: Floats) -> Made:
        return packed(weight, bits=bits, group=group, symmetric=symmetric, seed=seed)

    return quantise, _compressed("pack-quantized", weights)


def _float(strategy: str, block: tuple[int, int], scale_dtype: torch.dtype = torch.bfloat16) -> Any:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False,
               "block_structure": list(block) if strategy == "block" else None}  # fmt: skip
    activations = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}

    def quantise(weight: Floats) -> Made:
        return fp8(weight, block=block, scale="weight_scale", scale_dtype=scale_dtype)

    return quantise, _compressed("float-quantized", weights, input_activations=activations)


def _int(scale: str, *, symmetric: bool = True) -> Any:
    weights = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": scale, "dynamic": False}
    return lambda weight: int8(weight, scale=scale, symmetric=symmetric), _compressed("int-quantized", weights)


def _four(kind: str, *, nested: bool) -> Any:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": kind,
              "bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
              "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0}  # fmt: skip
    return lambda weight: four_bits(weight, kind=kind, nested=nested), config


FORMATS: Mapping[str, tuple[Quantise, Mapping[str, Any]]] = {
    "gptq-4": _gptq(4),
    "gptq-4-asymmetric": _gptq(4, symmetric=False, form=None),
    "gptq-4-order": _gptq(4, symmetric=False, seed=3),
    "gptq-8": _gptq(8, group=-1),
    "gptq-v2-4": _gptq(4, symmetric=False, form="gptq_v2"),
    "gptq-v2-8-order": _gptq(8, symmetric=False, seed=4, form="gptq_v2"),
    "awq": (
        lambda weight: awq(weight, group=16),
        {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm",
         "modules_to_not_convert": ["lm_head"]},
    ),
    "w4a16": _packed(4),
    "w4a16-asymmetric": _packed(4, symmetric=False),
    "w4a16-order": _packed(4, seed=5),
    "w4a16-rows": _packed(4, group=-1),
    "w8a16": _packed(8),
    "w8a16-rows": _packed(8, group=-1),
    "float-tensor": _float("tensor", (0, 0)),
    "float-rows": _float("channel", (1, 0)),
    "float-blocks": _float("block", (16, 32)),
    "w8a8-rows": _int("channel"),
    "w8a8-tensor": _int("tensor"),
    "w8a8-asymmetric": _int("channel", symmetric=False),
    "fp8-blocks": (
        lambda weight: fp8(weight, block=(10, 12), scale="weight_scale_inv"),
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [10, 12]},
    ),
    "fp8-tensor": (
        lambda weight: fp8(weight, block=(0, 0), scale="weight_scale", input_scale=0.5),
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    ),
    "fbgemm-fp8": (
        lambda weight: fp8(weight, block=(1, 0), scale="weight_scale"),
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
    ),
    "nf4": _four("nf4", nested=False),
    "nf4-nested": _four("nf4", nested=True),
    "fp4": _four("fp4", nested=False),
    "llm-int8": (eight_bits, {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}),
}  # fmt: skip
"""How a layer is quantised, and what config.json says of it."""
