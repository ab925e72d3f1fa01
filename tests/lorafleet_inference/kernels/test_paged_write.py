"""Keys and values reach their slots, and nothing else is written."""

import pytest
import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels.cpu import CpuKernels


@pytest.mark.parametrize("num_tokens", [1, 16, 37])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_as_by_an_index(kernels: CpuKernels, num_tokens: int, is_transposed: bool) -> None:
    torch.manual_seed(num_tokens)
    groups, width, blocks = 3, 5, 6
    source = torch.randn(groups, num_tokens, width)
    if is_transposed:  # columns of a wider product, token by token
        source = torch.randn(num_tokens, groups + 4, width)[:, 2 : 2 + groups].transpose(0, 1)
    slots = torch.randperm(blocks * KV_BLOCK_TOKENS)[:num_tokens]
    ours, right = (torch.full((blocks, groups, KV_BLOCK_TOKENS, width), float("nan")) for _ in range(2))
    right[slots // KV_BLOCK_TOKENS, :, slots % KV_BLOCK_TOKENS] = source.transpose(0, 1)
    assert kernels.write_pages(source, ours, slots)
    assert torch.equal(ours.nan_to_num(7.0), right.nan_to_num(7.0))


def test_what_it_does_not_read_is_left_alone(kernels: CpuKernels) -> None:
    pages = torch.zeros(1, 2, KV_BLOCK_TOKENS, 4)
    slots = torch.tensor([3])
    assert not kernels.write_pages(torch.ones(2, 1, 4, dtype=torch.bfloat16), pages, slots)
    assert not kernels.write_pages(torch.ones(2, 1, 8)[..., ::2], pages, slots)
    assert not pages.any()
