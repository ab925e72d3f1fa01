"""Tokens are drawn as a naive twin draws them, whatever else is in the batch."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.model.sampler import Draw, sample, uniform


def naive(logits: list[float], draw: Draw) -> int:
    """The definition, one token at a time."""
    params = draw.params
    if params.temperature == 0:
        return max(range(len(logits)), key=lambda token: (logits[token], -token))
    scaled = [value / params.temperature for value in logits]
    ranked = sorted(range(len(logits)), key=lambda token: (-scaled[token], token))
    ranked = ranked[: params.top_k or len(ranked)]
    weights = {token: math.exp(scaled[token] - scaled[ranked[0]]) for token in ranked}
    kept, before = [], 0.0
    for token in ranked:
        if before < params.top_p or not kept:
            kept.append(token)
        before += weights[token] / sum(weights.values())
    total = sum(weights[token] for token in kept)
    target = uniform(draw.seed, draw.position) * total
    for token in sorted(kept):
        target -= weights[token]
        if target < 0:
            return token
    return max(kept)


params = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1e-9, 0.25, 0.7, 0.95, 1.0]),
    top_k=st.sampled_from([None, 1, 2, 5, 1000]),
)
draws = st.builds(Draw, params, seed=st.integers(-(1 << 63), (1 << 64) - 1), position=st.integers(0, 1 << 20))
rows = st.lists(st.lists(st.floats(-8, 8, width=32), min_size=9, max_size=9), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(rows=rows, data=st.data())
def test_every_row_is_what_the_naive_twin_draws_for_it_alone(rows: list[list[float]], data: st.DataObject) -> None:
    wanted = [data.draw(draws) for _ in rows]
    for row, draw, got in zip(rows, wanted, sample(torch.tensor(rows), wanted), strict=True):
        expected = naive(row, draw)
        if got.token_id != expected:  # float32 against float64 at the edge of a token's interval, or of top_p
            nudged = {
                naive(row, Draw(SamplingParams(max_tokens=1, temperature=draw.params.temperature, top_k=draw.params.top_k,
                                               top_p=draw.params.top_p + epsilon), draw.seed, draw.position))
                for epsilon in (-1e-6, 1e-6)
            }  # fmt: skip
            assert got.token_id in nudged, (expected, got, draw)
        alone = sample(torch.tensor([row]), [draw])[0]
        assert alone == got


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = [Draw(SamplingParams(max_tokens=1), seed=seed, position=3) for seed in range(4000)]
    counts = Counter(one.token_id for one in sample(probabilities.log().repeat(4000, 1), draws))
    for token, probability in enumerate(probabilities.tolist()):
        deviation = math.sqrt(4000 * probability * (1 - probability))
        assert abs(counts[token] - 4000 * probability) < 4 * deviation


def test_uniform_numbers_are_even_and_all_different() -> None:
    numbers = [uniform(seed, position) for seed in range(60) for position in range(60)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    tenths = Counter(int(number * 10) for number in numbers)
    assert all(abs(tenths[tenth] - 360) < 4 * math.sqrt(360 * 0.9) for tenth in range(10))


@pytest.mark.parametrize("top_p", [1e-12, 0.4])
def test_the_most_likely_token_is_always_kept(top_p: float) -> None:
    draws = [Draw(SamplingParams(max_tokens=1, top_p=top_p), seed, 0) for seed in range(50)]
    logits = torch.tensor([[0.0, 3.0, 1.0, -2.0]]).repeat(50, 1)
    assert {one.token_id for one in sample(logits, draws)} == {1}


def test_logprobs_are_of_the_model_before_any_filter() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5]])
    asked = SamplingParams(max_tokens=1, temperature=0.5, top_k=1, num_logprobs=2)
    none = SamplingParams(max_tokens=1, temperature=0)
    first, second = sample(logits, [Draw(asked, 1, 1), Draw(none, 1, 1)])
    expected = logits[0].log_softmax(-1).tolist()
    assert first.logprobs is not None
    assert first.logprobs.chosen == pytest.approx(expected[1])
    assert first.logprobs.top == ((1, pytest.approx(expected[1])), (0, pytest.approx(expected[0])))
    assert second.logprobs is None


def test_more_logprobs_than_tokens_give_all_tokens() -> None:
    asked = SamplingParams(max_tokens=1, temperature=0, num_logprobs=20)
    (only,) = sample(torch.tensor([[1.0, 2.0, 0.5]]), [Draw(asked, 1, 1)])
    assert only.logprobs is not None
    assert [token for token, _ in only.logprobs.top] == [1, 0, 2]


def test_a_large_vocabulary_loses_no_token_to_rounding() -> None:
    size = 200_000
    logits = torch.zeros(1, size)
    last = [Draw(SamplingParams(max_tokens=1), seed, 0) for seed in range(200)]
    got = [one.token_id for draw in last for one in sample(logits, [draw])]
    for draw, token in zip(last, got, strict=True):
        assert abs(token - uniform(draw.seed, 0) * size) < 2


def test_half_precision_logits_are_taken() -> None:
    draw = Draw(SamplingParams(max_tokens=1, temperature=0), random.randrange(9), 0)
    assert sample(torch.tensor([[0.0, 5.0]], dtype=torch.bfloat16), [draw])[0].token_id == 1
