"""Adapters that no catalogue has: a request says which one, and of which kind of declared source. Allowed by option.

What is kept is content, by its digest. Whoever asks has to be able to have it: without a token the declaration gives it to
everybody, and with one the caller shows again each minute that it opens the very files, whoever had them downloaded before.
"""

import asyncio
import hashlib
import tempfile
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from lorafleet_common.clock import monotonic
from lorafleet_contract.admin import Owner, Residency
from lorafleet_contract.lorax import AD_HOC
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.bringer import Bringer
from lorafleet_inference.adapters.catalogue import Artifact, Entry
from lorafleet_inference.adapters.files import CONFIG
from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.adapters.sources.base import Kind, Place, Source
from lorafleet_inference.adapters.sources.hub import HubSource
from lorafleet_inference.adapters.sources.registry import Sources
from lorafleet_inference.adapters.store import AdapterStore, without_source
from lorafleet_inference.adapters.tracked import Phase, Tracked
from lorafleet_inference.errors import (
    AdapterError,
    AdapterFailed,
    AdapterLoading,
    InvalidValue,
    Overloaded,
    RequestError,
    UnsupportedParameter,
)

PROOF_SECONDS = 60.0
"""So long it counts what a place meant, and that somebody could open it."""
REFUSAL_SECONDS = 10.0
"""So long a source is not asked again for what it did not give, so that a client in a loop is no burden on a hub."""
MAX_PROOFS = 1024
"""As many proofs are remembered, and as many refusals."""
RETRY_SECONDS = 1.0
ID_FIELD, TOKEN_FIELD = "adapter_id", "api_token"


@dataclass(frozen=True, slots=True)
class Wish:
    """An adapter as a request names it."""

    id: str
    """Repository, `REPO@REVISION`, `s3://…` or path; or a path in the one declared source of the kind."""
    kind: Kind
    token: str | None = field(default=None, repr=False)
    """Of the caller, for a hub."""


@dataclass(frozen=True, slots=True)
class _Proof:
    artifact: Artifact
    until: float


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: Reason
    message: str
    until: float


_KeptT = TypeVar("_KeptT", _Proof, _Refusal)
_Asked = tuple[str, Place, str]
"""Source, place in it, and hash of the token."""


class AdHoc:
    """Owns which of these adapters are kept; the bringer brings them as it does others."""

    def __init__(
        self, sources: Sources, store: AdapterStore, bringer: Bringer, *, max_adapters: int, can_load: bool
    ) -> None:
        """`max_adapters`: 0 where requests may not name any. `can_load`: whether the pod loads what a request names."""
        self._sources = sources
        self._store = store
        self._bringer = bringer
        self._max_adapters = max_adapters
        self._can_load = can_load
        self._proofs: OrderedDict[_Asked, _Proof] = OrderedDict()
        self._refusals: OrderedDict[_Asked, _Refusal] = OrderedDict()
        self._asking: dict[Tracked, int] = {}
        """Requests that wait for one."""

    async def lease(self, wish: Wish, *, hold_seconds: float) -> Lease:
        """Return the right to what a request names, brought if need be.

        Raises:
            UnsupportedParameter: this pod loads nothing for requests.
            InvalidValue: the token is for no hub.
            AdapterFailed: it lies in no declared source of the kind, the source does not give it to this caller, or it is
                not taken.
            AdapterLoading: it did not come in time, or its source does not answer.
            Overloaded: as many others as may be are in use.
        """
        if not self._can_load:
            raise UnsupportedParameter(
                f"adapter_source: {wish.id} is not served, and this pod loads nothing on demand", param="adapter_source"
            )
        try:
            async with asyncio.timeout(hold_seconds):
                artifact = await self._proven(wish)
                return await self._brought(wish, artifact)
        except TimeoutError:
            raise AdapterLoading(
                f"{wish.id} did not come within {hold_seconds:g} s", retry_after_seconds=RETRY_SECONDS
            ) from None
        except AdapterError as error:
            raise _request_error(wish, error) from error

    async def _proven(self, wish: Wish) -> Artifact:
        """Return what a place means, to somebody who can open it."""
        source, place = self._sources.place_of(wish.kind, wish.id)
        source.check(place)
        scope = ""
        if wish.token is not None:
            if not isinstance(source, HubSource):
                raise InvalidValue(
                    f"{TOKEN_FIELD}: it opens a hub, and {wish.id} lies in {wish.kind}", param=TOKEN_FIELD
                )
            source, scope = source.with_token(wish.token), hashlib.sha256(wish.token.encode()).hexdigest()
        now, key = monotonic(), (source.name, place, scope)
        _forget(self._proofs, now)
        _forget(self._refusals, now)
        if (proof := self._proofs.get(key)) is not None:
            return replace(proof.artifact, source=source)
        if (refusal := self._refusals.get(key)) is not None:
            raise AdapterError(refusal.reason, refusal.message)
        try:
            pinned = await self._open(source, place) if scope else place
            artifact = await self._store.resolve(source, pinned, scope=scope)
        except AdapterError as error:
            if not error.retryable:
                _remember(self._refusals, key, _Refusal(error.reason, error.message, monotonic() + REFUSAL_SECONDS))
            raise
        _remember(self._proofs, key, _Proof(without_source(artifact), now + PROOF_SECONDS))
        return artifact

    async def _open(self, source: Source, place: Place) -> Place:
        """Return a place as it is pinned, of which a file was read: who may list a repository may still not have its files.

        Raises:
            AdapterError: it cannot be read.
        """

        def read() -> Place:
            listing = source.list_files(place)
            config = next((file for file in listing.files if file.name == CONFIG), None)
            if config is None:
                raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{source.show(place)} has no {CONFIG}")
            with tempfile.TemporaryDirectory(prefix="lorafleet-proof-") as folder:
                source.fetch(listing.place, config, Path(folder))
            return listing.place

        return await self._store.run(read)

    async def _brought(self, wish: Wish, artifact: Artifact) -> Lease:
        entry = Entry(AD_HOC, artifact, Owner.LOCAL, Residency.ON_DEMAND, stable=False)
        while True:
            if entry.key not in self._bringer.tracked:
                await self._make_room()
            tracked = self._bringer.follow(entry)
            self._asking[tracked] = self._asking.get(tracked, 0) + 1
            try:
                lease = await self._answerable(tracked)
            finally:
                self._asking[tracked] -= 1
                if not self._asking[tracked]:
                    del self._asking[tracked]
            if lease is not None:
                lease.name, lease.kinds = wish.id, frozenset((wish.kind,))  # others may have the same from elsewhere
                return lease

    async def _answerable(self, tracked: Tracked) -> Lease | None:
        """Wait for a lease; None: it left in between.

        Raises:
            AdapterError: it failed; it is forgotten, so that the next request tries anew with its own right.
        """
        while self._bringer.tracked.get(tracked.key) is tracked and tracked.phase is not Phase.DRAINING:
            if tracked.is_answerable:
                return tracked.take()
            if tracked.error is not None:
                error = tracked.error
                self._bringer.leave(tracked.key, 0.0)
                raise error
            self._bringer.want(tracked)
            await tracked.changed()
        return None

    async def _make_room(self) -> None:
        while len(kept := self._kept()) >= self._max_adapters:
            idle = [one for one in kept if not one.leases and one not in self._asking]
            if not idle:
                raise Overloaded(
                    f"{len(kept)} adapters that requests have named are in use, and at most {self._max_adapters} may be",
                    retry_after_seconds=RETRY_SECONDS,
                )
            leaving = self._bringer.leave(min(idle, key=lambda one: one.last_used or one.created).key, 0.0)
            assert leaving is not None, "what is tracked can leave"
            await asyncio.shield(leaving)

    def _kept(self) -> list[Tracked]:
        return [one for one in self._bringer.tracked.values() if one.entry.name == AD_HOC]


def _remember(kept: OrderedDict[_Asked, _KeptT], key: _Asked, one: _KeptT) -> None:
    kept.pop(key, None)
    kept[key] = one
    if len(kept) > MAX_PROOFS:
        kept.popitem(last=False)


def _forget(kept: OrderedDict[_Asked, _KeptT], now: float) -> None:
    """All are kept equally long, so those that end first come first."""
    while kept and next(iter(kept.values())).until <= now:
        kept.popitem(last=False)


def _request_error(wish: Wish, error: AdapterError) -> RequestError:
    message = f"{ID_FIELD}: {wish.id} of {wish.kind}: {error}"
    if error.retryable:
        return AdapterLoading(message, param=ID_FIELD, retry_after_seconds=RETRY_SECONDS)
    return AdapterFailed(message, param=ID_FIELD)
