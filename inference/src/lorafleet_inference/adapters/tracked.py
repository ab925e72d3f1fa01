"""One revision of one adapter as this pod has it: how far it is, who uses it."""

import asyncio
import time
from enum import Enum, auto
from pathlib import Path

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Tier
from lorafleet_contract.routes import RouteAdapter
from lorafleet_inference.adapters.catalogue import Entry
from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.engine.messages import AdapterKey, AdapterStatus, DeviceTier
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.errors import AdapterError

_TIERS = {DeviceTier.DEVICE: Tier.DEVICE, DeviceTier.HOST: Tier.HOST, DeviceTier.DISK: Tier.DISK}


class Phase(Enum):
    """How far bringing it is."""

    PENDING = auto()
    DOWNLOADING = auto()
    LOADING = auto()
    """On its way into the engine."""
    REGISTERED = auto()
    """The engine knows it and answers with it, loading it if need be."""
    AT_SOURCE = auto()
    """The disk has no room for it now; a request brings it."""
    FAILED = auto()
    DRAINING = auto()


_STATES = {
    Phase.PENDING: AdapterState.PENDING,
    Phase.DOWNLOADING: AdapterState.DOWNLOADING,
    Phase.LOADING: AdapterState.LOADING,
    Phase.REGISTERED: AdapterState.READY,
    Phase.AT_SOURCE: AdapterState.READY,
    Phase.FAILED: AdapterState.FAILED,
    Phase.DRAINING: AdapterState.DRAINING,
}


class Tracked:
    """What is known of an entry beyond what the catalogue says. Its phase is set by `Bringer` alone."""

    def __init__(self, entry: Entry, *, load_on_demand: bool) -> None:
        self.entry = entry
        self._load_on_demand = load_on_demand
        self.phase = Phase.PENDING
        self.error: AdapterError | None = None
        """Why it failed."""
        self.retry_at: float | None = None
        """On the loop's clock: when a retryable failure is retried."""
        self.folder: Path | None = None
        """Where its files lie, held in the cache."""
        self.vocabulary: Vocabulary | None = None
        """Token ids that it knows; None before it was inspected."""
        self.is_known = False
        """Whether the engine was told of it, and has not forgotten it."""
        self.tier: Tier = Tier.SOURCE
        self.rank_pages: int | None = None
        self.created = time.time()
        self.last_used: float | None = None
        self.leases: set[Lease] = set()
        self._num_tokens = 0
        """Of leases that have ended."""
        self._changed = asyncio.Event()

    @property
    def key(self) -> AdapterKey:
        """Its identity."""
        return self.entry.key

    @property
    def is_answerable(self) -> bool:
        """Whether a request may be submitted with it now."""
        return self.phase is Phase.REGISTERED and (self._load_on_demand or self.tier is Tier.DEVICE)

    @property
    def is_answering(self) -> bool:
        """Whether a request for it will be answered, if need be after it was brought here."""
        return self.state is AdapterState.READY

    @property
    def retry_seconds(self) -> float:
        """Time until a failure is tried again; 0 if there is none to wait for."""
        return max(0.0, (self.retry_at or 0.0) - asyncio.get_running_loop().time())

    @property
    def is_settled(self) -> bool:
        """Whether it is where it should be, or has failed at least once."""
        return self.phase in (Phase.REGISTERED, Phase.AT_SOURCE, Phase.FAILED, Phase.DRAINING)

    @property
    def state(self) -> AdapterState:
        """As the admin API shows it."""
        state = _STATES[self.phase]
        if state is AdapterState.READY and not self._load_on_demand and self.tier is not Tier.DEVICE:
            return AdapterState.PENDING
        return state

    def take(self) -> Lease:
        """Return a lease: until it ends, the adapter stays with the engine."""
        assert self.is_answerable, "a lease of something that cannot be answered"
        kind = self.entry.artifact.source.kind
        kinds = frozenset(() if kind is None else (kind,))
        lease = Lease(self.key, self.folder, self._ended, self.vocabulary, kinds=kinds)
        self.leases.add(lease)
        self.last_used = time.time()
        return lease

    def set_phase(self, phase: Phase, error: AdapterError | None = None) -> None:
        """Go on, or fail with a reason."""
        self.phase, self.error = phase, error
        self.told()

    def hear(self, status: AdapterStatus) -> None:
        """Take note of where the engine has it."""
        if status.tier is None:
            self.is_known = False
            self.tier, self.rank_pages = (Tier.SOURCE if self.folder is None else Tier.DISK), None
        else:
            self.tier, self.rank_pages = _TIERS[status.tier], status.rank_pages or None
        self.told()

    def told(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    @property
    def standing(self) -> tuple[object, ...]:
        """All that `observed` and `route` are made of but counters and times: where they say another thing, it is another."""
        entry = self.entry
        told = (entry.owner, entry.residency, entry.pinned, entry.stable, entry.artifact.facts)
        return (*told, self.phase, self.error, self.tier, self.rank_pages)

    def observed(self) -> ObservedAdapter:
        """Return it as the admin API shows it."""
        entry, error = self.entry, self.error
        message = error.message if error is not None else ""
        if not message and self.state is AdapterState.PENDING and self.phase is Phase.REGISTERED:
            message = "on disk; this pod does not load on demand"
        return ObservedAdapter(
            name=entry.name,
            revision=entry.key.revision,
            digest=entry.artifact.digest,
            owner=entry.owner,
            residency=entry.residency,
            pinned=entry.pinned,
            stable=entry.stable,
            state=self.state,
            tier=self.tier,
            reason=error.reason.value if error is not None else "",
            message=message,
            num_in_flight=len(self.leases),
            rank=entry.artifact.facts.rank,
            memory_pages=self.rank_pages or entry.artifact.facts.memory_pages,
            size_bytes=entry.artifact.facts.size_bytes,
            last_used=self.last_used,
            num_tokens=self._num_tokens + sum(lease.num_tokens for lease in self.leases),
        )

    def route(self) -> RouteAdapter:
        """Return it as gateways see it."""
        entry = self.entry
        return RouteAdapter(
            name=entry.name,
            revision=entry.key.revision,
            stable=entry.stable,
            tier=self.tier,
            facts=entry.artifact.facts,
        )

    def _ended(self, lease: Lease) -> None:
        self.leases.discard(lease)
        self._num_tokens += lease.num_tokens
        self.last_used = time.time()
        if not self.leases:
            self.told()
