"""Products with quantised experts equal those of each expert's weight, and read what some row chose, once."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from support.quantised_weights import COLUMN_ORDER, ROWS, part_of_columns, weight_of
from support.triton_launches import launches
from torch.nn import functional as F

from lorafleet_inference.kernels.few_tokens import MAX_GROUPED_TOKENS
from lorafleet_inference.model.experts import Sorted
from lorafleet_inference.model.graph_rooms import PROMPT_SIZES
from lorafleet_inference.model.quantization.on_gpu import use_kernels
from lorafleet_inference.model.quantization.stacks import StackedWeight
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight

WIDTH, NUM_EXPERTS = 160, 5
ONE_SCALE = Layout(Codes.FP8, block_rows=None, scale_dtype=torch.float32)
LAYOUTS = {
    "4 bit": Layout(Codes.UINT4, block_columns=32, has_zeros=True),
    "fp8, blocks": Layout(Codes.FP8, block_rows=24, block_columns=128, scale_dtype=torch.float32),
    "fp8, one scale": ONE_SCALE,
    "nf4": Layout(Codes.TABLE4, block_columns=32, is_flat=True, scale_dtype=torch.float32),
    "act order": COLUMN_ORDER,
    "act order, of a rank": COLUMN_ORDER,
}
CHOSEN = {
    "fewer pairs than experts": (1, 3, 3, NUM_EXPERTS),
    "more pairs of an expert than a tile": (0, *[1] * 20, *[3] * 3, 4, NUM_EXPERTS, NUM_EXPERTS),
    "none has an expert": (NUM_EXPERTS,) * 2,
}


def stack_of(experts: Sequence[Sequence[QuantizedWeight]]) -> StackedWeight:
    stack = StackedWeight((len(experts), sum(one.shape[0] for one in experts[0]), experts[0][0].shape[1]))
    for pieces in experts:
        stack.append(pieces, torch.float32)
    return stack


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN)
def test_product_is_that_of_each_experts_weight(device: torch.device, name: str, chosen: tuple[int, ...]) -> None:
    weights = []
    for seed in range(NUM_EXPERTS):
        weight = weight_of(LAYOUTS[name], 2 * WIDTH if name.endswith("rank") else WIDTH, device, seed)
        weights.append(part_of_columns(weight, WIDTH) if name.endswith("rank") else weight)
    numbers = [one.dequantized(torch.float32) for one in weights]
    num_blocks = [one.scales.numel() if one.order is None else ROWS * len(one.order.unique()) for one in weights]
    stack = stack_of([[one] for one in weights])
    assert stack.waits
    assert use_kernels(stack) == (NUM_EXPERTS, 0)
    assert not stack.waits
    experts = torch.tensor(chosen, device=device)
    ends = torch.searchsorted(experts, torch.arange(NUM_EXPERTS, device=device), right=True).int()
    x = torch.randn(len(chosen), WIDTH).to(device)
    with launches(order=1) as seen:
        y = stack.grouped(x, Sorted(experts, ends, 1))
    assert seen.kernels == ["multiply_grouped"]
    for row, expert in enumerate(chosen):
        if expert < NUM_EXPERTS:
            torch.testing.assert_close(y[row], F.linear(x[row], numbers[expert]), rtol=1e-4, atol=1e-4)
    for expert, wanted in enumerate(numbers):
        assert stack[expert].equal(wanted), "each is still there by itself"
    if device.type == "cpu":
        active = sorted(set(chosen) - {NUM_EXPERTS})
        assert seen.read["multiply_grouped", "codes"] == len(active) * ROWS * WIDTH // weights[0].layout.codes.per_byte
        scales = sum(num_blocks[expert] for expert in active) * weights[0].scales.element_size()
        assert seen.read["multiply_grouped", "scales"] == scales
        assert seen.written["multiply_grouped", "y"] == 4 * ROWS * sum(expert < NUM_EXPERTS for expert in chosen)


def test_experts_that_do_not_lie_alike_wait_for_the_device(device: torch.device) -> None:
    four_bits, blocks = LAYOUTS["4 bit"], LAYOUTS["fp8, blocks"]
    without_zeros = replace(four_bits, has_zeros=False, midpoint=8)
    over_ends = [[blocks, blocks]] * 2  # blocks of 24 rows of maps that have 40
    for layouts in ([[four_bits], [without_zeros]], over_ends):
        stack = stack_of([[weight_of(one, WIDTH, device) for one in of_expert] for of_expert in layouts])
        assert use_kernels(stack)[1] == 0
        assert stack.waits


def test_maps_that_have_a_scale_each_are_multiplied_by_at_once(device: torch.device) -> None:
    maps = [[weight_of(ONE_SCALE, WIDTH, device, seed) for seed in (2 * expert, 2 * expert + 1)] for expert in range(2)]
    numbers = [torch.cat([one.dequantized(torch.float32) for one in of_expert]) for of_expert in maps]
    stack = stack_of(maps)
    assert use_kernels(stack) == (2, 0)
    assert not stack.waits
    x = torch.randn(3, WIDTH).to(device)
    y = stack.grouped(x, Sorted(torch.tensor([0, 1, 1]).to(device), torch.tensor([1, 3]).int().to(device), 1))
    wanted = torch.stack([F.linear(row, numbers[expert]) for row, expert in zip(x, (0, 1, 1), strict=True)])
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)


def test_steps_that_are_captured_are_small_enough() -> None:
    assert PROMPT_SIZES[-1] <= MAX_GROUPED_TOKENS
