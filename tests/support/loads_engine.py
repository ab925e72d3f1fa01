"""The engine as the adapter manager sees it, in the test's own process: real loads and residency, nothing computed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support.adapter_files import base_facts

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.adapter_loads import AdapterLoads
from lorafleet_inference.engine.load_outcome import Outcome
from lorafleet_inference.engine.merging import Merge
from lorafleet_inference.engine.messages import (
    AdapterKey,
    AdapterStatus,
    Backend,
    DeviceTier,
    EngineBudgets,
    EngineReady,
    EngineStats,
    Kernels,
    RegisterAdapter,
)
from lorafleet_inference.engine.residency import Residency
from lorafleet_inference.errors import AdapterError

MAX_RANK = 16
RANKS_A_PAGE = 8


@dataclass
class Device:
    """Where adapters are copied; a slab is its number of bytes. `broken`: loads fail with this reason as long as it is set."""

    holds: set[AdapterKey] = field(default_factory=set)
    broken: Reason | None = None

    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        return plan

    def load_slab(self, plan: AdapterPlan) -> int:
        if self.broken is not None:
            raise AdapterError(self.broken, "the test wants it so")
        return self.slab_bytes(plan)

    def drop_slab(self, slab: int) -> None: ...

    def num_pages(self, plan: AdapterPlan) -> int:
        return -(-plan.rank // RANKS_A_PAGE)

    def slab_bytes(self, plan: AdapterPlan) -> int:
        return plan.rank * 100

    def install(self, key: AdapterKey, pages: tuple[int, ...], slab: int) -> None:
        self.holds.add(key)

    def remove(self, key: AdapterKey) -> None:
        self.holds.discard(key)


class LoadsEngine:
    """Answers as EngineClient does; `running` are adapters of requests that run, `ask` is a request that comes."""

    def __init__(self, *, max_resident: int = 4) -> None:
        num_pages = max_resident * MAX_RANK // RANKS_A_PAGE
        self.stats: EngineStats | None = None
        self.read_percent: int | None = None
        self.facts: EngineReady | None = EngineReady(
            base_facts(),
            EngineBudgets(
                num_kv_blocks=8,
                kv_block_tokens=16,
                kv_cache_bytes=1,
                kv_cache_dtype="float32",
                max_resident_adapters=max_resident,
                max_rank=MAX_RANK,
                total_rank_pages=num_pages,
                host_cache_bytes=1 << 20,
            ),
            Backend(Kernels.TORCH),
        )
        self.device = Device()
        self.running: set[AdapterKey] = set()
        self.registered: list[RegisterAdapter] = []
        self.released: list[AdapterKey] = []
        self._listeners: list[Callable[[AdapterStatus], None]] = []
        self._waiting: list[tuple[AdapterKey, Callable[[AdapterStatus], bool], asyncio.Future[AdapterStatus]]] = []
        residency = Residency(num_pages=num_pages, max_resident=max_resident, host_bytes=1 << 20)
        loop = asyncio.get_running_loop()
        self._loads = AdapterLoads(
            residency,
            self.device,
            lambda folder: inspect_adapter(folder, base_facts(), MAX_RANK),
            lambda job: loop.call_soon_threadsafe(self._settle_job, job) and None,
            max_merged_rank=MAX_RANK,
        )

    def close(self) -> None:
        """Let the loader thread end."""
        self._loads.close()

    def subscribe(self, on_status: Callable[[AdapterStatus], None]) -> None:
        self._listeners.append(on_status)

    async def register(self, key: AdapterKey, directory: Path, *, resident: bool, pinned: bool) -> AdapterStatus:
        message = RegisterAdapter(key, str(directory), resident, pinned)
        self.registered.append(message)

        def answers(status: AdapterStatus) -> bool:
            there = status.tier in (DeviceTier.DEVICE, None) or status.reason is not None
            return there or not resident

        return await self._told(key, answers, lambda: self._loads.register(message))

    async def register_merge(self, key: AdapterKey, merge: Merge) -> AdapterStatus:
        message = RegisterAdapter(key, "", resident=False, merge=merge)
        self.registered.append(message)
        return await self._told(key, lambda _: True, lambda: self._loads.register(message))

    async def release(self, key: AdapterKey) -> None:
        self.released.append(key)
        await self._told(key, lambda status: status.tier is None, lambda: self._loads.release(key))

    def finish(self, key: AdapterKey) -> None:
        """The last running request of an adapter ends."""
        self.running.discard(key)
        self._settle(Outcome())

    def ask(self, key: AdapterKey) -> None:
        """A request names the adapter: it is loaded if it has to be."""
        assert self._loads.accepts(key), "a request for an adapter that the engine does not know"
        self._settle(self._loads.start_loads([key], self.running, lambda _: 0.0))

    async def _told(
        self, key: AdapterKey, answers: Callable[[AdapterStatus], bool], do: Callable[[], Outcome]
    ) -> AdapterStatus:
        future: asyncio.Future[AdapterStatus] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, answers, future))
        self._settle(do())
        return await future

    def _settle_job(self, job: Callable[[], Outcome]) -> None:
        self._settle(job())

    def _settle(self, outcome: Outcome) -> None:
        for status in outcome.statuses:
            for waiting in list(self._waiting):
                key, answers, future = waiting
                if key == status.key and answers(status):
                    self._waiting.remove(waiting)
                    if not future.done():
                        future.set_result(status)
            for listener in self._listeners:
                listener(status)
        for following in (
            self._loads.start_loads([], self.running, lambda _: 0.0),
            self._loads.free_released(lambda key: key in self.running),
        ):
            if following.statuses or following.refused:
                self._settle(following)
