"""Attention over pages equals attention over the same keys, gathered and written out."""

from dataclasses import dataclass

import pytest
import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.cpu import CpuKernels, PagedDecode

NUM_BLOCKS = 64


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    groups: int = 4
    key_width: int = 64
    value_width: int = 64
    lasts: tuple[int, ...] = (0, 15, 16, 17, 158)
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    key_bias: bool = False
    dtype: torch.dtype = torch.float32


SHAPES = {
    "multi-head": Shape(),
    "grouped": Shape(heads=8, groups=2),
    "multi-query": Shape(heads=7, groups=1, key_width=16, value_width=16),
    "odd widths": Shape(heads=6, groups=3, key_width=20, value_width=12),
    "window": Shape(window=24),
    "window of one page": Shape(window=16, groups=2),
    "window of one": Shape(window=1),
    "softcap": Shape(softcap=2.0),
    "sinks": Shape(heads=8, groups=2, sinks=True),
    "bias": Shape(key_bias=True, window=20),
    "all": Shape(heads=6, groups=2, key_width=24, value_width=40, window=33, softcap=5.0, sinks=True, key_bias=True),
    "one sequence": Shape(lasts=(700,)),
    "bfloat16": Shape(heads=8, groups=2, dtype=torch.bfloat16),
    "8 bits": Shape(heads=8, groups=2, dtype=fp8_pages.DTYPE),
    "all, in 8 bits": Shape(
        heads=6,
        groups=2,
        key_width=24,
        value_width=40,
        window=33,
        softcap=5.0,
        sinks=True,
        key_bias=True,
        dtype=fp8_pages.DTYPE,
    ),
}


def in_8_bits(pages: torch.Tensor) -> torch.Tensor:
    """The same rows in pages of 8 bits."""
    blocks, groups, tokens, width = pages.shape
    made = torch.zeros(blocks, groups, tokens, width + 1, dtype=fp8_pages.DTYPE)
    slots = torch.arange(blocks * tokens)
    fp8_pages.write(pages.transpose(1, 2).flatten(0, 1).transpose(0, 1), made, slots // tokens, slots % tokens)
    return made


def reference(
    query: torch.Tensor, known: tuple[torch.Tensor, torch.Tensor], first: int, shape: Shape, extras: dict
) -> torch.Tensor:
    """query [H, D], known: keys [N, G, D] and values [N, G, E] of one sequence, float64; returns [H, E]."""
    keys, values = known
    repeats = shape.heads // shape.groups
    scores = torch.einsum("hd,nhd->hn", query, keys.repeat_interleave(repeats, 1)) * 0.3
    if shape.softcap is not None:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    if shape.key_bias:
        scores = scores + extras["key_bias"].double()[:, : scores.shape[1]]
    scores[:, :first] = float("-inf")
    if shape.sinks:
        scores = torch.cat([scores, extras["sinks"].double()[:, None]], dim=1)
    weights = scores.softmax(1)[:, : len(keys)]
    return torch.einsum("hn,nhe->he", weights, values.repeat_interleave(repeats, 1))


@pytest.mark.parametrize("name", SHAPES)
def test_equals_attention_written_out(kernels: CpuKernels, name: str) -> None:
    shape = SHAPES[name]
    torch.manual_seed(len(name))
    positions = max(shape.lasts) + 1
    keys = torch.randn(NUM_BLOCKS, shape.groups, KV_BLOCK_TOKENS, shape.key_width)
    values = torch.randn(NUM_BLOCKS, shape.groups, KV_BLOCK_TOKENS, shape.value_width)
    if shape.dtype != fp8_pages.DTYPE:
        keys, values = keys.to(shape.dtype), values.to(shape.dtype)
    free = torch.randperm(NUM_BLOCKS).tolist()
    blocks = [[free.pop() for _ in range(last // KV_BLOCK_TOKENS + 1)] for last in shape.lasts]
    keys[free] = values[free] = float("nan")
    for last, some in zip(shape.lasts, blocks, strict=True):
        first = 0 if shape.window is None else max(0, last + 1 - shape.window)
        for pages in (keys, values):
            for position in [*range(first), *range(last + 1, len(some) * KV_BLOCK_TOKENS)]:
                pages[some[position // KV_BLOCK_TOKENS], :, position % KV_BLOCK_TOKENS] = float("nan")
    if shape.dtype == fp8_pages.DTYPE:
        keys, values = in_8_bits(keys), in_8_bits(values)
    tokens = len(shape.lasts) + 3
    rows = torch.randperm(tokens)[: len(shape.lasts)].tolist()
    query = torch.randn(shape.heads, tokens, shape.key_width)
    extras = {
        "sinks": torch.randn(shape.heads) if shape.sinks else None,
        "key_bias": torch.randn(shape.heads, positions + 5) if shape.key_bias else None,
    }
    out = torch.full((tokens, shape.heads, shape.value_width), 7.0)
    decode = PagedDecode(kernels, rows, shape.lasts, blocks)
    decode.attend(query, keys, values, out, scale=0.3, window=shape.window, softcap=shape.softcap, **extras)
    for row, last, some in zip(rows, shape.lasts, blocks, strict=True):
        known, seen = (
            fp8_pages.gather(pages, torch.tensor(some), torch.float32)
            .transpose(1, 2)
            .flatten(0, 1)[: last + 1]
            .double()
            for pages in (keys, values)
        )
        first = 0 if shape.window is None else max(0, last + 1 - shape.window)
        known[:first] = seen[:first] = 0  # not seen, and NaN
        right = reference(query[:, row].double(), (known, seen), first, shape, extras)
        assert (out[row].double() - right).abs().max() < 1e-5
    others = sorted(set(range(tokens)) - set(rows))
    assert (out[others] == 7.0).all(), "rows of nobody were written"


def test_what_lies_behind_the_last_token_is_not_seen(kernels: CpuKernels) -> None:
    keys, values = torch.randn(2, 1, KV_BLOCK_TOKENS, 8), torch.randn(2, 1, KV_BLOCK_TOKENS, 8)
    query, out = torch.randn(1, 1, 8), torch.empty(1, 1, 8)
    decode = PagedDecode(kernels, [0], [4], [[1]])
    decode.attend(query, keys, values, out, scale=1.0)
    before = out.clone()
    keys[1, :, 5:], values[1, :, 5:] = 1e6, -1e6
    decode.attend(query, keys, values, out, scale=1.0)
    assert torch.equal(out, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("at", "of"), [(0, torch.float32), (6, torch.float32), (20, torch.float32), (20, torch.uint8)])
def test_a_score_that_is_not_finite_makes_its_sequence_nan_and_no_other(
    kernels: CpuKernels, bad: float, at: int, of: torch.dtype
) -> None:
    """Else a maximum would pass it over and a finite, wrong answer would come of it."""
    keys, values = torch.randn(4, 1, KV_BLOCK_TOKENS, 8), torch.randn(4, 1, KV_BLOCK_TOKENS, 8)
    query, out = torch.rand(1, 2, 8) + 0.1, torch.zeros(2, 1, 8)
    decode = PagedDecode(kernels, [0, 1], [22, 22], [[0, 1], [2, 3]])
    kept = in_8_bits if of == fp8_pages.DTYPE else torch.clone
    decode.attend(query, kept(keys), kept(values), out, scale=1.0)
    alone = out[1].clone()
    keys[at // KV_BLOCK_TOKENS, 0, at % KV_BLOCK_TOKENS, 3] = bad
    decode.attend(query, kept(keys), kept(values), out, scale=1.0)
    assert out[0].isnan().all()
    assert torch.equal(out[1], alone)


def test_scores_far_apart_stay_finite(kernels: CpuKernels) -> None:
    keys = torch.zeros(1, 1, KV_BLOCK_TOKENS, 4)
    keys[0, 0, :3, 0] = torch.tensor([1e4, -1e4, 9.99e3])
    values = torch.eye(KV_BLOCK_TOKENS)[None, None].contiguous()
    query, out = torch.tensor([[[1.0, 0, 0, 0]]]), torch.empty(1, 1, KV_BLOCK_TOKENS)
    PagedDecode(kernels, [0], [2], [[0]]).attend(query, keys, values, out, scale=1.0)
    assert torch.allclose(out[0, 0, :3], torch.tensor([1e4, -1e4, 9.99e3]).softmax(0), atol=1e-6)


def test_answers_in_the_dtype_that_is_asked_for(kernels: CpuKernels) -> None:
    keys, values = (torch.randn(2, 2, KV_BLOCK_TOKENS, 32).bfloat16() for _ in range(2))
    query = torch.randn(4, 3, 32).bfloat16()
    wide, narrow = torch.zeros(3, 4, 32), torch.zeros(3, 4, 32, dtype=torch.bfloat16)
    decode = PagedDecode(kernels, [2, 0], [9, 20], [[1], [0, 1]])
    decode.attend(query, keys, values, wide, scale=0.2)
    decode.attend(query, keys, values, narrow, scale=0.2)
    assert torch.equal(narrow, wide.bfloat16())
    assert (narrow[1] == 0).all()
