"""How much is asked of each adapter: tokens a second over all pods, smoothed. Pure, over what pods count."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from lorafleet_contract.admin import Owner, PodState
from lorafleet_operator.decide.views import ObservedPod

SMOOTHING_SECONDS: Final = 60.0
MIN_SECONDS: Final = 10.0
"""Counters that are newer than the last ones by less say little."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """What one pod said last, and what that came to."""

    state: PodState
    at: float
    rates: Mapping[str, float] = field(default_factory=dict)
    """Served name -> tokens a second between the last two counters."""


class Demand:
    """Of one base."""

    def __init__(self) -> None:
        self._pods: dict[str, _Counted] = {}
        self._looked_at: float | None = None
        self.rates: dict[str, float] = {}
        """Served name -> tokens a second, smoothed; what was never asked for is left out."""

    def look(self, pods: Iterable[ObservedPod], now: float) -> None:
        """Take in what pods have counted; `now` is in seconds on any clock that does not jump.

        A pod that does not answer now, or has not told its counters anew, is taken to go on as before.
        """
        counted = {}
        for pod in pods:
            known = self._pods.get(pod.uid)
            if pod.state is not None:
                counted[pod.uid] = _counted(pod.counted or pod.state, known, now)
            elif known is not None and not pod.pod.is_leaving:
                counted[pod.uid] = known
        self._pods = counted
        seconds = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        part = 1 - math.exp(-seconds / SMOOTHING_SECONDS)
        current: dict[str, float] = {}
        for one in counted.values():
            for name, rate in one.rates.items():
                current[name] = current.get(name, 0.0) + rate
        for name in self.rates.keys() | current.keys():
            before = self.rates.get(name, 0.0)
            self.rates[name] = before + part * (current.get(name, 0.0) - before)


def _counted(state: PodState, known: _Counted | None, now: float) -> _Counted:
    if known is None:
        return _Counted(state, now)
    seconds = now - known.at
    if state is known.state or seconds < MIN_SECONDS:
        return known
    before = _counters(known.state) if known.state.boot_id == state.boot_id else {}
    rates: dict[str, float] = {}
    for (name, revision), number in _counters(state).items():
        last = before.get((name, revision), 0)
        grown = number - last if number >= last else number  # it was forgotten, and is known anew
        rates[name] = rates.get(name, 0.0) + grown / seconds
    return _Counted(state, now, rates)


def _counters(state: PodState) -> dict[tuple[str, str], int]:
    own = (entry for entry in state.adapters if entry.owner is Owner.OPERATOR)
    return {(entry.name, entry.revision): entry.num_tokens or 0 for entry in own}
