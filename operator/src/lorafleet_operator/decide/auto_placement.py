"""On how many pods adapters with `placement.mode: Auto` are kept, from window to window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lorafleet_contract.adapter_spec import PlacementMode
from lorafleet_contract.resources import AdapterResource, BaseModelResource
from lorafleet_operator.decide.accept import refusal_of
from lorafleet_operator.decide.catalogue import budgets_of
from lorafleet_operator.decide.demand import Demand
from lorafleet_operator.decide.place import PodBudget
from lorafleet_operator.decide.share import Bounds, Share, next_shares, proportional, worthwhile
from lorafleet_operator.decide.views import BaseKey, ObservedPod, Snapshot

WINDOW_SECONDS: Final = 60.0
FILL: Final = 0.9
"""Part of the places left by other modes that is given out; the rest is for those that rise before others fall."""
MAX_MOVES: Final = 16
"""Pods on which adapters are put more than before in a window, all together; as many fall after their five windows."""


@dataclass(slots=True)
class _Base:
    """What is remembered of a base."""

    window_at: float
    """When the last window ended."""
    demand: Demand = field(default_factory=Demand)
    shares: dict[str, Share] = field(default_factory=dict)
    """By uid of the adapter."""
    given_up: frozenset[str] = frozenset()
    """Uids of those for whose lower bound there is no room."""


class AutoPlacement:
    """Shares of all bases. After a start an adapter goes on with the pods that keep it."""

    def __init__(self) -> None:
        self._bases: dict[BaseKey, _Base] = {}

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._bases.pop(base, None)

    def next_window(self, base: BaseKey, *, now: float) -> float | None:
        """Return in how many seconds a window ends; None where no adapter is placed by its load."""
        known = self._bases.get(base)
        return max(0.0, known.window_at + WINDOW_SECONDS - now) + 0.05 if known is not None else None

    def of(
        self, snapshot: Snapshot, base: BaseModelResource, pods: Sequence[ObservedPod], *, now: float
    ) -> Mapping[str, int]:
        """Return adapter uid -> number of pods; `now` is in seconds on any clock that does not jump."""
        budgets = budgets_of(base, pods)
        if not budgets or not any(a.placement.mode is PlacementMode.AUTO for a in snapshot.adapters):
            return {}
        accepted = [
            adapter
            for adapter in snapshot.adapters
            if adapter.metadata.deletion_timestamp is None and refusal_of(adapter, snapshot) is None
        ]
        auto = {a.metadata.uid: a for a in accepted if a.placement.mode is PlacementMode.AUTO}
        known = self._bases.get(snapshot.key)
        if known is None:
            known = self._bases[snapshot.key] = _Base(now)
            known.demand.look(pods, now)
        bounds = {uid: _bounds(adapter, len(budgets)) for uid, adapter in auto.items()}
        known.shares = {
            uid: known.shares.get(uid)
            or Share(min(max(_num_holders(adapter, pods), bounds[uid].least), bounds[uid].most))
            for uid, adapter in auto.items()
        }
        if now - known.window_at >= WINDOW_SECONDS:
            known.window_at = now
            known.demand.look(pods, now)
            total = _places(budgets, accepted)
            rates = {uid: known.demand.rates.get(adapter.served_name, 0.0) for uid, adapter in auto.items()}
            deserved = proportional(rates, worthwhile(rates, bounds, len(budgets)), total)
            known.shares = next_shares(known.shares, deserved, bounds, total=total, max_moves=MAX_MOVES)
            known.given_up = frozenset(uid for uid, number in deserved.items() if number < bounds[uid].least)
        return {
            uid: min(
                share.num_pods if uid in known.given_up else max(share.num_pods, bounds[uid].least), bounds[uid].most
            )
            for uid, share in known.shares.items()
        }


def _bounds(adapter: AdapterResource, num_pods: int) -> Bounds:
    spec = adapter.placement
    most = num_pods if spec.max_replicas is None else min(spec.max_replicas, num_pods)
    return Bounds(min(spec.least, most), most)


def _num_holders(adapter: AdapterResource, pods: Sequence[ObservedPod]) -> int:
    """On how many pods it is kept, as its status says."""
    uids = {pod.uid for pod in pods if not pod.pod.is_leaving}
    return len({placement.pod_uid for placement in adapter.status.placements} & uids)


def _places(budgets: Sequence[PodBudget], accepted: Sequence[AdapterResource]) -> int:
    """Return the places for adapters that are placed by their load."""
    others = 0
    for adapter in accepted:
        spec = adapter.placement
        if spec.mode is PlacementMode.ALL:
            others += len(budgets)
        elif spec.mode is PlacementMode.FIXED:
            others += min(spec.replicas, len(budgets))
    return int(FILL * max(0, sum(max(0, budget.slots) for budget in budgets) - others))
