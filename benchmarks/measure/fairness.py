"""How long a quiet adapter waits for its first token beside a busy one, and what bounds of steps cost of throughput."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from lorafleet_inference.config import EngineConfig
from measure.client import ask_all, stream
from measure.pod import MeasuredPod, serve
from measure.scenarios import Setting, Told
from measure.timing import Figures, figures
from measure.workload import Ask, even

DEFAULT_MS = EngineConfig(model="").target_step_ms
NO_BOUND_MS = 3_600_000.0
"""Longer than any step."""
NUM_BUSY, NUM_QUIET = 50, 40
REQUESTS_OF_A_SEED = 20
QUIET_ANSWER_TOKENS = 4
MAX_PAUSE_SECONDS = 0.5
"""Of the quiet adapter between two requests: who asks again at once always comes when a step has just begun."""
SETTLING_SECONDS = 20.0
"""Until the requests of a busy adapter are spread over all stages of an answer."""
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
    """Of requests of one adapter, all at once; each run follows or precedes one of the pod without a bound."""


def fairness(setting: Setting, targets_ms: Sequence[float], told: Told) -> list[Fairness]:
    """Measure a pod for each target and one without a bound, all of them up at the same time, one at work at a time."""
    targets = [None, *targets_ms]
    adapters = dict(zip((QUIET, BUSY), setting.adapters, strict=False))
    with ExitStack() as stack:
        pods = []
        for target in targets:
            options = [*setting.pod_options(max_resident=2), f"--target-step-ms={target or NO_BOUND_MS}"]
            pods.append(stack.enter_context(serve(setting.model, adapters, options)))
        speeds = _speeds(setting, pods, told)
        results = []
        for target, pod, runs in zip(targets, pods, speeds, strict=True):
            told(f"a quiet adapter beside one with {NUM_BUSY} requests in flight, steps of at most {target} ms")
            alone = asyncio.run(_one_by_one(pod, _quiet_asks(setting, seed=1), max_pause_seconds=0))
            beside = asyncio.run(_beside(setting, pod))
            results.append(Fairness(target, NUM_BUSY, NUM_QUIET, alone, beside, runs))
    return results


def _speeds(setting: Setting, pods: Sequence[MeasuredPod], told: Told) -> list[list[float]]:
    """Return tokens a second of each pod's runs, the pods in turn, every other round in the reverse order."""
    speeds: list[list[float]] = [[] for _ in pods]
    for number in range(-1, setting.repeats):
        told("throughput: warm-up" if number < 0 else f"throughput: run {number + 1}")
        order = range(len(pods)) if number % 2 else range(len(pods) - 1, -1, -1)
        for at in order:
            asks = even(setting.num_requests, 1, setting.lengths, seed=10_000 + 100 * number + at)
            run = figures(asyncio.run(ask_all(pods[at].url, asks, lambda _: BUSY, concurrency=len(asks))))
            if number >= 0:
                speeds[at].append(round(run.tokens_per_second, 1))
    return speeds


def _quiet_asks(setting: Setting, *, seed: int) -> list[Ask]:
    return even(NUM_QUIET, 1, replace(setting.lengths, answer=QUIET_ANSWER_TOKENS), seed=seed)


async def _one_by_one(pod: MeasuredPod, asks: Sequence[Ask], *, max_pause_seconds: float) -> Figures:
    rng, timelines = random.Random("pauses"), []
    for ask in asks:
        await asyncio.sleep(rng.uniform(0, max_pause_seconds))
        timelines.append(await stream(pod.url, ask, QUIET))
    return figures(timelines)


async def _beside(setting: Setting, pod: MeasuredPod) -> Figures:
    async def busy(number: int) -> None:
        for seed in itertools.count(1_000_000 + number, NUM_BUSY):
            for ask in even(REQUESTS_OF_A_SEED, 1, setting.lengths, seed=seed):
                await stream(pod.url, ask, BUSY)

    tasks = [asyncio.create_task(busy(number)) for number in range(NUM_BUSY)]
    try:
        await asyncio.sleep(SETTLING_SECONDS)
        result = await _one_by_one(pod, _quiet_asks(setting, seed=2), max_pause_seconds=MAX_PAUSE_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if not isinstance(end, asyncio.CancelledError):
            raise RuntimeError("a busy request failed") from end
    return result
