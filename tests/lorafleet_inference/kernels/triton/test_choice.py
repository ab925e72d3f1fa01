"""Tokens that a kernel chooses are those that plain torch chooses, ties and edges included, and greedy reads the logits once."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support.triton_launches import launches

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.kernels.triton.choice import choose_tokens
from lorafleet_inference.model.sampler import Draw, choose

SIZE, CHUNK = 150, 128
KINDS = ("spread", "ties", "equal", "few are possible", "large", "zeros of both signs")
WANTED = {
    "greedy": SamplingParams(max_tokens=9, temperature=0),
    "as it is": SamplingParams(max_tokens=9),
    "hot": SamplingParams(max_tokens=9, temperature=3.0),
    "cold": SamplingParams(max_tokens=9, temperature=0.01),
    "hardly above greedy": SamplingParams(max_tokens=9, temperature=1e-30),
    "top_k 1": SamplingParams(max_tokens=9, top_k=1),
    "top_k": SamplingParams(max_tokens=9, top_k=7),
    "top_k of all": SamplingParams(max_tokens=9, top_k=SIZE),
    "top_k of more": SamplingParams(max_tokens=9, top_k=10 * SIZE),
    "top_p": SamplingParams(max_tokens=9, top_p=0.8),
    "top_p of one": SamplingParams(max_tokens=9, top_p=1e-6),
    "top_p of nearly all": SamplingParams(max_tokens=9, top_p=0.999),
    "min_p": SamplingParams(max_tokens=9, min_p=0.2),
    "min_p of one": SamplingParams(max_tokens=9, min_p=1.0),
    "all": SamplingParams(max_tokens=9, temperature=0.7, top_k=20, top_p=0.9, min_p=0.05),
    "top_p within top_k": SamplingParams(max_tokens=9, temperature=2.0, top_k=40, top_p=0.5),
    "top_k within top_p": SamplingParams(max_tokens=9, temperature=2.0, top_k=3, top_p=0.95),
    "typical": SamplingParams(max_tokens=9, typical_p=0.7),
    "biased": SamplingParams(max_tokens=9, logit_bias=((5, 100.0),), top_p=0.9),
    "allowed": SamplingParams(max_tokens=9, allowed_token_ids=(3, 149, 128), top_k=2),
}


def rows_of(kind: str, number: int) -> torch.Tensor:
    """Logits [number, SIZE] float32."""
    generator = torch.Generator().manual_seed(len(kind))
    logits = torch.randn(number, SIZE, generator=generator) * 3
    match kind:
        case "ties":
            logits = logits.round()
        case "equal":
            logits = torch.full_like(logits, -2.5)
        case "few are possible":
            logits[:, torch.arange(SIZE) % 50 != 0] = float("-inf")
        case "large":
            logits *= 1e30
        case "zeros of both signs":
            logits = torch.where(logits > 0, 0.0, -0.0)
    return logits


def draws_of(params: Sequence[SamplingParams]) -> list[Draw]:
    return [Draw(one, seed=number, position=10 * number, num_prompt=3) for number, one in enumerate(params)]


def small(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return choose_tokens(logits, wanted, chunk=CHUNK)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(kind, torch.float32) for kind in KINDS] + [("ties", torch.bfloat16)], ids=str
)
def test_the_same_tokens_as_by_torch(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    params = list(WANTED.values())
    logits = rows_of(kind, len(params)).to(dtype)
    with launches(), np.errstate(over="ignore"):  # what is beyond the largest number is -inf
        choice = choose(logits.to(device), draws_of(params), chooser=small)
    right = choose(logits, draws_of(params))
    by_torch = choose(
        logits.to(device), draws_of(params)
    )  # which takes typical_p: of equal tokens, by the order of its sums
    by_name = [
        (name, one, there if name == "typical" else other)
        for name, one, other, there in zip(WANTED, choice.read(), right.read(), by_torch.read(), strict=True)
    ]
    assert {name: (one, other) for name, one, other in by_name if one != other} == {}


def test_what_is_drawn_depends_on_the_seed_as_by_torch(device: torch.device) -> None:
    params = SamplingParams(max_tokens=9, temperature=1.5, top_k=50, top_p=0.8)
    logits = rows_of("spread", 1).repeat(12, 1)
    draws = [Draw(params, seed=seed, position=0) for seed in range(12)]
    with launches():
        choice = choose(logits.to(device), draws, chooser=small)
    assert choice.read() == choose(logits, draws).read()
    assert len(set(choice.token_ids.tolist())) > 5


def test_rows_that_are_not_finite_choose_nothing(device: torch.device) -> None:
    logits = rows_of("spread", 6)
    logits[0, 7] = float("nan")
    logits[1] = float("-inf")
    logits[2, 149] = float("inf")
    logits[3, 1] = float("-inf")
    params = [SamplingParams(max_tokens=9, top_p=0.9)] * 5 + [WANTED["greedy"]]
    with launches():
        choice = choose(logits.to(device), draws_of(params), chooser=small)
    assert [one is not None for one in choice.read()] == [False, False, False, True, True, True]
    assert choice.token_ids.tolist()[:3] == [0, 0, 0]
    assert choice.read() == choose(logits, draws_of(params)).read()


@pytest.mark.parametrize("order", [1, 2])
def test_any_order_of_the_programs_does(device: torch.device, order: int) -> None:
    params = [WANTED["all"]] * 6
    logits = rows_of("spread", 6)
    with launches(order):
        choice = choose(logits.to(device), draws_of(params), chooser=small)
    assert choice.read() == choose(logits, draws_of(params)).read()


def test_one_launch_reads_no_more_than_the_logits(device: torch.device) -> None:
    """Rows that lie apart, as those of some items of a step do."""
    params = [WANTED["greedy"]] * 3 + [WANTED["top_p"]]
    logits = rows_of("spread", 4).bfloat16()
    wide = torch.full((4, SIZE + 20), float("nan"), dtype=torch.bfloat16, device=device)
    wide[:, :SIZE] = logits
    with launches() as seen:
        choice = choose(wide[:, :SIZE], draws_of(params), chooser=small)
    assert choice.read() == choose(logits, draws_of(params)).read()
    assert seen.kernels == ["choose"]
    if device.type == "cpu":
        assert seen.read["choose", "logits"] == 4 * SIZE * 2
