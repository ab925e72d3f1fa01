"""Which pods go first when there are to be fewer: what each costs to delete. Pure.

A ReplicaSet with too many pods deletes those that are not ready, and of the others those with the lowest
`controller.kubernetes.io/pod-deletion-cost`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from lorafleet_operator.decide.views import ObservedPod

MAX_ALONE: Final = 1023
"""Adapters that are told apart; a pod that alone has more costs no more."""
MAX_SEQUENCES: Final = 2**20
UNKNOWN: Final = 2**31 - 1
"""The highest cost that Kubernetes takes: of a pod that does not say what it runs."""


def deletion_costs(pods: Sequence[ObservedPod], sequences: Mapping[str, int]) -> dict[str, int]:
    """Return pod uid -> cost, a 32-bit integer, of the pods that may be deleted and are ready.

    Sequences come first, since their clients wait; between pods with as many, the adapters that would have to be loaded elsewhere.

    Args:
        pods: all of a base.
        sequences: pod uid -> sequences that it runs and that wait there; without those that did not say.
    """
    staying = [pod for pod in pods if not pod.pod.is_leaving]
    num_holders = Counter(name for pod in staying for name in pod.residents)
    costs: dict[str, int] = {}
    for pod in staying:
        if not pod.pod.is_ready:
            continue  # such go first in any case
        number = sequences.get(pod.uid)
        if number is None:
            costs[pod.uid] = UNKNOWN
            continue
        num_alone = sum(num_holders[name] == 1 for name in pod.residents)
        costs[pod.uid] = min(number, MAX_SEQUENCES) * (MAX_ALONE + 1) + min(num_alone, MAX_ALONE)
    return costs
