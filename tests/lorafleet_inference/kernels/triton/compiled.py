"""Compiles what the engine launches, for the architecture that is named, and prints it as JSON.

A program of its own, because the tests' process has Triton's interpreter.
"""

import json
import sys
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from support.triton_compiled import compiling

from lorafleet_inference.adapters.row_layout import Place, RowLayout
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.layer_ops import Activation, HeadSpec
from lorafleet_inference.kernels.triton import blocks
from lorafleet_inference.kernels.triton.affines import AffineStep, affine_site
from lorafleet_inference.kernels.triton.choice import choose_tokens
from lorafleet_inference.kernels.triton.layer_ops import TritonLayerOps, rotate_write
from lorafleet_inference.kernels.triton.paged import AttentionStep
from lorafleet_inference.kernels.triton.rows import AdapterTables, LoraStep, site_of
from lorafleet_inference.kernels.triton.sampling import NUM_WANTED
from lorafleet_inference.kernels.triton.sides import SideSite, SideStep
from lorafleet_inference.kernels.triton.step import Given, StepBlock
from lorafleet_inference.kernels.triton.weights import multiply, multiply_grouped
from lorafleet_inference.model.experts import Pairs
from lorafleet_inference.model.quantization.on_gpu import matrix_of
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight

CUDA = torch.device("cuda", 0)
HIDDEN, NUM_TOKENS = 4096, 300


def pages(dtype: torch.dtype, groups: int, width: int, *, in_fp8: bool) -> torch.Tensor:
    shape = (100, groups, 16, width + in_fp8)
    return torch.empty(*shape, dtype=fp8_pages.DTYPE if in_fp8 else dtype, device=CUDA)


def attend(
    sizes: blocks.Blocks,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    width: int,
    *,
    in_fp8: bool = False,
    **options: Any,
) -> None:
    """A step with decodes and a chunk of a prompt."""
    new: dict[str, Any] = {"dtype": dtype, "device": CUDA}
    keys, values = (pages(dtype, groups, width, in_fp8=in_fp8) for _ in range(2))
    spans = [(0, 1, 9000, range(563)), (1, 2, 3, range(1)), (2, NUM_TOKENS, 0, range(19))]
    slots = Given(torch.empty(NUM_TOKENS, dtype=torch.int64, device=CUDA))
    step = AttentionStep(sizes, StepBlock(CUDA), spans, slots)
    query = torch.empty(NUM_TOKENS, heads, width, **new).transpose(0, 1)
    key = torch.empty(NUM_TOKENS, groups, width, **new).transpose(0, 1)
    step.write(key, key, keys, values)
    options |= {"sinks": torch.empty(heads, **new)} if "sinks" in options else {}
    options |= {"key_bias": torch.empty(heads, 10000, **new)} if "key_bias" in options else {}
    step.attend(query, keys, values, torch.empty(NUM_TOKENS, heads, width, **new), scale=0.1, **options)


def adapt(sizes: blocks.Blocks, dtype: torch.dtype, rank: int, tokens: int) -> None:
    """A site with tokens of one adapter."""
    layout = RowLayout({"module": Place(HIDDEN, HIDDEN, 2 * HIDDEN)}, 90 * HIDDEN)
    site = site_of((0,), layout.places, layout.page, CUDA)
    assert site is not None
    tables = AdapterTables(1, 100, layout, CUDA)
    step = LoraStep(sizes, StepBlock(CUDA), [(0, tokens)], [0], [np.array([rank], dtype=np.int32)], tables)
    x, y = torch.empty(tokens, HIDDEN, dtype=dtype, device=CUDA), torch.empty(tokens, HIDDEN, dtype=dtype, device=CUDA)
    step.add(site, torch.empty(256, layout.page, dtype=dtype, device=CUDA), x, y)


def adapt_sides(sizes: blocks.Blocks, dtype: torch.dtype, tokens: int) -> None:
    """Head and embedding as Llama 3's, and 8 of 128 experts, with tokens of one adapter."""
    new: dict[str, Any] = {"dtype": dtype, "device": CUDA}
    entries = np.tile(np.array([16, 0, 0, 0], dtype=np.int32), (3, 1))
    step = SideStep(sizes, StepBlock(CUDA), [(0, tokens)], [range(64)], [entries], tokens)
    pool, x = torch.empty(64, 1 << 20, **new), torch.empty(tokens, HIDDEN, **new)
    step.add(SideSite(0, HIDDEN, 128256), pool, x, torch.empty(tokens, 128256, **new), None)
    ids = torch.empty(tokens, dtype=torch.int64, device=CUDA)
    step.embed(SideSite(1, 128256, HIDDEN), pool, ids, torch.empty_like(x), 1.0)
    pairs = Pairs(*(torch.empty(tokens, 8, dtype=torch.int64, device=CUDA) for _ in range(2)))
    x, y = torch.empty(8 * tokens, 2048, **new), torch.empty(8 * tokens, 1536, **new)
    step.add(SideSite(2, 2048, 1536, num_experts=128), pool, x, y, pairs)


def scale(_sizes: blocks.Blocks, dtype: torch.dtype) -> None:
    """Scales and offsets of queries, keys and values as Llama 3's."""
    site = affine_site((0, 1, 2), (HIDDEN, 1024, 1024), CUDA)
    step = AffineStep(StepBlock(CUDA), [(0, 8)], [range(4)], [np.array([0, 8, 10], dtype=np.int32)])
    pool = torch.empty(64, 1 << 20, dtype=dtype, device=CUDA)
    step.change(site, pool, torch.empty(8, HIDDEN + 2048, dtype=dtype, device=CUDA))


def pick(_sizes: blocks.Blocks, dtype: torch.dtype) -> None:
    """Tokens of a vocabulary as Llama 3's."""
    logits = torch.empty(128, 128256, dtype=dtype, device=CUDA)
    choose_tokens(logits, torch.empty(128, NUM_WANTED, dtype=torch.float64, device=CUDA))


def between(sizes: blocks.Blocks, dtype: torch.dtype) -> None:
    """What is computed between products, with rows as wide as those of Llama's 8B."""
    new: dict[str, Any] = {"dtype": dtype, "device": CUDA}
    ops = TritonLayerOps(is_dependent=sizes.dependent_launch)
    x, weight = torch.empty(NUM_TOKENS, HIDDEN, **new), torch.empty(HIDDEN, **new)
    ops.norm(x, weight, 1e-5, residual=torch.empty_like(x))
    ops.norm(x, weight, 1e-5)
    ops.gate(torch.empty(NUM_TOKENS, 7 * HIDDEN, **new), Activation.SILU)


def turn(_sizes: blocks.Blocks, dtype: torch.dtype, heads: int, width: int, rotated: int, **options: Any) -> None:
    """Heads, rotated and written."""
    new: dict[str, Any] = {"dtype": dtype, "device": CUDA}
    norms = [torch.empty(width, **new) for _ in range(2)] if "normed" in options else (None, None)
    spec = HeadSpec(heads, heads // 4, width, *norms)
    keys, values = (pages(dtype, heads // 4, width, in_fp8="in_fp8" in options) for _ in range(2))
    cos, sin = (torch.empty(NUM_TOKENS, rotated, **new) for _ in range(2))
    slots = torch.empty(NUM_TOKENS, dtype=torch.int64, device=CUDA)
    rotate_write(torch.empty(NUM_TOKENS, spec.num_rows * width, **new), spec, cos, sin, keys, values, slots)


def quantised(_sizes: blocks.Blocks, dtype: torch.dtype, layout: Layout, tokens: int, *, in_order: bool = True) -> None:
    """A layer as wide as those of Llama's 8B."""
    matrix = matrix_of(QuantizedWeight.empty(layout, (HIDDEN, HIDDEN)).to(CUDA))
    assert matrix is not None
    if not in_order:  # as a rank has it
        columns, of_block = (torch.empty(HIDDEN, dtype=torch.int32, device=CUDA) for _ in range(2))
        matrix = replace(matrix, columns=columns, blocks=of_block)
    multiply(
        torch.empty(tokens, HIDDEN, dtype=dtype, device=CUDA), matrix, torch.empty(HIDDEN, dtype=dtype, device=CUDA)
    )


def quantised_experts(
    _sizes: blocks.Blocks, dtype: torch.dtype, layout: Layout, pairs: int, *, in_order: bool = True
) -> None:
    """Maps of 8 experts as wide as those of Mixtral."""
    each = matrix_of(QuantizedWeight.empty(layout, (HIDDEN, HIDDEN)).to(CUDA))
    assert each is not None
    if not in_order:  # as a rank has them
        columns, of_block = (torch.empty(8, HIDDEN, dtype=torch.int32, device=CUDA) for _ in range(2))
        each = replace(each, columns=columns, blocks=of_block)
    experts, ends = torch.empty(pairs, dtype=torch.int64, device=CUDA), torch.empty(8, dtype=torch.int32, device=CUDA)
    multiply_grouped(torch.empty(pairs, HIDDEN, dtype=dtype, device=CUDA), each, experts, ends)


def main(arch: int) -> None:
    """Print [[case, kernel], ..]."""
    sizes = blocks.AMPERE if arch < 90 else blocks.HOPPER
    early = replace(sizes, dependent_launch=arch >= 10 * blocks.DEPENDENT_LAUNCH)
    told: list[tuple[str, dict[str, Any]]] = []
    for case, function, arguments, options in CASES:
        if arch != HOPPER and case not in EVERYWHERE:
            continue
        with compiling(arch) as built:
            function(early if case.startswith(EARLY) else sizes, *arguments, **options)
        told += [(case, asdict(one)) for one in built]
    json.dump(told, sys.stdout)


BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
FOUR_BITS = Layout(Codes.UINT4, block_columns=128, has_zeros=True)
CASES: tuple[tuple[str, Any, tuple[Any, ...], dict[str, Any]], ...] = (
    ("heads of 64, alibi", attend, (BFLOAT16, 32, 8, 64), {"key_bias": None}),
    ("heads of 128", attend, (BFLOAT16, 32, 8, 128), {}),
    ("heads of 128, window, sinks", attend, (BFLOAT16, 32, 8, 128), {"window": 4096, "sinks": None}),
    ("heads of 256, window, softcap", attend, (BFLOAT16, 8, 4, 256), {"window": 4096, "softcap": 30.0}),
    ("float32", attend, (FLOAT32, 32, 8, 128), {}),
    ("KV in fp8", attend, (BFLOAT16, 32, 8, 128), {"in_fp8": True}),
    ("KV in fp8, heads of 256", attend, (BFLOAT16, 8, 4, 256), {"window": 4096, "softcap": 30.0, "in_fp8": True}),
    ("KV in fp8, float32", attend, (FLOAT32, 32, 8, 128), {"in_fp8": True}),
    ("KV in fp8, rotary", turn, (BFLOAT16, 32, 128, 128), {"in_fp8": None}),
    ("rank 16", adapt, (BFLOAT16, 16, 8), {}),
    ("rank 64", adapt, (BFLOAT16, 64, 8), {}),
    ("rank 256", adapt, (BFLOAT16, 256, 8), {}),
    ("many tokens", adapt, (BFLOAT16, 64, NUM_TOKENS), {}),
    ("many tokens, rank 256", adapt, (BFLOAT16, 256, 16 * NUM_TOKENS), {}),
    ("float32", adapt, (FLOAT32, 64, NUM_TOKENS), {}),
    ("scales", scale, (BFLOAT16,), {}),
    *((f"begins early, rank {rank}", adapt, (BFLOAT16, rank, 8), {}) for rank in (16, 64, 256)),
    ("begins early, many tokens", adapt, (BFLOAT16, 64, NUM_TOKENS), {}),
    ("begins early, many tokens, rank 256", adapt, (BFLOAT16, 256, 16 * NUM_TOKENS), {}),
    ("begins early, float32", adapt, (FLOAT32, 64, NUM_TOKENS), {}),
    ("begins early, between products", between, (BFLOAT16,), {}),
    ("sides", adapt_sides, (BFLOAT16, 8), {}),
    ("sides, many tokens", adapt_sides, (BFLOAT16, NUM_TOKENS), {}),
    ("sides, float32", adapt_sides, (FLOAT32, NUM_TOKENS), {}),
    ("between products", between, (BFLOAT16,), {}),
    ("rotary", turn, (BFLOAT16, 32, 128, 128), {}),
    ("rotary, part of a head", turn, (BFLOAT16, 24, 128, 96), {}),
    ("rotary, norms of heads", turn, (BFLOAT16, 8, 256, 256), {"normed": None}),
    ("4 bit", quantised, (BFLOAT16, FOUR_BITS, 8), {}),
    ("4 bit, many tokens", quantised, (BFLOAT16, FOUR_BITS, NUM_TOKENS), {}),
    ("4 bit, act order", quantised, (BFLOAT16, FOUR_BITS, 8), {"in_order": False}),
    ("4 bit, act order, many tokens", quantised, (BFLOAT16, FOUR_BITS, NUM_TOKENS), {"in_order": False}),
    ("4 bit, 64 tokens", quantised, (BFLOAT16, FOUR_BITS, 64), {}),
    ("fp8, blocks", quantised, (BFLOAT16, Layout(Codes.FP8, 128, 128, scale_dtype=FLOAT32), 8), {}),
    ("int8", quantised, (BFLOAT16, Layout(Codes.UINT8, midpoint=128, scale_dtype=FLOAT32), 8), {}),
    ("nf4", quantised, (BFLOAT16, Layout(Codes.TABLE4, 1, 64, is_flat=True, scale_dtype=FLOAT32), 8), {}),
    ("4 bit experts, few", quantised_experts, (BFLOAT16, FOUR_BITS, 2), {}),
    ("4 bit experts", quantised_experts, (BFLOAT16, FOUR_BITS, 2 * NUM_TOKENS), {}),
    ("4 bit experts, act order", quantised_experts, (BFLOAT16, FOUR_BITS, 2 * NUM_TOKENS), {"in_order": False}),
    ("fp8 experts", quantised_experts, (BFLOAT16, Layout(Codes.FP8, 128, 128, scale_dtype=FLOAT32), 2), {}),
    ("choice", pick, (BFLOAT16,), {}),
    ("choice, float32", pick, (FLOAT32,), {}),
)

EARLY = "begins early"
"""Of cases whose kernels begin before the launch ahead of them is done, where the architecture has it."""
HOPPER = 90
EVERYWHERE = {
    "heads of 128",
    "heads of 256, window, softcap",
    "KV in fp8",
    "KV in fp8, heads of 256",
    "rank 16",
    "rank 256",
    "scales",
    "many tokens",
    "sides",
    "sides, many tokens",
    "choice",
    "begins early, rank 16",
    "begins early, rank 256",
    "begins early, many tokens",
    "begins early, between products",
    "between products",
    "rotary",
    "4 bit",
    "4 bit, many tokens",
    "4 bit, act order",
    "fp8, blocks",
    "4 bit experts",
}
"""Cases that are compiled for each architecture, the others for Hopper alone: each takes seconds."""

main(int(sys.argv[1]))
