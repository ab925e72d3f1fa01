"""Ranks beside the test's own process, which is the first: forked from a server that has imported what they need."""

import itertools
import random
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from support.engines import DrivenEngine
from support.families import INVOCATION, MORE
from support.forked import fork
from support.models import num_rows_of

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.ranks import Lost, on_ranks
from lorafleet_inference.model.ranks.messages import Pipes

NUM_TOKENS = 4
SAMPLING = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, num_logprobs=MORE)
LENGTHS = (33, 1, 47, 17)
MAX_DIFFERENCE = 1e-3
"""Of log-probabilities: sums of several ranks are rounded in another order."""


class ForkedRank:
    """A rank's process."""

    where = ""

    def __init__(self, pipes: Pipes) -> None:
        ends = (pipes.life, pipes.steps, pipes.loads)
        self.process = fork("support.forked_programs:rank", [], files=[end.fileno() for end in ends])

    def wait(self, timeout_seconds: float) -> int | None:
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self.process.kill()


class RankedEngine(DrivenEngine):
    """An engine on several ranks."""

    lost: list[Lost]
    ranks: list[ForkedRank]
    """From 1 on."""


@contextmanager
def ranked(config: EngineConfig, size: int, lost: list[Lost] | None = None, **options: Any) -> Iterator[RankedEngine]:
    """Run an engine on so many ranks, each with one thread. `lost`: what to note there; `options`: of `on_ranks`."""
    lost = [] if lost is None else lost
    ranks: list[ForkedRank] = []

    def run(pipes: Pipes) -> ForkedRank:
        ranks.append(ForkedRank(pipes))
        return ranks[-1]

    config = replace(config, tensor_parallel_size=size, num_threads=1)
    with on_ranks(config, "warning", "text", lost.append, run, **options) as (runner, draft_runner):
        engine = RankedEngine(config, runner=runner, draft_runner=draft_runner)
        engine.lost, engine.ranks = lost, ranks
        yield engine
    codes = [rank.wait(0) for rank in ranks]
    assert lost or not any(codes), codes


def answers(engine: DrivenEngine, adapters: dict[str, Path]) -> dict[str, tuple[tuple[int, ...], torch.Tensor]]:
    """Serve requests that join while others run; return the tokens and the log-probabilities that chose each."""
    engine.register(adapters)
    rng = random.Random(7)
    lengths = itertools.cycle(LENGTHS)
    asked = []
    for adapter in (None, *adapters):
        size = num_rows_of(adapters.get(adapter or ""))
        for number in range(2):
            prompt = [rng.randrange(2, size) for _ in range(next(lengths))]
            name = f"{adapter}-{number}"
            engine.submit(name, adapter, (*prompt, *INVOCATION, 7), SAMPLING)
            engine.step()
            asked.append(name)
    engine.run_until_ended(asked)
    found = {}
    for name in asked:
        events = [event for event in engine.events() if event.request_id == name]
        scores = [[value for _, value in sorted(event.logprobs[0].top)] for event in events if event.logprobs]
        found[name] = engine.tokens(name), torch.tensor(scores)
    return found


def check_answers_as_one(config: EngineConfig, size: int, adapters: Mapping[str, Path]) -> None:
    """See that so many ranks answer as one."""
    wanted = answers(DrivenEngine(config), dict(adapters))
    with ranked(config, size) as engine:
        found = answers(engine, dict(adapters))
        assert not engine.lost
    for name, (tokens, scores) in wanted.items():
        assert found[name][0] == tokens, name
        assert (found[name][1] - scores).abs().max() < MAX_DIFFERENCE, name
