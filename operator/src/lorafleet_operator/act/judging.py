"""Judges rollouts by steps: asks for evidence while one needs it, and closes windows when they are over."""

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

from lorafleet_contract.rollout import Analysis, RolloutEvidence, RolloutStatus
from lorafleet_operator.decide.canary import current, is_judged
from lorafleet_operator.decide.evidence import Hearing, RowKey
from lorafleet_operator.decide.intent import Intent
from lorafleet_operator.decide.measured import Reading, queries_of
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.decide.windows import Pair, Windows

ANSWER_SECONDS: Final = 0.5
"""While queries are asked, it is looked for their answers after this."""
LOOK_SECONDS: Final = 5.0
"""A window that is over and cannot be judged yet is looked at again after this."""


class Gateways(Protocol):
    """Whoever asks gateways what they count."""

    def follow(self, base: BaseKey, revisions: Set[RowKey]) -> None:
        """Ask gateways of these revisions of a base from now on, and of no others of it; nobody is asked while there are none."""

    def hearing(self) -> Hearing:
        """Return what they have said so far."""

    @property
    def obstacle(self) -> str | None:
        """Why none is asked, in words; None where one is."""


class Measures(Protocol):
    """Whoever asks Prometheus."""

    def readings(self, uid: str, since: datetime, queries: Mapping[str, str]) -> Mapping[str, Reading] | None:
        """Return what the queries of an adapter's window say; None while they are asked. `since` tells windows apart."""

    def keep(self, uids: Collection[str], of: Collection[str]) -> None:
        """Forget the queries of adapters `of` a base that are not judged any more."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of the windows of a base."""

    windows: Mapping[str, RolloutEvidence]
    """Uid of an adapter -> its window that is over, until status tells it."""
    look_again_seconds: float | None
    """When the next one is over; None when none is open."""


class Judging:
    """The rollouts of all bases that are judged now."""

    def __init__(self, gateways: Gateways, measures: Measures) -> None:
        self._gateways = gateways
        self._measures = measures
        self._windows = Windows()
        self._known: dict[BaseKey, frozenset[str]] = {}
        """Uids of adapters that have a window."""

    def look(self, base: BaseKey, intents: Iterable[Intent], now: datetime) -> Judged:
        """Look at the windows of a base; judged is by the status as it was read."""
        rollouts = {
            intent.adapter.metadata.uid: (intent, rollout)
            for intent in intents
            if (rollout := _rollout(intent)) is not None
        }
        pairs = {uid: _pair(base, intent, rollout) for uid, (intent, rollout) in rollouts.items()}
        self._keep(base, pairs)
        if not rollouts:
            return Judged({}, None)
        hearing = replace(self._gateways.hearing(), obstacle=self._gateways.obstacle)
        found: dict[str, RolloutEvidence] = {}
        ends: list[datetime] = []
        is_asking = False
        for uid, (intent, rollout) in rollouts.items():
            assert intent.rollout is not None
            assert intent.rollout.analysis is not None
            analysis = intent.rollout.analysis
            since = self._windows.over_since(uid, analysis, now) if analysis.prometheus else None
            readings = self._readings(uid, analysis, pairs[uid], since, now) if since is not None else None
            is_asking = is_asking or (since is not None and readings is None)
            window = self._windows.look(uid, rollout, analysis, hearing, pair=pairs[uid], now=now, readings=readings)
            if window is not None:
                found[uid] = window
            if (end := self._windows.ends_at(uid, analysis)) is not None:
                ends.append(end)
        if not ends:
            return Judged(found, None)
        seconds = (min(ends) - now).total_seconds()
        if is_asking:
            return Judged(found, min(seconds, ANSWER_SECONDS) if seconds > 0 else ANSWER_SECONDS)
        return Judged(found, seconds if seconds > 0 else LOOK_SECONDS)

    def _readings(
        self, uid: str, analysis: Analysis, pair: Pair, since: datetime, now: datetime
    ) -> Mapping[str, Reading] | None:
        """Return what queries say of a window that is over; they are asked over all of it, also of one that goes on."""
        seconds = int((now - since).total_seconds())
        queries = queries_of(analysis, canary=pair.canary, stable=pair.stable, seconds=seconds)
        return self._measures.readings(uid, since, queries)

    def forget(self, base: BaseKey) -> None:
        """Nothing of a base is judged any more."""
        self._keep(base, {})

    def _keep(self, base: BaseKey, pairs: Mapping[str, Pair]) -> None:
        before = self._known.pop(base, frozenset())
        self._windows.keep(pairs.keys(), before)
        self._measures.keep(pairs.keys(), before)
        if pairs:
            self._known[base] = frozenset(pairs)
        self._gateways.follow(base, {key for pair in pairs.values() for key in (pair.canary, pair.stable)})


def _rollout(intent: Intent) -> RolloutStatus | None:
    """Return the rollout of an adapter, if it is judged now."""
    if intent.rollout is None or intent.desired is None or intent.published is None or intent.phase is None:
        return None
    status = current(intent.rollout, intent.desired.revision, intent.adapter.status.rollout)
    is_held = intent.adapter.spec.suspend or not intent.is_served
    return status if is_judged(intent.rollout, status) and not is_held else None


def _pair(base: BaseKey, intent: Intent, rollout: RolloutStatus) -> Pair:
    assert intent.published is not None
    return Pair(RowKey(*base, intent.name, rollout.revision), RowKey(*base, intent.name, intent.published))
