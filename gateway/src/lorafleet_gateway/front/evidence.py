"""Counts requests, errors and latencies by adapter and revision: the evidence by which a rollout is judged."""

import asyncio
import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lorafleet_common.metrics import LATENCY_BUCKETS, OTHER, BoundedLabels
from lorafleet_contract.evidence import ErrorClass, Evidence, HeldRequests, Latency, RevisionEvidence
from lorafleet_gateway.front.outcomes import Result
from lorafleet_gateway.views import BaseKey

MAX_REVISIONS: Final = 2000
"""Rows of the document; what is not used for ten minutes makes room."""
BOUNDS_SECONDS: Final = (*LATENCY_BUCKETS, 320.0, 640.0)
"""Of the histograms: up to what a pod may be silent (`--idle-timeout-seconds`), and a little more."""
GATHER_SECONDS: Final = 1.0
"""A poll that waits is answered so long after the first change: a busy gateway answers once a second, not once a request."""


@dataclass(frozen=True, slots=True)
class RevisionKey:
    """One revision of one adapter."""

    base_key: BaseKey
    adapter: str
    revision: str

    @property
    def label(self) -> str:
        """As one string; none of the parts can contain a space."""
        return " ".join((*self.base_key, self.adapter, self.revision))


@dataclass(slots=True)
class _Histogram:
    sum_seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))

    def observe(self, seconds: float) -> None:
        self.sum_seconds += seconds
        self.buckets[bisect_left(BOUNDS_SECONDS, seconds)] += 1

    def read(self) -> Latency:
        return Latency(sum_seconds=round(self.sum_seconds, 6), buckets=list(self.buckets))


@dataclass(slots=True)
class _Row:
    key: RevisionKey
    began: int
    changed: int = 0
    num_requests: int = 0
    num_fallbacks: int = 0
    errors: Counter[ErrorClass] = field(default_factory=Counter)
    first_byte: _Histogram = field(default_factory=_Histogram)
    whole: _Histogram = field(default_factory=_Histogram)

    def read(self) -> RevisionEvidence:
        namespace, base = self.key.base_key
        return RevisionEvidence(
            namespace=namespace,
            base=base,
            adapter=self.key.adapter,
            revision=self.key.revision,
            began=self.began,
            num_requests=self.num_requests,
            num_fallbacks=self.num_fallbacks,
            errors={error.value: number for error, number in self.errors.items()},
            first_byte=self.first_byte.read(),
            whole=self.whole.read(),
        )


class Ledger:
    """Counters since the start of the process."""

    def __init__(self, *, max_revisions: int = MAX_REVISIONS, clock: Callable[[], float] = time.monotonic) -> None:
        self.boot_id = uuid.uuid4().hex
        self._sequence = 0
        self._told = 0
        """The last sequence number that a reader was told."""
        self._num_untracked = 0
        self._rows: dict[str, _Row] = {}
        self._labels = BoundedLabels(max_revisions, forget=self._forget, clock=clock)
        self._changed = asyncio.Event()
        self.held: Callable[[], list[HeldRequests]] = list
        """Which requests wait for a pod."""

    def add(
        self,
        key: RevisionKey,
        error: ErrorClass | None,
        *,
        first_byte_seconds: float | None,
        seconds: float,
        is_named: bool = True,
    ) -> None:
        """Count a request that has ended.

        Args:
            key: the revision that answered, or should have.
            error: what went wrong, if anything did.
            first_byte_seconds: until a pod began to answer; None where none did.
            seconds: until the end.
            is_named: whether the adapter's status names the revision; one that only a client named takes nobody's place.
        """
        row = self._row(key, is_named=is_named)
        if row is None:
            return
        row.num_requests += 1
        if error is not None:
            row.errors[error] += 1
            return
        row.whole.observe(seconds)
        if first_byte_seconds is not None:
            row.first_byte.observe(first_byte_seconds)

    def fell_back(self, key: RevisionKey, error: ErrorClass | None, *, is_named: bool = True) -> None:
        """Count a request that the stable revision was offered instead.

        Args:
            key: the revision that it was meant for.
            error: what speaks against that revision, if anything does.
            is_named: as of `add`.
        """
        row = self._row(key, is_named=is_named)
        if row is None:
            return
        row.num_fallbacks += 1
        if error is not None:
            row.num_requests += 1
            row.errors[error] += 1

    def counted(self, key: RevisionKey) -> RevisionEvidence | None:
        """Return the counters of a revision; None while nothing was counted."""
        row = self._rows.get(key.label)
        return row.read() if row is not None else None

    def read(self, after: int = 0, boot_id: str = "") -> Evidence:
        """Return the document; what was counted up to `after` under this boot's id is left out."""
        since = after if boot_id == self.boot_id else 0
        self._told = self._sequence
        return Evidence(
            boot_id=self.boot_id,
            sequence=self._sequence,
            bounds_seconds=list(BOUNDS_SECONDS),
            revisions=[row.read() for row in self._rows.values() if row.changed > since],
            held=self.held(),
            num_untracked=self._num_untracked,
        )

    async def wait(self, after: int, boot_id: str, wait_seconds: float) -> None:
        """Wait until there is something to tell, and a moment longer to gather what comes with it."""
        if boot_id != self.boot_id:
            return
        deadline = asyncio.get_running_loop().time() + wait_seconds
        try:
            async with asyncio.timeout_at(deadline):
                while self._sequence <= after:
                    await self._changed.wait()
                await asyncio.sleep(GATHER_SECONDS)
        except TimeoutError:
            return

    def _row(self, key: RevisionKey, *, is_named: bool) -> _Row | None:
        """Return the row to count in, as changed now; None, and counted as such, where there is no room for it."""
        self.advance()
        label = self._labels.of(key.label, important=is_named)
        if label == OTHER:
            self._num_untracked += 1
            return None
        row = self._rows.get(label)
        if row is None:
            row = self._rows[label] = _Row(key, self._sequence)
        row.changed = self._sequence
        return row

    def advance(self) -> None:
        """There is something new: what was told is not changed, what is counted now has a number that no reader has."""
        if self._sequence == self._told:
            self._sequence += 1
            self._changed.set()
            self._changed = asyncio.Event()

    def _forget(self, label: str) -> None:
        del self._rows[label]


_NAMED: Final = {
    424: ErrorClass.ADAPTER_FAILED,
    429: ErrorClass.OVERLOADED,
    502: ErrorClass.POD_LOST,
    503: ErrorClass.UNAVAILABLE,
    504: ErrorClass.POD_LOST,
}


def error_class_of(status: int, result: Result | None) -> ErrorClass | None:
    """Return what went wrong with a request that was answered with `status`; None: nothing did."""
    match result:
        case Result.CLIENT_LEFT:
            return ErrorClass.CLIENT_LEFT
        case Result.CUT:
            return ErrorClass.STREAM_BROKEN
        case Result.ERROR:
            return ErrorClass.STREAM_ERROR
    if status < 400 or status in _NAMED:
        return _NAMED.get(status)
    return ErrorClass.CLIENT_ERROR if status < 500 else ErrorClass.SERVER_ERROR
