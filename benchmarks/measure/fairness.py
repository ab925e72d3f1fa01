"""How long a quiet adapter waits for its first token beside a busy one, and what that costs the busy one of its throughput."""

import asyncio
import itertools
import random
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from lorafleet_inference.config import EngineConfig
from measure.client import stream
from measure.pod import MeasuredPod, serve
from measure.scenarios import Setting, Told
from measure.timing import Figures, Timeline, figures
from measure.workload import Ask, even

DEFAULT_MS = EngineConfig(model="").target_step_ms
NO_BOUND_MS = 3_600_000.0
"""Longer than any step."""
NUM_BUSY, NUM_QUIET = 50, 40
NUM_ROUNDS = 2
"""So many times all pods in turn, every other time in the reverse order; each has its part of the quiet requests."""
QUIET_ANSWER_TOKENS = 4
MAX_PAUSE_SECONDS = 0.5
"""Of the quiet adapter between two requests: who asks again at once always comes when a step has just begun."""
SETTLING_SECONDS = 30.0
"""Until the requests of a busy adapter are spread over all stages of an answer."""
BUSY_SPREAD = 0.5
"""Answers of the busy adapter are by up to so much of the setting's length shorter or longer: equal ones go on coming in waves."""
DECODED = re.compile(r'^lorafleet_engine_step_tokens_total\{[^}]*phase="decode"[^}]*\} (\S+)$', re.MULTILINE)
QUIET, BUSY = "a0000", "a0001"


@dataclass(slots=True)
class Fairness:
    """What was found with steps of at most so many milliseconds; None is no bound."""

    target_step_ms: float | None
    num_busy: int
    num_requests: int
    alone: Figures
    """Requests of the quiet adapter, one at a time."""
    beside: Figures
    """The same, while so many requests of the busy one are always in flight."""
    tokens_per_second_runs: list[float] = field(default_factory=list)
    """Decoded meanwhile, nearly all of the busy adapter; each run follows or precedes one of the pod without a bound."""


def fairness(setting: Setting, targets_ms: Sequence[float], told: Told) -> list[Fairness]:
    """Measure a pod for each target and one without a bound, all of them up at the same time, one at work at a time."""
    targets = [None, *targets_ms]
    adapters = dict(zip((QUIET, BUSY), setting.adapters, strict=False))
    with ExitStack() as stack:
        pods = []
        for target in targets:
            options = [*setting.pod_options(max_resident=2), f"--target-step-ms={target or NO_BOUND_MS}"]
            pods.append(stack.enter_context(serve(setting.model, adapters, options)))
        found = [
            (targets[at], pods[at], asyncio.run(_alone(setting, pods[at])), list[_Round]()) for at in range(len(pods))
        ]
        for number in range(NUM_ROUNDS):
            for target, pod, _, rounds in found if number % 2 else reversed(found):
                told(f"beside {NUM_BUSY} requests in flight, round {number + 1}: steps of at most {target} ms")
                rounds.append(asyncio.run(_beside(setting, pod, number)))
    return [
        Fairness(
            target,
            NUM_BUSY,
            NUM_QUIET,
            alone,
            figures([one for part in rounds for one in part.timelines]),
            [round(part.tokens_per_second, 1) for part in rounds],
        )
        for target, _, alone, rounds in found
    ]


@dataclass(frozen=True, slots=True)
class _Round:
    timelines: list[Timeline]
    """Of the quiet adapter."""
    tokens_per_second: float


def _quiet_asks(setting: Setting, number: int, *, seed: int) -> list[Ask]:
    return even(number, 1, replace(setting.lengths, answer=QUIET_ANSWER_TOKENS), seed=seed)


async def _alone(setting: Setting, pod: MeasuredPod) -> Figures:
    return figures(await _one_by_one(pod, _quiet_asks(setting, NUM_QUIET, seed=1), max_pause_seconds=0))


async def _one_by_one(pod: MeasuredPod, asks: Sequence[Ask], *, max_pause_seconds: float) -> list[Timeline]:
    rng, timelines = random.Random("pauses"), []
    for ask in asks:
        await asyncio.sleep(rng.uniform(0, max_pause_seconds))
        timelines.append(await stream(pod.url, ask, QUIET))
    return timelines


async def _beside(setting: Setting, pod: MeasuredPod, round_number: int) -> _Round:
    async def busy(number: int) -> None:
        for ask in _busy_asks(setting, seed=1_000 * round_number + number):
            await stream(pod.url, ask, BUSY)

    tasks = [asyncio.create_task(busy(number)) for number in range(NUM_BUSY)]
    try:
        await asyncio.sleep(SETTLING_SECONDS)
        asks = _quiet_asks(setting, NUM_QUIET // NUM_ROUNDS, seed=2 + round_number)
        before, began = await asyncio.to_thread(_num_decoded, pod), time.perf_counter()
        timelines = await _one_by_one(pod, asks, max_pause_seconds=MAX_PAUSE_SECONDS)
        after, ended = await asyncio.to_thread(_num_decoded, pod), time.perf_counter()
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if not isinstance(end, asyncio.CancelledError):
            raise RuntimeError("a busy request failed") from end
    return _Round(timelines, (after - before) / (ended - began))


def _busy_asks(setting: Setting, *, seed: int) -> Iterator[Ask]:
    """Requests without end, whose answers are of different lengths."""
    rng = random.Random(f"{seed} lengths")
    least, most = (round(setting.lengths.answer * factor) for factor in (1 - BUSY_SPREAD, 1 + BUSY_SPREAD))
    for number in itertools.count():
        lengths = replace(setting.lengths, answer=rng.randint(max(1, least), most))
        yield even(1, 1, lengths, seed=1_000_000 * (1 + seed) + number)[0]


def _num_decoded(pod: MeasuredPod) -> float:
    with urllib.request.urlopen(f"{pod.url}/metrics", timeout=30) as answer:
        found = DECODED.search(answer.read().decode())
    assert found is not None, "a pod without its metrics"
    return float(found[1])
