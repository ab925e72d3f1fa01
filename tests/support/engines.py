"""An engine in the test's own process, driven step by step."""

import os
import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import KV_BLOCK_TOKENS, DeviceChoice, EngineConfig
from lorafleet_inference.engine.block_manager import chain_seed, next_hash
from lorafleet_inference.engine.core import Engine, Inbox, Runner
from lorafleet_inference.engine.drafting import DraftRunner
from lorafleet_inference.engine.grammars import GrammarTokenizer
from lorafleet_inference.engine.messages import (
    AdapterKey,
    AdapterStatus,
    DeviceTier,
    FromEngine,
    Pooling,
    RegisterAdapter,
    SamplingParams,
    Submit,
    Tokens,
)
from lorafleet_inference.engine.token_events import TokenEvent
from lorafleet_inference.model.draft import load_runners
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.runner import ModelRunner

if TYPE_CHECKING:
    from lorafleet_inference.device.interface import Graphs
    from lorafleet_inference.kernels.triton.backend import TritonKernels

DEVICE: DeviceChoice = "cuda" if os.environ.get("LORAFLEET_TEST_DEVICE") == "cuda" else "cpu"
"""Where the exactness suite runs its engines; the reference is always on the CPU."""
SMALL: Mapping[str, int] = (
    {"kv_cache_memory_bytes": 256 << 20, "host_cache_bytes": 64 << 20, "max_batch_requests": 64}
    if DEVICE == "cuda"
    else {}
)
"""What an engine may take where many of them share a device: its host cache is pinned there, and each size of a step captured."""


def key_of(name: str) -> AdapterKey:
    """A key that only tests would use."""
    return AdapterKey(name, "sha256:" + name.encode().hex().ljust(64, "0")[:64])


class DrivenEngine:
    """A real engine whose steps the test runs, and all that it said.

    `wrap`: what the engine sees in the runner's place; `triton`, `graphs`: kernels and graphs for a device that would have
    none; `ahead`: whether a step is submitted before the one before is collected; `runner`, `draft_runner`: in place of all these;
    `now`: a clock that stands still tells nothing of what a step takes, so that time decides nothing; `loads_first`: steps wait for
    adapters that are being loaded, so that how fast that is decides nothing either.
    """

    def __init__(
        self,
        config: EngineConfig,
        wrap: Callable[[ModelRunner], Runner] = lambda runner: runner,
        grammar_tokenizer: GrammarTokenizer | None = None,
        triton: "TritonKernels | None" = None,
        graphs: "Graphs | None" = None,
        *,
        ahead: bool | None = None,
        runner: Runner | None = None,
        draft_runner: DraftRunner | None = None,
        now: Callable[[], float] = time.monotonic,
        loads_first: bool = False,
    ) -> None:
        self.loads_first = loads_first
        self.said: list[FromEngine] = []
        self.inbox: Inbox = queue.SimpleQueue()
        if runner is None and config.speculative_model is not None:
            runner, draft_runner = load_runners(config, ahead=ahead)
        elif runner is None:
            runner = ModelRunner(load_model(config), config, triton, graphs, ahead)
            runner.prepare()
        self.runner: Any = runner
        inspect = partial(
            inspect_adapter,
            model=self.runner.facts,
            max_rank=config.max_rank,
            unknown_config_fields=config.unknown_config_fields,
        )
        self.engine = Engine(
            wrap(self.runner),
            config,
            inspect,
            self.said.append,
            self.inbox,
            grammar_tokenizer=grammar_tokenizer,
            draft_runner=draft_runner,
            now=now,
        )
        self.max_step_tokens = 0
        self.most_in_flight = 0
        self.num_preempted = 0

    def register(self, adapters: Mapping[str, Path], *, resident: bool = True) -> None:
        """Register adapters and wait until they are where they were asked to be."""
        for name, folder in adapters.items():
            self.inbox.put(RegisterAdapter(key_of(name), str(folder), resident))
        wanted = DeviceTier.DEVICE if resident else DeviceTier.DISK
        deadline = time.monotonic() + 60
        while {one.key.name for one in self.statuses() if one.tier == wanted} < set(adapters):
            refused = [one for one in self.statuses() if one.reason is not None]
            assert not refused, refused
            assert time.monotonic() < deadline, self.statuses()
            self.step()

    def step(self) -> None:
        """One turn of the engine's loop; never blocks for long."""
        self.engine.drain(wait=False)
        if self.loads_first:
            self.engine._loads._thread._thread.submit(lambda: None).result()
        self.turn()

    def turn(self) -> None:
        """What follows in the loop when all that has come was taken in."""
        plan = self.engine.step()
        self.engine.publish()
        self.most_in_flight = max(self.most_in_flight, self.engine._steps.num_in_flight)
        self.max_step_tokens = max(self.max_step_tokens, plan.num_tokens)
        self.num_preempted += len(plan.preempted)
        if not plan.items:
            time.sleep(0.001)

    def submit(self, request_id: str, adapter: str | None, prompt: Iterable[int], sampling: SamplingParams) -> None:
        """Hand in a request."""
        self.submit_key(request_id, None if adapter is None else key_of(adapter), prompt, sampling)

    def submit_key(
        self, request_id: str, key: AdapterKey | None, prompt: Iterable[int], sampling: SamplingParams
    ) -> None:
        """As `submit`, with the whole key."""
        self.inbox.put(Submit(request_id, tuple(prompt), key, sampling))

    def embed(self, request_id: str, adapter: str | None, prompt: Iterable[int], pooling: Pooling) -> None:
        """Hand in a request for an embedding."""
        key = None if adapter is None else key_of(adapter)
        self.inbox.put(Submit(request_id, tuple(prompt), key, SamplingParams(max_tokens=0), pooling=pooling))

    def run_until_ended(self, request_ids: Iterable[str], timeout_seconds: float = 600) -> None:
        """Step until all these requests have their terminal event."""
        wanted, deadline, num_heard = set(request_ids), time.monotonic() + timeout_seconds, 0
        while True:
            for one in self.said[num_heard:]:
                if isinstance(one, Tokens):
                    wanted.difference_update(event.request_id for event in one.events if event.finish is not None)
            num_heard = len(self.said)
            if not wanted:
                return
            assert time.monotonic() < deadline, wanted
            self.step()

    def num_cached_blocks(self, adapter: str | None, token_ids: Sequence[int]) -> int:
        """How many blocks of a text the prefix cache knows."""
        chain, hashes = chain_seed(None if adapter is None else key_of(adapter)), []
        for begin in range(0, len(token_ids) - KV_BLOCK_TOKENS + 1, KV_BLOCK_TOKENS):
            chain = next_hash(chain, token_ids[begin : begin + KV_BLOCK_TOKENS])
            hashes.append(chain)
        return len(self.engine._blocks.match(hashes))

    def statuses(self) -> list[AdapterStatus]:
        """What was said of adapters."""
        return [one for one in self.said if isinstance(one, AdapterStatus)]

    def events(self) -> list[TokenEvent]:
        """All events of requests so far."""
        return [event for one in self.said if isinstance(one, Tokens) for event in one.events]

    def tokens(self, request_id: str) -> tuple[int, ...]:
        """The answer of a request."""
        return tuple(token for event in self.events() if event.request_id == request_id for token in event.token_ids)

    def answers(self) -> dict[str, tuple[int, ...]]:
        """The answers of all requests, read once: for many, where `tokens` would look through all events for each."""
        found: dict[str, list[int]] = {}
        for event in self.events():
            found.setdefault(event.request_id, []).extend(event.token_ids)
        return {request_id: tuple(tokens) for request_id, tokens in found.items()}
