"""Ranks beside the test's own process, which is the first: forked from a server that has imported what they need."""

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from support.engines import DrivenEngine

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.ranks import Lost, on_ranks
from lorafleet_inference.model.ranks.follower import run_rank
from lorafleet_inference.model.ranks.messages import Pipes

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["lorafleet_inference.model.ranks.follower", "support.ranks"])


class ForkedRank:
    """A rank's process."""

    def __init__(self, pipes: Pipes) -> None:
        self.process = _server.Process(target=_serve, args=(pipes,), daemon=True)
        self.process.start()

    def wait(self, timeout_seconds: float) -> int | None:
        self.process.join(timeout_seconds)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


def _serve(pipes: Pipes) -> None:
    sys.exit(run_rank(pipes.steps.recv(), pipes))


class RankedEngine(DrivenEngine):
    """An engine on several ranks."""

    lost: list[Lost]
    ranks: list[ForkedRank]
    """From 1 on."""


@contextmanager
def ranked(config: EngineConfig, size: int, lost: list[Lost] | None = None, **options: float) -> Iterator[RankedEngine]:
    """Run an engine on so many ranks, each with one thread. `lost`: what to note there; `options`: of `on_ranks`."""
    lost = [] if lost is None else lost
    ranks: list[ForkedRank] = []

    def run(pipes: Pipes) -> ForkedRank:
        ranks.append(ForkedRank(pipes))
        return ranks[-1]

    config = replace(config, tensor_parallel_size=size, num_threads=1)
    with on_ranks(config, "warning", "text", lost.append, run, **options) as runner:
        engine = RankedEngine(config, runner=runner)
        engine.lost, engine.ranks = lost, ranks
        yield engine
    codes = [rank.process.exitcode for rank in ranks]
    assert lost or not any(codes), codes
