"""Tokens are drawn as a naive twin draws them, whatever else is in the batch."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.plan import Sampled
from lorafleet_inference.model.occurrences import Occurrences
from lorafleet_inference.model.sampler import Draw, choose
from lorafleet_inference.model.uniform import uniform, uniforms

EOS = 8
LARGEST = torch.finfo(torch.float32).max


def sample(logits: torch.Tensor, draws: Sequence[Draw], eos_token_ids: Sequence[int] = ()) -> list[Sampled | None]:
    return choose(logits, draws, eos_token_ids).read()


def adjusted(logits: list[float], draw: Draw) -> list[float]:
    params, answer = draw.params, draw.answer
    out = list(logits)
    for token, bias in params.logit_bias:
        out[token] += bias
    if params.penalises:
        assert draw.occurrences is not None
        for token in draw.occurrences.token_ids.tolist():
            out[token] = (
                out[token] / params.repetition_penalty if out[token] > 0 else out[token] * params.repetition_penalty
            )
            out[token] -= params.frequency_penalty * answer.count(token) + params.presence_penalty * (token in answer)
    if draw.position - draw.num_prompt < params.min_tokens:
        for token in (*params.stop_token_ids, *([] if params.ignore_eos else [EOS])):
            out[token] = -LARGEST
    for word in params.bad_words:
        if (*answer, word[-1])[-len(word) :] == word:
            out[word[-1]] = -LARGEST
    if params.allowed_token_ids:
        out = [value if token in params.allowed_token_ids else -math.inf for token, value in enumerate(out)]
    return out


def kept(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """Weights of the tokens that may be drawn."""
    scaled = [value / params.temperature for value in logits]
    ranked = sorted(range(len(logits)), key=lambda token: (-scaled[token], token))[: params.top_k or len(logits)]
    weights = {token: math.exp(scaled[token] - scaled[ranked[0]]) for token in ranked}
    ranked = until(ranked, weights, params.top_p)
    ranked = [token for token in ranked if weights[token] >= params.min_p]
    total = sum(weights[token] for token in ranked)
    logprobs = {token: math.log(weights[token] / total) for token in ranked if weights[token] > 0}
    if params.typical_p < 1.0:
        entropy = -sum(math.exp(value) * value for value in logprobs.values())
        ranked = sorted(logprobs, key=lambda token: (abs(-logprobs[token] - entropy), token))
        ranked = until(ranked, weights, params.typical_p)
    return {token: weights[token] for token in ranked}


def until(ranked: list[int], weights: dict[int, float], mass: float) -> list[int]:
    """The first tokens that together have the mass; at least one."""
    total, before, chosen = sum(weights[token] for token in ranked), 0.0, []
    for token in ranked:
        if mass >= 1.0 or before < mass or not chosen:
            chosen.append(token)
        before += weights[token] / total
    return chosen


def naive(logits: list[float], draw: Draw) -> int:
    """The definition, one token at a time."""
    wanted = adjusted(logits, draw)
    if draw.params.temperature == 0:
        return max(range(len(wanted)), key=lambda token: (wanted[token], -token))
    weights = kept(wanted, draw.params)
    target = uniform(draw.seed, draw.position) * sum(weights.values())
    for token in sorted(weights):
        target -= weights[token]
        if target < 0:
            return token
    return max(weights)


tokens = st.integers(0, 8)
params = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1e-9, 0.25, 0.7, 0.95, 1.0, 1.0]),
    top_k=st.sampled_from([None, None, 1, 2, 5, 1000]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.2, 1.0]),
    typical_p=st.sampled_from([1.0, 1.0, 1e-9, 0.3, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 2.0]),
    presence_penalty=st.sampled_from([0.0, -1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5, -0.5]),
    logit_bias=st.lists(
        st.tuples(tokens, st.sampled_from([-100.0, -1.0, 2.5])), max_size=3, unique_by=lambda p: p[0]
    ).map(tuple),
    stop_token_ids=st.lists(tokens, max_size=2).map(tuple),
    allowed_token_ids=st.lists(tokens, max_size=9).map(tuple),
    bad_words=st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    min_tokens=st.integers(0, 3),
)


def drawn(params: SamplingParams, seed: int, prompt: Sequence[int], answer: Sequence[int]) -> Draw:
    """As after steps that chose the tokens of the answer one by one."""
    known = [*prompt]
    occurrences = Occurrences(known, len(prompt))
    for token in answer:
        known.append(token)
        occurrences.see(known)
    assert set(occurrences.token_ids.tolist()) == set(known)
    return Draw(params, seed, len(known), len(prompt), tuple(answer), occurrences)


@st.composite
def draws(draw: st.DrawFn) -> Draw:
    prompt, answer = draw(st.lists(tokens, min_size=1, max_size=6)), draw(st.lists(tokens, max_size=6))
    seed = draw(st.integers(-(1 << 63), (1 << 64) - 1))
    return drawn(draw(params), seed, prompt, answer)


rows = st.lists(st.lists(st.integers(-64, 64).map(lambda n: n / 8), min_size=9, max_size=9), min_size=1, max_size=6)


@settings(max_examples=400, deadline=None)
@given(rows=rows, data=st.data())
def test_every_row_is_what_the_naive_twin_draws_for_it_alone(rows: list[list[float]], data: st.DataObject) -> None:
    wanted = [data.draw(draws()) for _ in rows]
    for row, draw, got in zip(rows, wanted, sample(torch.tensor(rows), wanted, [EOS]), strict=True):
        assert got is not None
        if got.token_id != naive(row, draw):  # float32 against float64: at an edge, either side will do
            nudges = itertools.product((-1e-5, 0, 1e-5), repeat=3)
            nudged = {naive(row, nudge(draw, *by)) for by in nudges}
            assert got.token_id in nudged, (naive(row, draw), got, draw)
        assert sample(torch.tensor([row]), [draw], [EOS])[0] == got


def nudge(draw: Draw, top: float, least: float, typical: float) -> Draw:
    """The same draw with thresholds a hair off."""
    one = draw.params
    top_p = one.top_p if one.top_p >= 1 else one.top_p + top
    typical_p = one.typical_p if one.typical_p >= 1 else one.typical_p + typical
    changed = msgspec.structs.replace(
        one, top_p=top_p, typical_p=typical_p, min_p=one.min_p and one.min_p * (1 + least)
    )
    return msgspec.structs.replace(draw, params=changed)


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


def test_uniform_numbers_of_many_are_those_of_each() -> None:
    seeds = [0, 1, -1, 1 << 63, (1 << 64) - 1, 1 << 70, 12345678901234567890]
    positions = [0, 1, 17, 131071]
    pairs = [(seed, position) for seed in seeds for position in positions]
    wrapped = np.array([seed % (1 << 64) for seed, _ in pairs], np.uint64)
    together = uniforms(wrapped, np.array([position for _, position in pairs]))
    assert together.tolist() == [uniform(seed, position) for seed, position in pairs]


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
    draw = Draw(SamplingParams(max_tokens=1, temperature=0), 8, 0)
    assert sample(torch.tensor([[0.0, 5.0]], dtype=torch.bfloat16), [draw])[0].token_id == 1


def test_no_end_before_min_tokens() -> None:
    likely_eos = torch.tensor([[0.0, 1.0, 9.0]])
    asked = SamplingParams(max_tokens=9, temperature=0, min_tokens=2, stop_token_ids=(1,))
    chosen = [sample(likely_eos, [Draw(asked, 0, position, 5)], [2])[0].token_id for position in (5, 6, 7)]
    assert chosen == [0, 0, 2]


def test_penalties_leave_logprobs_alone() -> None:
    asked = SamplingParams(max_tokens=9, temperature=0, presence_penalty=5.0, num_logprobs=1)
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    (got,) = sample(logits, [drawn(asked, 0, [0], [1])])
    assert got.token_id == 0
    assert got.logprobs is not None
    assert got.logprobs.chosen == pytest.approx(float(logits.log_softmax(-1)[0, 0]))
    assert got.logprobs.top[0][0] == 1


WILD = [3.4e38, -3.4e38, 1e38, -1e38, 1e30, 65504.0, 1.0, 0.0, -math.inf]
EXTREME = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 1.00001e-5, 1.0, 2.0]),
    top_p=st.sampled_from([5e-324, 1e-9, 0.5, 1.0]),
    top_k=st.sampled_from([None, 1, 4, (1 << 31) - 1]),
    min_p=st.sampled_from([0.0, 5e-324, 1.0]),
    typical_p=st.sampled_from([5e-324, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1e-40, 0.01, 1.0, 100.0]),
    presence_penalty=st.sampled_from([-2.0, 2.0]),
    frequency_penalty=st.sampled_from([-2.0, 2.0]),
    logit_bias=st.lists(st.tuples(tokens, st.sampled_from([-100.0, 100.0])), max_size=9, unique_by=lambda p: p[0]).map(
        tuple
    ),
    stop_token_ids=st.lists(tokens, max_size=9).map(tuple),
    allowed_token_ids=st.lists(tokens, max_size=9).map(tuple),
    bad_words=st.lists(tokens.map(lambda token: (token,)), max_size=9).map(tuple),
    min_tokens=st.integers(0, 9),
    num_logprobs=st.sampled_from([None, 0, 9]),
)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from(WILD), min_size=9, max_size=9), min_size=1, max_size=4),
    bad=st.sampled_from([math.nan, math.inf, None]),
    params=st.lists(EXTREME, min_size=5, max_size=5),
    seed=st.integers(0, 1 << 32),
)
def test_rows_that_are_not_finite_choose_nothing_and_wild_ones_a_token(
    rows: list[list[float]], bad: float | None, params: list[SamplingParams], seed: int
) -> None:
    """Whatever is asked for: one bad row beside others, and rows at the edge of what a float32 can be."""
    poison = [-math.inf] * 9 if bad is None else [1.0] * 8 + [bad]
    logits = torch.tensor([poison, *rows])
    wanted = [drawn(one, seed, range(4), range(4, 9)) for one in params[: len(logits)]]
    first, *others = sample(logits, wanted, [EOS])
    assert first is None
    for row, draw, got in zip(rows, wanted[1:], others, strict=True):
        if max(row) == -math.inf:
            assert got is None
            continue
        assert got is not None
        assert 0 <= got.token_id < 9
        assert not draw.params.allowed_token_ids or got.token_id in draw.params.allowed_token_ids
        assert got == sample(torch.tensor([row]), [draw], [EOS])[0]
        if got.logprobs is not None:
            values = [got.logprobs.chosen, *(value for _, value in got.logprobs.top)]
            assert not any(math.isnan(value) or value > 0 for value in values)


@settings(max_examples=100, deadline=None)
@given(
    params=st.lists(st.one_of(params, EXTREME), min_size=1, max_size=4),
    seed=st.integers(0, 1 << 32),
    masked=st.booleans(),
)
def test_choosing_reads_nothing_that_the_device_is_still_to_compute(
    params: list[SamplingParams], seed: int, *, masked: bool
) -> None:
    """Tensors without contents stand for it: whatever reads one raises."""
    mask = np.full(2, 255, np.uint8) if masked else None
    wanted = [msgspec.structs.replace(drawn(one, seed, range(4), range(4, 9)), mask=mask) for one in params]
    choice = choose(torch.empty(len(wanted), 9, device="meta"), wanted, [EOS])
    assert choice.token_ids.shape == (len(wanted),)
    with pytest.raises((NotImplementedError, RuntimeError)):
        choice.read()
