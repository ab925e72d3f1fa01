"""Adapters that people put here: `serve --adapter` at the start, the admin API later. The operator never touches them."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from lorafleet_contract.admin import LocalFailure, Owner, Residency, ServedName
from lorafleet_contract.lorax import AD_HOC
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.bringer import FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, Bringer
from lorafleet_inference.adapters.catalogue import Artifact, Catalogue, Entry, NotOwned
from lorafleet_inference.adapters.changes import Generation
from lorafleet_inference.adapters.sources.base import Place, Source
from lorafleet_inference.adapters.sources.registry import ad_hoc
from lorafleet_inference.adapters.store import AdapterStore
from lorafleet_inference.adapters.tracked import Tracked
from lorafleet_inference.errors import AdapterError

logger = logging.getLogger(__name__)
REPLACED_DRAIN_SECONDS = 3600.0
"""Requests that run on a replaced revision have this long to end; nobody waits for them."""
_served_name = TypeAdapter(ServedName)


class LocalAdapters:
    """Local entries of the catalogue, and why some could not become one."""

    def __init__(
        self, catalogue: Catalogue, bringer: Bringer, store: AdapterStore, changes: Generation, *, base_name: str
    ) -> None:
        self.failures: dict[str, LocalFailure] = {}
        self._catalogue = catalogue
        self._bringer = bringer
        self._store = store
        self._changes = changes
        self._base_name = base_name
        self._arrivals: dict[str, asyncio.Task[None]] = {}
        """Adapters of the start, by name, until they are resolved or have failed for good."""
        self._locks: dict[str, asyncio.Lock] = {}

    def start(self, adapters: Iterable[tuple[str, str]], *, max_resident: int) -> None:
        """Begin to bring adapters of the command line, as many resident ones as there is room for, in their order."""
        for index, (name, text) in enumerate(adapters):
            residency = Residency.RESIDENT if index < max_resident else Residency.ON_DEMAND
            self._arrivals[name] = asyncio.create_task(self._arrive(name, text, residency))

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._arrivals.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def waiting(self) -> list[str]:
        """Return the names that are neither loaded nor have failed."""
        unresolved = [name for name, task in self._arrivals.items() if not task.done() and name not in self.failures]
        tracked = [
            one for one in self._bringer.tracked.values() if one.entry.owner is Owner.LOCAL and one.entry.name != AD_HOC
        ]
        return unresolved + [one.entry.name for one in tracked if not one.is_settled]

    async def arrival(self, name: str) -> None:
        """Wait until an adapter of the command line is resolved or has failed; returns at once for other names."""
        while name in self._arrivals and not self._arrivals[name].done() and name not in self.failures:
            await self._changes.wait(self._changes.number, MAX_RETRY_SECONDS)

    async def put(self, name: str, source: Source, place: Place, *, pinned: bool) -> Tracked:
        """Make content answer to a name; what answered before goes on until it does, then drains.

        Raises:
            AdapterError: it was refused or failed; nothing has changed.
            NotOwned: the name is the operator's.
        """
        self._check_name(name)
        self._check_owned(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            artifact = await self._store.resolve(source, place)
            self._give_up_arrival(name)
            before = self._catalogue.find(name, None)
            entry = Entry(name, artifact, Owner.LOCAL, pinned=pinned)
            if before is None or before.key == entry.key:
                self._bringer.apply(self._catalogue.put(entry), drain_seconds=REPLACED_DRAIN_SECONDS)
                return await self._settled(entry)
            beside = replace(entry, stable=False)
            self._bringer.apply(self._catalogue.put(beside), drain_seconds=REPLACED_DRAIN_SECONDS)
            tracked = await self._settled(beside)
            self._bringer.apply(self._catalogue.put(entry), drain_seconds=REPLACED_DRAIN_SECONDS)
            self._bringer.apply(self._catalogue.remove_one(before.key), drain_seconds=REPLACED_DRAIN_SECONDS)
            return tracked

    async def remove(self, name: str, *, drain_seconds: float) -> bool:
        """Remove a name when its requests have ended; False if nothing has it.

        Raises:
            NotOwned: the name is the operator's.
        """
        self._check_owned(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            self._give_up_arrival(name)
            was_failure = self.failures.pop(name, None) is not None
            changes = self._catalogue.remove(name, Owner.LOCAL)
            leaving = self._bringer.apply(changes, drain_seconds=drain_seconds)
            self._changes.bump()
        await asyncio.gather(*leaving, return_exceptions=True)
        return bool(changes.removed) or was_failure

    async def _settled(self, entry: Entry) -> Tracked:
        """Wait until an entry is loaded; one that fails leaves the catalogue again."""
        tracked = self._bringer.tracked[entry.key]
        while not tracked.is_settled:
            await tracked.changed()
        if tracked.error is not None:
            error = tracked.error
            self._bringer.apply(self._catalogue.remove_one(entry.key), drain_seconds=0.0)
            raise error
        self.failures.pop(entry.name, None)
        return tracked

    def _give_up_arrival(self, name: str) -> None:
        """Somebody decided otherwise since the start."""
        arrival = self._arrivals.pop(name, None)
        if arrival is not None:
            arrival.cancel()

    def _check_name(self, name: str) -> None:
        if name == self._base_name:
            raise AdapterError(Reason.NAME_CONFLICT, f"{name} is the name of the base model")
        try:
            _served_name.validate_python(name)
        except ValidationError:
            message = (
                f"{name[:300]!r} is no name for an adapter: 1 to 253 of letters, digits, '.', '_', '-', ':' and '/'"
            )
            raise AdapterError(Reason.BAD_REQUEST, message) from None

    def _check_owned(self, name: str) -> None:
        if self._catalogue.owner(name) is Owner.OPERATOR:
            raise NotOwned(f"{name} belongs to the operator")

    async def _arrive(self, name: str, text: str, residency: Residency) -> None:
        pause_seconds = FIRST_RETRY_SECONDS
        while True:
            try:
                artifact = await self._resolve(name, text)
                self._take(name, artifact, residency)
                return
            except AdapterError as error:
                self._failed(name, error)
                if not error.retryable:
                    return
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MAX_RETRY_SECONDS)

    async def _resolve(self, name: str, text: str) -> Artifact:
        self._check_name(name)
        source, place = ad_hoc(text)
        try:
            return await self._store.resolve(source, place)
        finally:
            source.close()

    def _take(self, name: str, artifact: Artifact, residency: Residency) -> None:
        try:
            changes = self._catalogue.put(Entry(name, artifact, Owner.LOCAL, residency))
        except NotOwned as error:
            raise AdapterError(Reason.NAME_CONFLICT, str(error)) from error
        self.failures.pop(name, None)
        self._bringer.apply(changes, drain_seconds=REPLACED_DRAIN_SECONDS)

    def _failed(self, name: str, error: AdapterError) -> None:
        logger.warning("adapter %s is not taken: %s", name, error)
        self.failures[name] = LocalFailure(name=name, reason=error.reason.value, message=error.message)
        self._changes.bump()
