"""Merges of adapters that requests asked for: made by the engine, kept while they are used, the least used leave."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from lorafleet_contract.lorax import MERGED
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.cache import NodeCache
from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.engine.merging import MajoritySign, Merge, MergeMethod, MergePart, merge_of
from lorafleet_inference.engine.messages import AdapterKey, AdapterStatus
from lorafleet_inference.errors import (
    AdapterError,
    AdapterFailed,
    AdapterLoading,
    EngineFailure,
    InvalidValue,
    Overloaded,
    RequestError,
    UnsupportedParameter,
)
from lorafleet_inference.metrics import MERGES

FIELD = "merged_adapters"
RETRY_SECONDS = 1.0
MAX_REFUSALS = 256
"""Of merges that cannot be: what is refused once is refused again without asking the engine."""
_OF_THE_REQUEST = frozenset({Reason.UNSUPPORTED_ADAPTER, Reason.RANK_TOO_HIGH})
"""Why adapters that are answered one by one cannot be merged."""


class MergeEngine(Protocol):
    """The engine, as far as merges go."""

    async def register_merge(self, key: AdapterKey, merge: Merge) -> AdapterStatus:
        """As EngineClient.register_merge."""

    async def release(self, key: AdapterKey) -> None:
        """As EngineClient.release."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge as a request asks for it."""

    weights: Sequence[float]
    method: MergeMethod = MergeMethod.LINEAR
    density: float = 1.0
    majority_sign: MajoritySign = MajoritySign.TOTAL


@dataclass(slots=True, eq=False)
class _Known:
    merge: Merge
    made: asyncio.Task[None]
    """Raises AdapterError."""
    num_waiting: int = 0
    leases: set[Lease] = field(default_factory=set)
    last_used: int = 0

    @property
    def is_idle(self) -> bool:
        return not self.leases and not self.num_waiting and self.made.done()


class Merges:
    """Owns what is known of each merge. It holds the content of the parts on the disk for as long as the engine knows it."""

    def __init__(self, engine: MergeEngine, cache: NodeCache, *, max_merges: int, can_load: bool) -> None:
        """`can_load`: whether the pod loads what a request names."""
        self._engine = engine
        self._cache = cache
        self._max_merges = max_merges
        self._can_load = can_load
        self._known: dict[AdapterKey, _Known] = {}
        self._leaving: dict[AdapterKey, asyncio.Task[None]] = {}
        self._refusals: OrderedDict[AdapterKey, AdapterError] = OrderedDict()
        self._ticks = count(1)

    async def close(self) -> None:
        """End all tasks; what the engine holds ends with the engine."""
        tasks = [*(known.made for known in self._known.values()), *self._leaving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check_possible(self) -> None:
        """Check that this pod merges adapters.

        Raises:
            UnsupportedParameter: it does not.
        """
        if not self._max_merges:
            raise UnsupportedParameter(f"{FIELD}: this pod merges no adapters (--max-merged-adapters 0)", param=FIELD)
        if not self._can_load:
            raise UnsupportedParameter(
                f"{FIELD}: a merge is loaded when it is asked for, and this pod loads nothing on demand", param=FIELD
            )

    async def lease(self, recipe: Recipe, parts: Sequence[Lease], *, hold_seconds: float) -> Lease:
        """Return the right to the merge of adapters of which the caller has leases, which have to last longer.

        Raises:
            InvalidValue: they cannot be merged so; the message says why.
            AdapterFailed: the merge failed.
            AdapterLoading: it was not made in time.
            Overloaded: as many others as may be are in use.
        """
        merge = merge_of(
            [_part(lease, weight) for lease, weight in zip(parts, recipe.weights, strict=True)],
            recipe.method,
            density=recipe.density,
            majority_sign=recipe.majority_sign,
        )
        name = ",".join(part.name for part in merge.parts)
        try:
            async with asyncio.timeout(hold_seconds):
                return await self._made(AdapterKey(MERGED, merge.digest), merge, name, parts)
        except TimeoutError:
            raise AdapterLoading(
                f"the merge of {name} was not made within {hold_seconds:g} s", retry_after_seconds=RETRY_SECONDS
            ) from None
        except AdapterError as error:
            raise _request_error(name, error) from error

    def hear(self, status: AdapterStatus) -> None:
        """The engine says where it has a merge, or why not; one that cannot be loaded is forgotten when nobody uses it."""
        known = self._known.get(status.key)
        if known is not None and known.made.done() and (status.reason is not None or status.tier is None):
            self._leave(status.key, known)

    def content_gone(self, digest: str) -> None:
        """The catalogue does not keep this content on the disk any more: no idle merge does either."""
        for key, known in list(self._known.items()):
            if known.is_idle and any(part.digest == digest for part in known.merge.parts):
                self._leave(key, known)

    async def settled(self) -> None:
        """Wait until what leaves is gone."""
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)

    async def _made(self, key: AdapterKey, merge: Merge, name: str, parts: Sequence[Lease]) -> Lease:
        while True:
            if (refusal := self._refusals.get(key)) is not None:
                raise refusal
            known = self._known.get(key)
            if known is None:
                await self._make_room()
                if key not in self._known:
                    self._begin(key, merge)
                known = self._known[key]
            known.num_waiting += 1
            try:
                await asyncio.shield(known.made)
            finally:
                known.num_waiting -= 1
            if self._known.get(key) is known:
                return self._take(key, known, name, parts)

    def _begin(self, key: AdapterKey, merge: Merge) -> None:
        for part in merge.parts:
            folder = self._cache.hold(part.digest)
            assert folder is not None, "what is leased lies on the disk"
        made = asyncio.create_task(self._make(key, merge))
        made.add_done_callback(_retrieved)
        self._known[key] = _Known(merge, made)
        MERGES.of().set(len(self._known))

    def _take(self, key: AdapterKey, known: _Known, name: str, parts: Sequence[Lease]) -> Lease:
        kinds = frozenset(kind for part in parts for kind in part.kinds)
        lease = Lease(key, None, lambda ended: self._ended(known, ended), parts[0].vocabulary, name=name, kinds=kinds)
        known.leases.add(lease)
        known.last_used = next(self._ticks)
        return lease

    def _ended(self, known: _Known, lease: Lease) -> None:
        known.leases.discard(lease)
        known.last_used = next(self._ticks)

    async def _make_room(self) -> None:
        while len(self._known) >= self._max_merges:
            idle = [(known.last_used, key) for key, known in self._known.items() if known.is_idle]
            if not idle:
                raise Overloaded(
                    f"{len(self._known)} merges of adapters are in use, and at most {self._max_merges} may be",
                    retry_after_seconds=RETRY_SECONDS,
                )
            _, key = min(idle, key=lambda one: one[0])
            await asyncio.shield(self._leave(key, self._known[key]))

    async def _make(self, key: AdapterKey, merge: Merge) -> None:
        """Tell the engine of a merge.

        Raises:
            AdapterError: it is not taken.
        """
        leaving = self._leaving.get(key)
        if leaving is not None:
            await asyncio.shield(leaving)
        try:
            status = await self._engine.register_merge(key, merge)
            if status.reason is not None:
                raise AdapterError(status.reason, status.message)
        except BaseException as error:
            self._forget(key)
            self._let_go(part.digest for part in merge.parts)
            if isinstance(error, AdapterError) and error.reason in _OF_THE_REQUEST:
                self._refusals[key] = error
                if len(self._refusals) > MAX_REFUSALS:
                    self._refusals.popitem(last=False)
            raise

    def _leave(self, key: AdapterKey, known: _Known) -> asyncio.Task[None]:
        """Forget a merge; the engine does so when its requests have ended."""
        self._forget(key)
        task = self._leaving[key] = asyncio.create_task(self._released(key, known.merge))
        return task

    async def _released(self, key: AdapterKey, merge: Merge) -> None:
        with contextlib.suppress(EngineFailure):  # the pod ends
            await self._engine.release(key)
        self._let_go(part.digest for part in merge.parts)
        if self._leaving.get(key) is asyncio.current_task():
            del self._leaving[key]

    def _forget(self, key: AdapterKey) -> None:
        del self._known[key]
        MERGES.of().set(len(self._known))

    def _let_go(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._cache.let_go(digest)


def _retrieved(task: asyncio.Task[None]) -> None:
    """What went wrong is known to whoever still waits."""
    if not task.cancelled():
        task.exception()


def _part(lease: Lease, weight: float) -> MergePart:
    assert lease.key is not None, "the base model is no part of a merge"
    assert lease.directory is not None, "an adapter that may be asked lies on the disk"
    return MergePart(lease.key.name, lease.key.digest, str(lease.directory), float(weight))


def _request_error(name: str, error: AdapterError) -> RequestError:
    message = f"{FIELD}: {name} cannot be merged: {error.message}"
    if error.reason in _OF_THE_REQUEST:
        return InvalidValue(message, param=FIELD)
    return AdapterFailed(message, param=FIELD)
