"""Drawn answers have the distribution of the model, whoever drafts them: counted over many seeds."""

import queue
from collections import Counter
from functools import cache
from itertools import product

import pytest
import torch
from support.tiny_device import TinyDevice, inspect, logits_after, ticking

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.core import Engine
from lorafleet_inference.engine.messages import FromEngine, SamplingParams, Submit, ToEngine, Tokens
from lorafleet_inference.engine.token_events import TokenEvent

NUM_ANSWERS = 800
AT_ONCE = 8
"""As long as nothing is known of what a token costs, no more are drafted."""
ALLOWED = (9, 12, 13)
LAST = 5
PROMPT = (LAST, 9, 12, 13, LAST, 12, 12, 9, LAST, 13, 9, 12, LAST)
"""Whatever follows the last token has followed it before, and was followed by others."""
TEMPERATURE = 16.0
LENGTH = 3


@cache
def answers(*, has_draft_model: bool) -> tuple[Counter[tuple[int, ...]], int, int]:
    """Return how often each answer came, how many tokens were drafted, and how many of them were right."""
    said: list[FromEngine] = []
    inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
    device = TinyDevice(num_blocks=60, max_requests=4 * AT_ONCE)
    # of another mind than the base: it likes 12 after 9, and 13 after 12
    draft = TinyDevice(num_blocks=60, max_requests=4 * AT_ONCE, repeats=True) if has_draft_model else None
    config = EngineConfig(model="", max_batch_requests=4 * AT_ONCE, speculative_tokens=4)
    engine = Engine(device, config, inspect, said.append, inbox, draft_runner=draft, now=ticking()[0])
    for begin in range(0, NUM_ANSWERS, AT_ONCE):
        for seed in range(begin, begin + AT_ONCE):
            # one token more than is counted: the last one of an answer is never drafted
            sampling = SamplingParams(
                max_tokens=LENGTH + 1, temperature=TEMPERATURE, seed=seed, allowed_token_ids=ALLOWED
            )
            inbox.put(Submit(str(seed), PROMPT, None, sampling))
        engine.drain(wait=False)
        while engine.step().items:
            engine.publish()
        engine.publish()
    engine._loads.close()
    engine._choices.grammars.close()
    events: list[TokenEvent] = [event for one in said if isinstance(one, Tokens) for event in one.events]
    tokens: dict[str, tuple[int, ...]] = {}
    for event in events:
        tokens[event.request_id] = (*tokens.get(event.request_id, ()), *event.token_ids)
    num_drafted = sum(event.num_draft_tokens for event in events)
    num_right = sum(event.num_accepted_tokens for event in events)
    return Counter(one[:LENGTH] for one in tokens.values()), num_drafted, num_right


def expected() -> dict[tuple[int, ...], float]:
    """The probability of each answer, from the logits of its tokens one after the other."""
    found = {}
    for answer in product(ALLOWED, repeat=LENGTH):
        probability = 1.0
        for at, token_id in enumerate(answer):
            logits = logits_after((*PROMPT, *answer[:at])).double() / TEMPERATURE
            probability *= logits[list(ALLOWED)].softmax(-1)[ALLOWED.index(token_id)].item()
        found[answer] = probability
    return found


def chance_of(counts: Counter[tuple[int, ...]], probabilities: dict[tuple[int, ...], float]) -> float:
    """Pearson's test: how often counts of this distribution are as far from it as these."""
    assert set(counts) <= set(probabilities)
    number = counts.total()
    far = sum((counts[one] - number * part) ** 2 / (number * part) for one, part in probabilities.items())
    degrees = torch.tensor((len(probabilities) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(far / 2, dtype=torch.float64)))


@pytest.mark.parametrize("has_draft_model", [False, True], ids=["looked-up", "model"])
def test_drawn_answers_have_the_models_own_distribution(*, has_draft_model: bool) -> None:
    counts, num_drafted, num_right = answers(has_draft_model=has_draft_model)
    assert counts.total() == NUM_ANSWERS
    assert num_drafted > NUM_ANSWERS
    assert 0.1 < num_right / num_drafted < 0.9, "right and wrong drafts both count"
    probabilities = expected()
    assert min(probabilities.values()) * NUM_ANSWERS > 5, "or the test says nothing"
    assert chance_of(counts, probabilities) > 0.001


def test_answers_that_follow_their_drafts_have_another_distribution() -> None:
    """What the test above would say if each third answer were as it was drafted: the text after its first token in the prompt."""
    counts, _, _ = answers(has_draft_model=False)
    drafts = {PROMPT[at + 1]: PROMPT[at + 1 : at + 1 + LENGTH] for at in range(0, len(PROMPT) - 1, 4)}
    followed: Counter[tuple[int, ...]] = Counter()
    for answer, number in counts.items():
        followed[drafts[answer[0]]] += number // 3
        followed[answer] += number - number // 3
    assert chance_of(followed, expected()) < 1e-6
