"""What gateways counted, added up over all of them and since some moment. No clock and no I/O.

Gateways tell cumulative counters. Two readings are subtracted where they are of the same process and the same row; what a
process counted between its last reading and its end is not known, which every window over that moment is told.
"""

import math
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from lorafleet_contract.evidence import NO_FAULT, ErrorClass, Evidence, RevisionEvidence

POD_CLASSES: Final = frozenset({ErrorClass.POD_LOST, ErrorClass.STREAM_BROKEN, ErrorClass.UNAVAILABLE})
"""What requests meet when their pod dies, whatever revision they are for."""
PERCENTILE: Final = 0.95
MIN_EXCESS_SECONDS: Final = 0.001
"""What is beyond a bound is so far beyond it at least, whatever a sum says."""


@dataclass(frozen=True, slots=True)
class RowKey:
    """One revision of one adapter."""

    namespace: str
    base: str
    adapter: str
    revision: str

    @classmethod
    def of(cls, row: RevisionEvidence) -> "RowKey":
        """Return what a row is about."""
        return cls(row.namespace, row.base, row.adapter, row.revision)


@dataclass(frozen=True, slots=True)
class Excess:
    """How much longer than the last bound answers took that are beyond it, in the mean."""

    number: int
    """Those answers."""
    least_seconds: float
    """If all others took as long as their buckets allow."""
    most_seconds: float
    """If all others took as short as their buckets allow."""

    @property
    def middle_seconds(self) -> float:
        """If the others lie evenly in their buckets."""
        return (self.least_seconds + self.most_seconds) / 2


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests that say something of a revision."""

    requests: int = 0
    faults: int = 0
    """Errors of the revision itself."""
    lost: int = 0
    """Requests that were lost with their pod, or found none."""
    first_byte: Mapping[float, int] = field(default_factory=dict)
    """Upper bound in seconds -> answers up to it and above the bound before."""
    sum_seconds: float = 0.0
    """Of all of these."""

    @classmethod
    def of(cls, row: RevisionEvidence, bounds_seconds: list[float]) -> "Counts":
        """Read the counters of a row."""
        harmless = sum(number for name, number in row.errors.items() if name in NO_FAULT)
        lost = sum(number for name, number in row.errors.items() if name in POD_CLASSES)
        bounds = (*bounds_seconds, math.inf)
        first_byte = dict(zip(bounds, row.first_byte.buckets, strict=False))
        return cls(row.num_requests - harmless, row.num_faults - lost, lost, first_byte, row.first_byte.sum_seconds)

    def __add__(self, other: "Counts") -> "Counts":
        return self._combined(other, 1)

    def __sub__(self, other: "Counts") -> "Counts":
        return self._combined(other, -1)

    def _combined(self, other: "Counts", sign: int) -> "Counts":
        first_byte = Counter(self.first_byte)
        for bound, number in other.first_byte.items():
            first_byte[bound] += sign * number
        return Counts(
            self.requests + sign * other.requests,
            self.faults + sign * other.faults,
            self.lost + sign * other.lost,
            first_byte,
            self.sum_seconds + sign * other.sum_seconds,
        )

    @property
    def p95_seconds(self) -> float | None:
        """The 95th percentile of the time to the first byte; None without answers."""
        return self.percentile_seconds(self.excess.middle_seconds)

    def percentile_seconds(self, excess_seconds: float) -> float | None:
        """Return the 95th percentile of the time to the first byte, on a straight line within its bucket; None without answers.

        Beyond the last bound answers thin out as waiting times do that exceed it by `excess_seconds` in the mean.
        """
        total = self.num_timed
        if total <= 0:
            return None
        rank, seen, lower = PERCENTILE * total, 0, 0.0
        for bound, number in sorted(self.first_byte.items()):
            if number > 0 and seen + number >= rank:
                if math.isinf(bound):
                    return lower + excess_seconds * math.log(number / (total - rank))
                return lower + (bound - lower) * (rank - seen) / number
            seen += number
            lower = bound
        return lower

    @property
    def excess(self) -> "Excess":
        """How far the answers beyond the last bound are beyond it, by the sum of all times: what buckets do not tell."""
        number, last = self.first_byte.get(math.inf, 0), 0.0
        least = most = 0.0
        for bound, counted in sorted(self.first_byte.items()):
            if math.isfinite(bound):
                least, most, last = least + counted * last, most + counted * bound, bound
        if number <= 0:
            return Excess(0, 0.0, 0.0)
        highest, lowest = ((self.sum_seconds - others) / number - last for others in (least, most))
        return Excess(number, max(0.0, lowest), max(MIN_EXCESS_SECONDS, highest))

    @property
    def num_timed(self) -> int:
        """Answers of which the time to the first byte is known."""
        return sum(self.first_byte.values())

    def num_slower(self, seconds: float, excess_seconds: float) -> float:
        """Return how many answers took longer to their first byte, those of a bucket on a straight line.

        Beyond the last bound they thin out as in `percentile_seconds`.
        """
        slower, lower = 0.0, 0.0
        for bound, number in sorted(self.first_byte.items()):
            if lower >= seconds:
                slower += number
            elif math.isinf(bound):
                slower += number * math.exp((lower - seconds) / excess_seconds) if excess_seconds > 0 else 0.0
            elif bound > seconds:
                slower += number * (bound - seconds) / (bound - lower)
            lower = bound
        return slower


@dataclass(slots=True)
class _Gateway:
    boot_id: str
    rows: dict[RowKey, tuple[int, Counts]] = field(default_factory=dict)
    """Row -> when it began, and what was read last."""
    begun: set[RowKey] = field(default_factory=set)
    """Revisions that a whole reading was taken of: those without a row had not been counted then."""


class Tally:
    """Sums over all gateways of the revisions that are followed, since they are.

    Gateways tell of every revision that they answer with, and operators run for months: nothing is kept of those that nobody
    follows, neither sums nor readings.
    """

    def __init__(self) -> None:
        self._gateways: dict[str, _Gateway] = {}
        self._totals: dict[RowKey, Counts] = {}
        """Of the revisions that are followed, and no others."""
        self.num_restarts = 0
        """Gateways that were heard to have begun anew: what they counted last is lost."""

    def follow(self, revisions: Set[RowKey]) -> None:
        """Follow exactly these revisions from now on; what was counted of others is forgotten."""
        for key in self._totals.keys() - revisions:
            del self._totals[key]
            for known in self._gateways.values():
                known.rows.pop(key, None)
                known.begun.discard(key)
        for key in revisions - self._totals.keys():
            self._totals[key] = Counts()

    def needs_whole(self, gateway: str) -> bool:
        """Whether a gateway has to be read whole: a reading of what is new does not tell where counting began."""
        known = self._gateways.get(gateway)
        return known is None or not self._totals.keys() <= known.begun

    def take(self, gateway: str, document: Evidence, *, is_whole: bool) -> None:
        """Take in what a gateway says.

        Args:
            gateway: uid of its pod.
            document: what it says; whole also where it does not know the boot id that it was asked with.
            is_whole: whether rows that have not changed since the reading before are in it. The first such reading of a
                revision is where its counting begins.
        """
        known = self._gateways.get(gateway)
        if known is None:
            known, is_whole = self._gateways.setdefault(gateway, _Gateway(document.boot_id)), True
        elif known.boot_id != document.boot_id:
            self.num_restarts += 1
            known.boot_id, known.rows, is_whole = document.boot_id, {}, True
        for row in document.revisions:
            key = RowKey.of(row)
            if key not in self._totals or not (is_whole or key in known.begun):
                continue
            counts, before = Counts.of(row, document.bounds_seconds), known.rows.get(key)
            if key in known.begun:
                is_same = before is not None and before[0] == row.began
                self._totals[key] += counts - before[1] if before is not None and is_same else counts
            known.rows[key] = (row.began, counts)
        if is_whole:
            known.begun.update(self._totals)

    def forget(self, gateway: str) -> None:
        """A gateway is gone; what it said counts."""
        self._gateways.pop(gateway, None)

    def total(self, key: RowKey) -> Counts:
        """Return what all gateways have counted of a revision since it is followed."""
        return self._totals.get(key, Counts())

    @property
    def num_kept(self) -> int:
        """Sums and readings in memory; each takes some 2 kB."""
        return len(self._totals) + sum(len(known.rows) for known in self._gateways.values())


@dataclass(frozen=True, slots=True)
class Hearing:
    """How far gateways are heard."""

    tally: Tally
    num_gateways: int
    """Those that are to be heard."""
    num_silent: int
    """Of these, those that do not answer now."""
    obstacle: str | None = None
    """Why none is to be heard, in words."""
