"""Policies that are compared: where adapters are kept, and which pod gets a request."""

# ruff: noqa: ARG002  all are asked the same, and none needs all of it

from collections.abc import Mapping, Sequence
from typing import Protocol

from lorafleet_operator.decide.auto_placement import FILL, MAX_MOVES
from lorafleet_operator.decide.paging import Paging
from lorafleet_operator.decide.place import PodBudget, Want, place, rendezvous
from lorafleet_operator.decide.share import Bounds, Share, next_shares, proportional, worthwhile
from measure.placing.pods import SimulatedPod

RANK = 8
Kept = Mapping[int, frozenset[str]]
"""Adapter -> uids of the pods that keep it."""


class Policy(Protocol):
    """One way to place and to route."""

    name: str

    def keep(self, pods: Sequence[SimulatedPod], rates: Mapping[int, float], before: Kept) -> Kept:
        """Return where adapters are kept from now on; called each minute, and when pods come and go.

        Args:
            pods: those that there are.
            rates: adapter -> tokens a second, smoothed over the last minutes.
            before: what was kept until now.
        """
        ...

    def choose(self, adapter: int, pods: Sequence[SimulatedPod], holders: Sequence[SimulatedPod]) -> SimulatedPod:
        """Return the pod that gets a request; `holders` are those that keep its adapter."""
        ...


def least(pods: Sequence[SimulatedPod]) -> SimulatedPod:
    """Return the pod with the least to do."""
    return min(pods, key=lambda pod: (pod.load, pod.uid))


def name_of(adapter: int) -> str:
    """Return the served name of an adapter."""
    return f"adapter-{adapter:04}"


def operators_placement(pods: Sequence[SimulatedPod], wanted: Mapping[int, int | None], before: Kept) -> Kept:
    """Return where the operator's own placement keeps so many of each."""
    budgets = [PodBudget(pod.uid, pod.slots, pod.slots, Paging(RANK)) for pod in pods]
    wants = [
        Want(name_of(adapter), RANK, number, holders=before.get(adapter, frozenset()))
        for adapter, number in wanted.items()
    ]
    placed = place(budgets, wants).pods
    return {adapter: placed[name_of(adapter)] for adapter in wanted}


class ByHolders:
    """Requests go to the least loaded of the pods that keep the adapter, else to one that hashing says."""

    def choose(self, adapter: int, pods: Sequence[SimulatedPod], holders: Sequence[SimulatedPod]) -> SimulatedPod:
        """Return the pod that gets a request."""
        if holders:
            return least(holders)
        loaded = [pod for pod in pods if pod.has(adapter)]
        return least(loaded) if loaded else max(pods, key=lambda pod: rendezvous(name_of(adapter), pod.uid))


class Placed(ByHolders):
    """The operator's placement with a number of pods for each adapter: `Fixed`, and with None `All`."""

    def __init__(self, name: str, number: int | None, num_adapters: int) -> None:
        self.name = name
        self._wanted = dict.fromkeys(range(num_adapters), number)

    def keep(self, pods: Sequence[SimulatedPod], rates: Mapping[int, float], before: Kept) -> Kept:
        """Return where adapters are kept."""
        return operators_placement(pods, self._wanted, before)


class Rendezvous(ByHolders):
    """Plain rendezvous hashing: the first pods by weight, whatever is on them, and whatever room they have."""

    def __init__(self, number: int, num_adapters: int) -> None:
        self.name = f"rendezvous {number}"
        self._number = number
        self._num_adapters = num_adapters

    def keep(self, pods: Sequence[SimulatedPod], rates: Mapping[int, float], before: Kept) -> Kept:
        """Return where adapters are kept: of those that hash to a full pod the first by number."""
        room = {pod.uid: pod.slots for pod in pods}
        kept = {}
        for adapter in range(self._num_adapters):
            ranked = sorted((pod.uid for pod in pods), key=lambda uid: rendezvous(name_of(adapter), uid), reverse=True)
            chosen = frozenset(uid for uid in ranked[: self._number] if room[uid] > 0)
            for uid in chosen:
                room[uid] -= 1
            kept[adapter] = chosen
        return kept


class LeastLoaded:
    """Nothing is placed: the least loaded pod gets the request, and loads the adapter if it has to."""

    name = "least loaded"

    def keep(self, pods: Sequence[SimulatedPod], rates: Mapping[int, float], before: Kept) -> Kept:
        """Nothing is kept."""
        return {}

    def choose(self, adapter: int, pods: Sequence[SimulatedPod], holders: Sequence[SimulatedPod]) -> SimulatedPod:
        """Return the least loaded pod."""
        return least(pods)


class LeastLoadedWithAffinity(LeastLoaded):
    """As a router does that knows what is loaded: the least loaded pod that has it, unless that one is too busy."""

    name = "least loaded, affinity"
    too_busy = 1.25
    """Multiple of the mean load."""

    def choose(self, adapter: int, pods: Sequence[SimulatedPod], holders: Sequence[SimulatedPod]) -> SimulatedPod:
        """Return the pod that gets a request."""
        loaded = [pod for pod in pods if pod.has(adapter)]
        if loaded:
            best = least(loaded)
            if best.load <= self.too_busy * sum(pod.load for pod in pods) / len(pods):
                return best
        return least(pods)


class Auto(ByHolders):
    """Replicas in proportion to the tokens served, on the operator's own placement."""

    def __init__(self, num_adapters: int, *, least: int = 1, max_moves: int = MAX_MOVES) -> None:
        self.name = "Auto"
        self._names = {name_of(adapter): adapter for adapter in range(num_adapters)}
        self._least = least
        self._max_moves = max_moves
        self._shares: dict[str, Share] = {}

    def keep(self, pods: Sequence[SimulatedPod], rates: Mapping[int, float], before: Kept) -> Kept:
        """Return where adapters are kept."""
        bounds = dict.fromkeys(self._names, Bounds(self._least, len(pods)))
        total = int(FILL * sum(pod.slots for pod in pods))
        by_name = {name: rates.get(a, 0.0) for name, a in self._names.items()}
        deserved = proportional(by_name, worthwhile(by_name, bounds, len(pods)), total)
        self._shares = next_shares(self._shares, deserved, bounds, total=total, max_moves=self._max_moves)
        return operators_placement(pods, {self._names[n]: s.num_pods for n, s in self._shares.items()}, before)


class AutoEven(Auto):
    """The same placement; a pod that has more to do than the mean is passed over, as a gateway would that minds evenness most."""

    def __init__(self, num_adapters: int) -> None:
        super().__init__(num_adapters)
        self.name = "Auto, even"

    def choose(self, adapter: int, pods: Sequence[SimulatedPod], holders: Sequence[SimulatedPod]) -> SimulatedPod:
        """Return the pod that gets a request: of those that keep it, else of those that have it loaded, else of all."""
        mean = sum(pod.load for pod in pods) / len(pods)
        for those in (holders, [pod for pod in pods if pod.has(adapter)]):
            if those and (best := least(those)).load <= mean:
                return best
        return least(pods)
