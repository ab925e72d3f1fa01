"""Paged attention by kernels equals attention written out, and reads the keys that are seen alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from support.triton_launches import Launches, launches
from support.triton_sizes import SMALL

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.triton.fixed import FixedTables, Room
from lorafleet_inference.kernels.triton.fixed_prompts import FixedPrompts, fill
from lorafleet_inference.kernels.triton.launch import launching
from lorafleet_inference.kernels.triton.paged import AttentionStep
from lorafleet_inference.kernels.triton.step import Given, StepBlock


@dataclass(frozen=True)
class Case:
    """`sequences`: tokens known before the step, and computed in it."""

    sequences: tuple[tuple[int, int], ...] = ((0, 1), (16, 1), (0, 20), (69, 1), (37, 9))
    heads: int = 4
    groups: int = 2
    width: int = 16
    value_width: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    bias: bool = False
    splits: bool = False
    """Whether the context is long enough for several programs a sequence."""


DECODES = ((0, 1), (32, 1), (69, 1))
LONG = ((600, 1), (3, 1))
CASES = {
    "plain": Case(),
    "decodes": Case(DECODES),
    "chunks": Case(((0, 33), (16, 16), (5, 2))),
    "window": Case(window=10),
    "window of a token": Case(DECODES, window=1),
    "window across chunks": Case(((40, 25),), window=24),
    "softcap": Case(softcap=2.0),
    "sinks": Case(sinks=True),
    "alibi": Case(bias=True),
    "all of it": Case(window=20, softcap=5.0, sinks=True, bias=True),
    "heads that fill no tile": Case(heads=6, groups=2, width=24, value_width=40),
    "one key head": Case(heads=20, groups=1),
    "a key head each": Case(DECODES, heads=3, groups=3, width=64, value_width=64),
    "wide heads": Case(((40, 1), (0, 3)), heads=8, groups=1, width=256, value_width=256),
    "splits": Case(LONG, splits=True),
    "splits, all of it": Case(LONG, window=500, softcap=5.0, sinks=True, bias=True, splits=True),
}

FLOAT32 = ("all of it", "heads that fill no tile", "splits, all of it")
FP8 = ("plain", "window across chunks", "heads that fill no tile", "wide heads", "splits, all of it")
DTYPES = [(name, torch.bfloat16, False) for name in CASES] + [(name, torch.float32, False) for name in FLOAT32]
DTYPES += [(name, torch.bfloat16, True) for name in FP8]
DTYPES += [("all of it", dtype, True) for dtype in (torch.float32, torch.float16)]


class Setup:
    """Pages with a NaN wherever no key of a sequence lies, and what attention written out answers.

    `in_fp8`: of the keys and values as pages of 8 bits say them.
    """

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device, *, in_fp8: bool = False) -> None:
        torch.manual_seed(1)
        self.case = case
        num_blocks = [-(-(known + new) // KV_BLOCK_TOKENS) for known, new in case.sequences]
        free = torch.randperm(sum(num_blocks) + 2).tolist()
        shape = (len(free), case.groups, KV_BLOCK_TOKENS)
        keys, values = (
            torch.full((*shape, width + 1), 255, dtype=fp8_pages.DTYPE)  # of both codes and exponents it is NaN
            if in_fp8
            else torch.full((*shape, width), float("nan"), dtype=dtype)
            for width in (case.width, case.value_width)
        )
        num_tokens = sum(new for _, new in case.sequences)
        # strided as transformers gives them
        query = torch.randn(num_tokens, case.heads, case.width).to(dtype).transpose(0, 1)
        longest = max(map(sum, case.sequences))
        self.scale = case.width**-0.5
        self.sinks = torch.randn(case.heads).to(dtype) if case.sinks else None
        self.bias = torch.randn(case.heads, longest).to(dtype) if case.bias else None
        self.spans, new_keys, new_values, slots, right = [], [], [], [], []
        begin = 0
        for (known, new), number in zip(case.sequences, num_blocks, strict=True):
            blocks = [free.pop() for _ in range(number)]
            k, v = (torch.randn(known + new, case.groups, width).to(dtype) for width in (case.width, case.value_width))
            at = torch.tensor(blocks).repeat_interleave(KV_BLOCK_TOKENS)[: known + new] * KV_BLOCK_TOKENS
            at += torch.arange(known + new) % KV_BLOCK_TOKENS
            place = at[:known] // KV_BLOCK_TOKENS, at[:known] % KV_BLOCK_TOKENS
            for pages, some in ((keys, k), (values, v)):
                fp8_pages.write(some[:known].transpose(0, 1), pages, *place)
            self.spans.append((begin, begin + new, known, blocks))
            new_keys.append(k[known:])
            new_values.append(v[known:])
            slots.append(at[known:])
            if in_fp8:
                k, v = (fp8_pages.decode(*fp8_pages.encode(some), dtype) for some in (k, v))
            right.append(self._written_out(query[:, begin : begin + new], k, v, known))
            begin += new
        self.right = torch.cat(right)
        self.query, self.keys, self.values = query.to(device), keys.to(device), values.to(device)
        self.new = [torch.cat(some).to(device).transpose(0, 1) for some in (new_keys, new_values)]
        self.slots = torch.cat(slots).to(device)
        self.out = torch.full((num_tokens, case.heads, case.value_width), float("nan"), dtype=dtype, device=device)

    def _written_out(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, known: int) -> torch.Tensor:
        """query [H, T, D], keys [N, G, D], values [N, G, E]; returns [T, H, E]."""
        case = self.case
        repeated = (some.double().repeat_interleave(case.heads // case.groups, 1) for some in (keys, values))
        k, v = repeated
        scores = torch.einsum("htd,nhd->htn", query.double(), k) * self.scale
        if case.softcap is not None:
            scores = torch.tanh(scores / case.softcap) * case.softcap
        if self.bias is not None:
            scores += self.bias[:, None, : scores.shape[2]].double()
        at, of = torch.arange(scores.shape[2])[None, :], torch.arange(known, known + scores.shape[1])[:, None]
        seen = (at <= of) if case.window is None else (at <= of) & (at > of - case.window)
        scores = scores.masked_fill(~seen, float("-inf"))
        if self.sinks is not None:
            sinks = self.sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)
            scores = torch.cat([scores, sinks], -1)
        weights = scores.softmax(-1)[..., : at.shape[1]]
        return torch.einsum("htn,nhd->thd", weights, v)

    def run(self, order: int | None = None) -> Launches:
        """Write and attend, and return what was launched."""
        with launches(order) as seen:
            self.attend()
        return seen

    def attend(self) -> None:
        """Write and attend."""
        self.attend_by(AttentionStep(SMALL, StepBlock(self.slots.device), self.spans, Given(self.slots)))

    def attend_by(self, step: AttentionStep) -> None:
        """Write and attend by a step that is prepared."""
        case, device = self.case, self.slots.device
        assert step.can_attend(self.query, self.values)
        step.write(*self.new, self.keys, self.values)
        sinks, bias = (None if one is None else one.to(device) for one in (self.sinks, self.bias))
        step.attend(
            self.query, self.keys, self.values, self.out,
            scale=self.scale, window=case.window, softcap=case.softcap, sinks=sinks, key_bias=bias,
        )  # fmt: skip

    def check(self) -> None:
        """out is what attention written out answers, and without a NaN."""
        tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(self.out.dtype, 1e-4)
        torch.testing.assert_close(self.out.cpu().double(), self.right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "dtype", "in_fp8"), DTYPES, ids=str)
def test_equals_attention_written_out(device: torch.device, name: str, dtype: torch.dtype, in_fp8: bool) -> None:
    setup = Setup(CASES[name], dtype, device, in_fp8=in_fp8)
    seen = setup.run()
    setup.check()
    assert ("merge" in seen.kernels) == CASES[name].splits


@pytest.mark.parametrize("has_decodes", [True, False])
def test_tables_of_a_captured_step_with_prompts_answer_alike(device: torch.device, has_decodes: bool) -> None:
    """Prompts in pieces of 8 tokens, in tables with more room than there are sequences, pieces and blocks."""
    setup = Setup(CASES["all of it"], torch.float32, device)
    num_rows, num_tokens = len(setup.spans) + 2, len(setup.slots)
    num_blocks = max(len(blocks) for *_, blocks in setup.spans)
    room = Room(
        num_rows, 0, num_blocks=num_blocks + 3, num_tokens=num_tokens,
        num_decodes=num_rows * has_decodes, num_pieces=num_tokens // 8 + num_rows,
    )  # fmt: skip
    tables = FixedTables(room, device)
    for sent in (False, True):  # the first time with other numbers
        here = tables.begin()
        here["slots"][:] = setup.slots.cpu().numpy()
        begins, ends, starts = (np.array([span[at] for span in setup.spans]) for at in range(3))
        blocks = np.zeros((len(setup.spans), num_blocks), np.int32)
        for row, (*_, some) in enumerate(setup.spans):
            blocks[row, : len(some)] = some
        fill(here, begins, starts * sent, ends - begins, blocks, piece_tokens=8)
        tables.send()
    longest = max(start + end - begin for begin, end, start, _ in setup.spans)
    setup.attend_by(FixedPrompts(SMALL, tables, longest, 8))
    setup.check()


@pytest.mark.parametrize(("order", "in_fp8"), [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize("name", ["all of it", "splits, all of it"])
def test_any_order_of_the_programs_does(device: torch.device, name: str, order: int, in_fp8: bool) -> None:
    setup = Setup(CASES[name], torch.bfloat16, device, in_fp8=in_fp8)
    setup.run(order)
    setup.check()


@pytest.mark.parametrize(
    "name", ["decodes", "window", "window of a token", "splits", "splits, all of it", "wide heads"]
)
def test_decode_reads_the_keys_that_are_seen_alone(device: torch.device, name: str) -> None:
    if device.type == "cuda":
        pytest.skip("bytes are counted by the interpreter")
    case = CASES[name]
    seen = Setup(case, torch.bfloat16, device).run()
    lengths = [known + 1 for known, new in case.sequences if new == 1]
    keys = sum(min(length, case.window or length) for length in lengths) * case.groups
    assert seen.read["decode", "keys"] == keys * case.width * 2
    assert seen.read["decode", "values"] == keys * case.value_width * 2


@pytest.mark.parametrize("name", ["decodes", "window", "splits, all of it"])
def test_in_8_bits_decode_reads_a_byte_an_element_and_one_a_row(device: torch.device, name: str) -> None:
    if device.type == "cuda":
        pytest.skip("bytes are counted by the interpreter")
    case = CASES[name]
    seen = Setup(case, torch.bfloat16, device, in_fp8=True).run()
    lengths = [known + 1 for known, new in case.sequences if new == 1]
    rows = sum(min(length, case.window or length) for length in lengths) * case.groups
    assert seen.read["decode", "keys"] == rows * (case.width + 1)
    assert seen.read["decode", "values"] == rows * (case.value_width + 1)
    written = sum(new for _, new in case.sequences) * case.groups
    assert seen.written["write", "keys"] == written * (case.width + 1)
    assert seen.written["write", "values"] == written * (case.value_width + 1)


def test_prefill_reads_no_key_after_its_last_token(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("bytes are counted by the interpreter")
    case = CASES["chunks"]
    seen = Setup(case, torch.bfloat16, device).run()
    keys = sum(map(sum, case.sequences)) * case.groups
    assert seen.read["prefill", "keys"] == keys * case.width * 2
    windowed = Setup(CASES["window across chunks"], torch.bfloat16, device).run()
    first = 40 + 1 - 24
    assert windowed.read["prefill", "keys"] == (65 - first) * case.groups * case.width * 2


def test_write_touches_the_slots_of_the_step_alone(device: torch.device) -> None:
    setup = Setup(CASES["plain"], torch.bfloat16, device)
    before = setup.keys.clone()
    setup.run()
    changed = (setup.keys != before).nan_to_num().any(-1).any(1).flatten() & ~setup.keys.isnan().any(-1).any(
        1
    ).flatten()
    assert changed.nonzero()[:, 0].tolist() == sorted(setup.slots.tolist())


@pytest.mark.parametrize("at", [0, 68, 69])
@pytest.mark.parametrize("which", ["keys", "values"])
@pytest.mark.parametrize("in_fp8", [False, True])
def test_a_value_that_is_not_finite_reaches_its_own_sequence_alone(
    device: torch.device, which: str, at: int, in_fp8: bool
) -> None:
    setup = Setup(CASES["plain"], torch.float32, device, in_fp8=in_fp8)
    bad = torch.full((setup.case.groups, 1, setup.case.width), float("inf" if in_fp8 else "nan"), device=device)
    new = setup.new[0 if which == "keys" else 1]
    if at == 69:
        new[:, setup.spans[3][0]] = bad[:, 0]
    else:
        place = torch.tensor([setup.spans[3][3][at // KV_BLOCK_TOKENS]]), torch.tensor([at % KV_BLOCK_TOKENS])
        fp8_pages.write(bad, getattr(setup, which), *place)
    setup.run()
    bad = setup.out.isnan().flatten(1).any(1)
    assert bad.nonzero()[:, 0].tolist() == [setup.spans[3][0]]


def test_padding_of_the_tables_does_nothing(device: torch.device) -> None:
    def padded(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
        by_name = dict(zip(kernel.arg_names, args, strict=False))
        for name, behind in (("lasts", [-1, -1]), ("rows", [2**30] * 2), ("chunks", [[2**30, 0, 0, 0]] * 2)):
            if name in by_name:
                extra = torch.tensor(behind, dtype=torch.int32, device=device)
                by_name[name] = torch.cat([by_name[name], extra])
        at = {"decode": 0, "merge": 0, "prefill": 1}.get(kernel.fn.__name__)
        grid = tuple(size + 2 if axis == at else size for axis, size in enumerate(grid))
        kernel[grid](*by_name.values(), **constants)

    setup = Setup(CASES["all of it"], torch.float32, device)
    with launching(padded):
        setup.attend()
    setup.check()


def test_what_no_kernel_can_do_is_left_to_torch(device: torch.device) -> None:
    def can(heads: int, width: int, dtype: torch.dtype = torch.float32, kept: torch.dtype = torch.float32) -> bool:
        values = torch.empty(1, 1, KV_BLOCK_TOKENS, width + (kept == fp8_pages.DTYPE), dtype=kept, device=device)
        return AttentionStep.can_attend(torch.empty(heads, 1, width, dtype=dtype, device=device), values)

    assert can(71, 256)
    assert not can(4, 257)
    assert not can(129, 64)
    assert not can(4, 64, torch.float64)
    assert can(4, 256, torch.bfloat16, fp8_pages.DTYPE)
    assert not can(4, 64, torch.float64, fp8_pages.DTYPE)
    assert can(4, 128, torch.float32, fp8_pages.DTYPE)
    assert not can(4, 129, torch.float32, fp8_pages.DTYPE)


def test_many_heads_take_larger_tiles(device: torch.device) -> None:
    setup = Setup(replace(CASES["plain"], heads=71, groups=1), torch.float32, device)
    setup.run()
    setup.check()
