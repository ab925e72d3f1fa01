"""Brings adapters to where the catalogue wants them, and away again: source, disk, engine. One task an adapter at a time."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol

from lorafleet_contract.admin import Residency, Tier
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.catalogue import Changes, Entry
from lorafleet_inference.adapters.changes import Generation
from lorafleet_inference.adapters.store import AdapterStore
from lorafleet_inference.adapters.tracked import Phase, Tracked
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.messages import AdapterKey, AdapterStatus, EngineReady
from lorafleet_inference.errors import AdapterError, EngineFailure

logger = logging.getLogger(__name__)
MAX_PREFETCHES = 2
"""Prefetches at the same time; fewer than the store's slots, so that a request never waits behind them."""
FIRST_RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 300.0


class AdapterEngine(Protocol):
    """The engine, as far as adapters go: EngineClient, seen from here."""

    @property
    def facts(self) -> EngineReady | None:
        """What it said when it was ready."""

    async def register(self, key: AdapterKey, directory: Path, *, resident: bool, pinned: bool) -> AdapterStatus:
        """As EngineClient.register."""

    async def release(self, key: AdapterKey) -> None:
        """As EngineClient.release."""

    def subscribe(self, on_status: Callable[[AdapterStatus], None]) -> None:
        """As EngineClient.subscribe."""


class Bringer:
    """Owns what is tracked, and every task that changes it."""

    def __init__(
        self,
        engine: AdapterEngine,
        store: AdapterStore,
        inspect: Callable[[Path], AdapterPlan],
        changes: Generation,
        *,
        load_on_demand: bool,
        on_let_go: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`inspect` raises AdapterError and may block; `on_let_go` gets the digest of content that may leave the disk."""
        self.tracked: dict[AdapterKey, Tracked] = {}
        self._engine = engine
        self._store = store
        self._inspect = inspect
        self._changes = changes
        self._load_on_demand = load_on_demand
        self._on_let_go = on_let_go
        self._tasks: dict[AdapterKey, asyncio.Task[None]] = {}
        self._wanted: set[AdapterKey] = set()
        """Those whose task goes before prefetches."""
        self._releases: dict[AdapterKey, asyncio.Task[None]] = {}
        """Under way in the engine; nothing else is said of such an adapter until it has answered."""
        self._num_failures: dict[AdapterKey, int] = {}
        self._prefetches = asyncio.Semaphore(MAX_PREFETCHES)

    async def close(self) -> None:
        """End all tasks; what the engine holds ends with the engine."""
        tasks = [*self._tasks.values(), *self._releases.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def apply(self, changes: Changes, *, drain_seconds: float) -> list[asyncio.Task[None]]:
        """Follow what a write changed; returns what ends when all that it removed is gone."""
        for entry in (*changes.put, *changes.repeated):
            self.follow(entry)
        leaving = [self.leave(entry.key, drain_seconds) for entry in changes.removed]
        return [task for task in leaving if task is not None]

    def follow(self, entry: Entry) -> Tracked:
        """Bring an entry to where it says, or follow a change of its flags; a repetition retries a retryable failure."""
        tracked = self.tracked.get(entry.key)
        if tracked is None:
            tracked = self.tracked[entry.key] = Tracked(entry, load_on_demand=self._load_on_demand)
            self._start(tracked)
        else:
            before, tracked.entry = tracked.entry, entry
            moved = (before.residency, before.pinned) != (entry.residency, entry.pinned)
            moves = moved and tracked.error is None and tracked.phase is not Phase.LOADING
            if moves or tracked.phase is Phase.DRAINING or _is_retryable(tracked.error):
                self._start(tracked)
        self._told(tracked)
        return tracked

    def want(self, tracked: Tracked) -> None:
        """A request asks for an adapter: it goes before prefetches."""
        goes_already = self._is_busy(tracked) and tracked.key in self._wanted
        if tracked.phase in (Phase.PENDING, Phase.AT_SOURCE) and not goes_already:
            self._start(tracked, is_urgent=True)

    def leave(self, key: AdapterKey, drain_seconds: float) -> asyncio.Task[None] | None:
        """Take no new requests, let running ones end, forget; returns what ends when that is done."""
        tracked = self.tracked.get(key)
        if tracked is None:
            return None
        tracked.set_phase(Phase.DRAINING)
        self._changes.bump()
        return self._run(tracked, self._leave(tracked, drain_seconds))

    def hear(self, status: AdapterStatus) -> None:
        """The engine says where it has an adapter, or why not."""
        tracked = self.tracked.get(status.key)
        if tracked is None:
            return
        tracked.hear(status)
        if status.reason is not None and tracked.phase is Phase.REGISTERED and not self._is_busy(tracked):
            self._fail(tracked, AdapterError(status.reason, status.message))
        self._changes.bump()

    async def free_one(self) -> bool:
        """Let the idle on-demand adapter that was used longest ago go from the disk; False if there is none."""
        idle = [
            one
            for one in self.tracked.values()
            if one.phase is Phase.REGISTERED
            and one.entry.residency is Residency.ON_DEMAND
            and not one.entry.pinned
            and not one.leases
            and not self._is_busy(one)
        ]
        if not idle:
            return False
        tracked = min(idle, key=lambda one: (one.tier is Tier.DEVICE, one.last_used or 0.0))
        tracked.set_phase(Phase.AT_SOURCE)
        self._changes.bump()
        await self._let_go(tracked)
        self._told(tracked)
        return True

    def _start(self, tracked: Tracked, *, is_urgent: bool = False) -> None:
        if tracked.phase is not Phase.REGISTERED:
            tracked.set_phase(Phase.PENDING)
        is_wanted = is_urgent or tracked.entry.residency is Residency.RESIDENT
        self._run(tracked, self._bring(tracked, is_wanted=is_wanted))
        if is_wanted:
            self._wanted.add(tracked.key)

    def _run(self, tracked: Tracked, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begin a task of an adapter, in the place of the one that it had."""
        before = self._tasks.get(tracked.key)
        if before is not None and before is not asyncio.current_task():
            before.cancel()
        self._wanted.discard(tracked.key)
        task = self._tasks[tracked.key] = asyncio.create_task(work)
        task.add_done_callback(lambda ended: self._ended(tracked.key, ended))
        return task

    def _ended(self, key: AdapterKey, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the life of adapter %s broke off", key.name, exc_info=error)

    def _is_busy(self, tracked: Tracked) -> bool:
        return tracked.key in self._tasks

    async def _bring(self, tracked: Tracked, *, is_wanted: bool) -> None:
        try:
            async with contextlib.nullcontext() if is_wanted else self._prefetches:
                await self._to_disk(tracked, may_evict=is_wanted)
            await self._to_engine(tracked)
        except AdapterError as error:
            if error.reason is Reason.DISK_FULL and not is_wanted:
                tracked.set_phase(Phase.AT_SOURCE)
            else:
                self._fail(tracked, error)
        except EngineFailure:
            return  # the pod ends
        self._told(tracked)

    async def _to_disk(self, tracked: Tracked, *, may_evict: bool) -> None:
        artifact = tracked.entry.artifact
        if tracked.folder is not None:
            return
        if not self._store.has(artifact.digest):
            tracked.set_phase(Phase.DOWNLOADING)
            self._changes.bump()
        tracked.folder = await self._store.ensure(artifact, may_evict=may_evict)
        tracked.tier = Tier.DISK

    async def _to_engine(self, tracked: Tracked) -> None:
        folder = tracked.folder
        assert folder is not None, "an adapter comes over the disk"
        if tracked.key in self._releases:
            await self._released(tracked)
        if not tracked.is_known:
            tracked.vocabulary = (await self._store.run(self._inspect, folder)).vocabulary
            tracked.set_phase(Phase.LOADING)
            self._changes.bump()
        while True:
            entry = tracked.entry
            tracked.is_known = True
            status = await self._engine.register(
                tracked.key, folder, resident=entry.residency is Residency.RESIDENT, pinned=entry.pinned
            )
            if status.reason is not None:
                raise AdapterError(status.reason, status.message)
            if (entry.residency, entry.pinned) == (tracked.entry.residency, tracked.entry.pinned):
                break
        self._num_failures.pop(tracked.key, None)
        tracked.set_phase(Phase.REGISTERED)

    def _fail(self, tracked: Tracked, error: AdapterError) -> None:
        """Remember why; what is retryable is retried, later each time."""
        logger.warning("adapter %s (%s) is not answered: %s", tracked.key.name, tracked.key.revision, error)
        number = self._num_failures.get(tracked.key, 0)
        pause = min(FIRST_RETRY_SECONDS * 2.0**number, MAX_RETRY_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311
        self._num_failures[tracked.key] = number + 1
        tracked.retry_at = asyncio.get_running_loop().time() + pause
        tracked.set_phase(Phase.FAILED, error)
        self._changes.bump()
        self._run(tracked, self._after_failure(tracked, error, pause))

    async def _after_failure(self, tracked: Tracked, error: AdapterError, pause_seconds: float) -> None:
        if not (tracked.is_known and error.retryable):
            with contextlib.suppress(EngineFailure):  # the pod ends
                await self._let_go(tracked)
        if error.retryable:
            await asyncio.sleep(pause_seconds)
            self._start(tracked)

    async def _leave(self, tracked: Tracked, drain_seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + drain_seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._until_unused(tracked)
        except TimeoutError:
            logger.warning("%d requests of adapter %s are cut", len(tracked.leases), tracked.key.name)
            for lease in list(tracked.leases):
                lease.revoke()
            await self._until_unused(tracked)
        with contextlib.suppress(EngineFailure):  # the pod ends
            await self._let_go(tracked)
        del self.tracked[tracked.key]
        self._num_failures.pop(tracked.key, None)
        self._told(tracked)

    async def _until_unused(self, tracked: Tracked) -> None:
        while tracked.leases:
            await tracked.changed()

    async def _let_go(self, tracked: Tracked) -> None:
        """Let engine and cache forget it."""
        folder, tracked.folder = tracked.folder, None
        if tracked.is_known:
            try:
                await self._released(tracked)
            except asyncio.CancelledError:
                tracked.folder = folder  # whoever comes next goes on from here
                raise
        if folder is not None:
            self._store.cache.let_go(tracked.entry.artifact.digest)
            self._on_let_go(tracked.entry.artifact.digest)
        if tracked.folder is None:
            tracked.tier = Tier.SOURCE

    async def _released(self, tracked: Tracked) -> None:
        """Wait until the engine has forgotten it; it does so also when nobody waits any more."""
        task = self._releases.get(tracked.key)
        if task is None:
            task = self._releases[tracked.key] = asyncio.create_task(self._engine.release(tracked.key))
            task.add_done_callback(lambda ended: self._release_ended(tracked.key, ended))
        await asyncio.shield(task)
        tracked.is_known = False

    def _release_ended(self, key: AdapterKey, task: asyncio.Task[None]) -> None:
        del self._releases[key]
        if not task.cancelled():
            task.exception()  # known to whoever still waits

    def _told(self, tracked: Tracked) -> None:
        tracked.told()
        self._changes.bump()


def _is_retryable(error: AdapterError | None) -> bool:
    """Whether the same entry, written again, may do better; a source may be one that is declared by now."""
    return error is not None and (error.retryable or error.reason is Reason.SOURCE_NOT_ALLOWED)
