"""Windows of analysis: since when each rollout is looked at, and what had been counted then. Kept in memory only.

An operator that starts begins every window anew: a step takes longer then, and nothing is judged by what was not seen.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from lorafleet_contract.rollout import Analysis, Judgement, RevisionCounts, RolloutEvidence, RolloutStatus
from lorafleet_operator.decide.evidence import Counts, Hearing, RowKey
from lorafleet_operator.decide.judge import NO_READINGS, judge
from lorafleet_operator.decide.measured import Reading

TELL_AGAIN: Final = timedelta(seconds=60)
"""A window that cannot be judged is told of once a minute."""
Step = tuple[str, str | None, int | None, datetime | None]
"""Which step of which try of which revision."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two revisions that are compared."""

    canary: RowKey
    stable: RowKey


@dataclass(slots=True)
class _Window:
    step: Step
    pair: Pair
    since: datetime
    canary: Counts
    stable: Counts
    """What had been counted at its begin."""
    num_restarts: int
    was_silent: bool
    """Whether some gateway was not heard at its begin: what that one counted until it was is not known."""
    has_lost: bool = False
    """Whether the window before was bad for nothing but requests that were lost with their pods."""
    found: RolloutEvidence | None = None
    """What is to be told, until status has it."""


class Windows:
    """One for each rollout that is judged, by uid of its adapter."""

    def __init__(self) -> None:
        self._open: dict[str, _Window] = {}

    def keep(self, uids: Collection[str], of: Collection[str]) -> None:
        """Forget the windows of adapters `of` a base that are not judged any more."""
        for uid in set(of) - set(uids):
            self._open.pop(uid, None)

    def look(
        self,
        uid: str,
        rollout: RolloutStatus,
        analysis: Analysis,
        hearing: Hearing,
        *,
        pair: Pair,
        now: datetime,
        readings: Mapping[str, Reading] | None = None,
    ) -> RolloutEvidence | None:
        """Return what came of the window of a step, if it is over, until `rollout` tells it. It is not judged before
        `readings`, the answers to the queries of the analysis, are there.

        It begins with the first look at the step, and anew when something that was counted is lost.
        """
        step = (rollout.revision, rollout.steps_hash, rollout.step_index, rollout.step_start_time)
        window = self._open.get(uid)
        if window is None or (window.step, window.pair) != (step, pair) or _is_broken(window, hearing):
            self._begin(uid, step, pair, hearing, now)
            return None
        if window.found is not None and window.found.judgement is not Judgement.INCONCLUSIVE:
            if rollout.evidence != window.found:
                return window.found  # it was not written
            self._begin(uid, step, pair, hearing, now)
            return None
        if now < window.since + timedelta(seconds=analysis.window_seconds):
            return window.found
        if analysis.prometheus and readings is None:
            return window.found
        return self._close(uid, window, analysis, hearing, now=now, readings=readings or NO_READINGS)

    def _close(
        self,
        uid: str,
        window: _Window,
        analysis: Analysis,
        hearing: Hearing,
        *,
        now: datetime,
        readings: Mapping[str, Reading],
    ) -> RolloutEvidence | None:
        """Judge a window that is over; one that cannot be judged goes on."""
        totals = hearing.tally.total(window.pair.canary), hearing.tally.total(window.pair.stable)
        canary, stable = totals[0] - window.canary, totals[1] - window.stable
        verdict = judge(analysis, canary, stable, hearing, readings)
        judgement, message = verdict.judgement, verdict.message
        is_first_loss = verdict.is_loss and not window.has_lost
        if is_first_loss:
            judgement, message = Judgement.INCONCLUSIVE, f"{message}: as when a pod dies; the next window tells"
        found = RolloutEvidence(
            since=window.since.replace(microsecond=0),
            until=now.replace(microsecond=0),
            canary=_written(canary),
            stable=_written(stable),
            gateways=hearing.num_gateways,
            silent_gateways=hearing.num_silent,
            judgement=judgement,
            message=message,
        )
        if is_first_loss:
            window = self._begin(uid, window.step, window.pair, hearing, now)
            window.has_lost = True
        told = window.found
        is_due = told is None or judgement is not Judgement.INCONCLUSIVE or found.until - told.until >= TELL_AGAIN
        if is_due:
            window.found = found
        return window.found

    def over_since(self, uid: str, analysis: Analysis, now: datetime) -> datetime | None:
        """Return when a window began that is over and not told of yet as good or bad; None where there is none."""
        window = self._open.get(uid)
        if window is None or now < window.since + timedelta(seconds=analysis.window_seconds):
            return None
        is_judged = window.found is not None and window.found.judgement is not Judgement.INCONCLUSIVE
        return None if is_judged else window.since

    def ends_at(self, uid: str, analysis: Analysis) -> datetime | None:
        """Return when the window of an adapter is over; None without one."""
        window = self._open.get(uid)
        return window.since + timedelta(seconds=analysis.window_seconds) if window is not None else None

    def _begin(self, uid: str, step: Step, pair: Pair, hearing: Hearing, now: datetime) -> _Window:
        tally, was_silent = hearing.tally, bool(hearing.num_silent or not hearing.num_gateways)
        counted = tally.total(pair.canary), tally.total(pair.stable)
        window = self._open[uid] = _Window(step, pair, now, *counted, tally.num_restarts, was_silent)
        return window


def _is_broken(window: _Window, hearing: Hearing) -> bool:
    """Whether a window lacks something that was counted within it, and another one would not."""
    is_heard = hearing.num_gateways > 0 and not hearing.num_silent
    return window.num_restarts != hearing.tally.num_restarts or (window.was_silent and is_heard)


def _written(counts: Counts) -> RevisionCounts:
    p95 = counts.p95_seconds
    return RevisionCounts(
        requests=counts.requests,
        faults=counts.faults,
        lost=counts.lost,
        p95_milliseconds=round(1000 * p95) if p95 is not None else None,
    )
