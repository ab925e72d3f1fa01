"""Which pod gets a request. Pure: a picture of the pods in, a decision with its reason out.

An adapter goes where it is: device memory before host memory before disk before nowhere. Among pods that hold it on the
device two are drawn and the one with fewer outstanding requests wins: several gateways see the same counts, which are up
to two seconds old, and would all send to the one idle pod. Where it would have to be loaded, a rendezvous hash of its name
picks the pod, so that all requests for it (and all gateways) load it in the same place. A pod that is far busier than the
others is passed over, so that a hot adapter spreads to a second one.
"""

import hashlib
import random
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from lorafleet_contract.admin import Tier

SPILL_FLOOR: Final = 32
"""A pod with fewer outstanding requests than this is never passed over: they fit into one batch."""
SPILL_FACTOR: Final = 2.0
"""A pod is passed over when it has this many times the mean of the ready pods."""
_PREFERENCE: Final = {Tier.DEVICE: 0, Tier.HOST: 1, Tier.DISK: 2, Tier.SOURCE: 3}
EJECT_AFTER: Final = 5
"""Failed answers in a row after which a pod gets nothing for a while."""
EJECT_SECONDS: Final = 30.0
_UNLISTED: Final = 3
"""A pod that has not heard of it yet is as good as one that has to download it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One pod as it concerns one request."""

    uid: str
    is_ready: bool
    """Kubernetes says so, and the pod itself does not deny it."""
    is_reachable: bool
    """It has told lately what it holds; one that has not is asked only if there is no other."""
    tier: Tier | None
    """Where it holds the revision asked for; None: it does not list it."""
    outstanding: int
    """Requests that it has not ended, as far as this gateway knows."""
    is_ejected: bool = False
    """It has failed one request after the other; it is asked only if there is no other."""


class Why(StrEnum):
    """The reason of a decision."""

    BASE = "base"
    """Any pod can answer for the base itself."""
    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    SOURCE = "source"
    UNLISTED = "unlisted"
    SPILL = "spill"
    """The pods that hold it are too busy."""
    NO_PODS = "no_pods"
    NONE_READY = "none_ready"
    ALL_TRIED = "all_tried"


@dataclass(frozen=True, slots=True)
class Decision:
    """Where to, and why; no uid when there is nowhere to go."""

    uid: str | None
    why: Why


Sample = Callable[[Sequence[Candidate]], Sequence[Candidate]]
"""Of equally good pods those whose load is compared."""


def everyone(pods: Sequence[Candidate]) -> Sequence[Candidate]:
    """Compare all."""
    return pods


def two_at_random(pods: Sequence[Candidate]) -> Sequence[Candidate]:
    """Compare two."""
    return random.sample(pods, 2) if len(pods) > 2 else pods


def may_eject(*, num_ready: int, num_ejected: int) -> bool:
    """Return whether one more pod of a base may be ejected: never more than half of the ready ones."""
    return 2 * (num_ejected + 1) <= num_ready


def decide(
    name: str,
    candidates: Sequence[Candidate],
    *,
    is_adapter: bool,
    loads_on_demand: bool = True,
    tried: AbstractSet[str] = frozenset(),
    sample: Sample = everyone,
) -> Decision:
    """Return where a request for a model goes.

    Args:
        name: the model.
        candidates: the pods of its base.
        is_adapter: whether it is an adapter, not the base itself.
        loads_on_demand: whether pods load it when a request names it.
        tried: uids of pods that have refused this request.
        sample: which of equally good pods are compared by their outstanding requests.
    """
    if not candidates:
        return Decision(None, Why.NO_PODS)
    ready = [candidate for candidate in candidates if candidate.is_ready]
    if not ready:
        return Decision(None, Why.NONE_READY)
    left = [candidate for candidate in ready if candidate.uid not in tried]
    if not left:
        return Decision(None, Why.ALL_TRIED)
    pool = [candidate for candidate in left if candidate.is_reachable] or left
    pool = [candidate for candidate in pool if not candidate.is_ejected] or pool
    if not is_adapter:
        return Decision(_least_busy(name, sample(pool)).uid, Why.BASE)
    eligible = pool
    if loads_on_demand:
        limit = _spill_limit(pool)
        eligible = [candidate for candidate in pool if candidate.outstanding < limit] or pool
    nearest = min(map(_preference, eligible))
    nearby = [candidate for candidate in eligible if _preference(candidate) == nearest]
    if nearest == _PREFERENCE[Tier.DEVICE]:
        chosen = _least_busy(name, sample(nearby))
    else:
        chosen = max(nearby, key=lambda candidate: affinity(name, candidate.uid))
    if nearest > min(map(_preference, pool)):
        return Decision(chosen.uid, Why.SPILL)
    return Decision(chosen.uid, Why.UNLISTED if chosen.tier is None else Why(chosen.tier.lower()))


@lru_cache(maxsize=1 << 16)
def affinity(name: str, uid: str) -> int:
    """Return how much a name belongs to a pod: the same for everybody, and independent of the other pods."""
    return int.from_bytes(hashlib.blake2b(f"{name}\0{uid}".encode(), digest_size=8).digest(), "big")


def _least_busy(name: str, pods: Collection[Candidate]) -> Candidate:
    return min(pods, key=lambda candidate: (candidate.outstanding, -affinity(name, candidate.uid)))


def _preference(candidate: Candidate) -> int:
    return _UNLISTED if candidate.tier is None else _PREFERENCE[candidate.tier]


def _spill_limit(pool: Collection[Candidate]) -> float:
    return max(SPILL_FLOOR, SPILL_FACTOR * sum(candidate.outstanding for candidate in pool) / len(pool))
