"""While pods of a base are replaced, what statuses say of who keeps an adapter is written at a bounded rate. Pure.

Each pod that comes or goes is a line in the status of every adapter that it keeps: fifty pods of a thousand adapters, replaced
one by one, would be a hundred thousand writes, and the next pod makes each of them void. What somebody waits for or acts on
is not held back: whether an adapter is Ready or Available, its revisions, what was observed of its spec, failures on pods.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lorafleet_contract.admin import AdapterState
from lorafleet_contract.resources import AdapterResource, AdapterStatus, BaseModelResource
from lorafleet_operator.decide.conditions import RESIDENT
from lorafleet_operator.decide.views import BaseKey, Pod

WRITES_PER_SECOND: Final = 0.5
"""Of a base, while its pods are replaced."""
MAX_SAVED_WRITES: Final = 16
"""So many at once after a while without any: a base with few adapters tells everything at once."""
LOOK_SECONDS: Final = 10.0
"""When a base whose statuses wait is looked at again."""
Change = tuple[AdapterResource, AdapterStatus]


@dataclass(slots=True)
class _Allowance:
    """What may be written of a base at once."""

    num_writes: float
    at: float
    since: dict[str, float] = field(default_factory=dict)
    """Uid of an adapter -> since when its status waits."""


class Bookkeeping:
    """What waits, base by base."""

    def __init__(self) -> None:
        self._allowances: dict[BaseKey, _Allowance] = {}

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._allowances.pop(base, None)

    def due(self, base: BaseKey, changes: Sequence[Change], *, are_pods_settled: bool, now: float) -> list[Change]:
        """Return the statuses of a base that are written now, those that have waited longest first among what can wait.

        `now` is in seconds on any clock that does not jump. Once the pods are settled everything is due.
        """
        if are_pods_settled:
            self.forget(base)
            return list(changes)
        known = self._allowances.get(base) or _Allowance(MAX_SAVED_WRITES, now)
        saved = min(MAX_SAVED_WRITES, known.num_writes + (now - known.at) * WRITES_PER_SECOND)
        waiting = [change for change in changes if is_bookkeeping(*change)]
        since = {adapter.metadata.uid: known.since.get(adapter.metadata.uid, now) for adapter, _ in waiting}
        waiting.sort(key=lambda change: since[change[0].metadata.uid])
        due = {change[0].metadata.uid for change in waiting[: math.floor(saved)]}
        left = {uid: began for uid, began in since.items() if uid not in due}
        self._allowances[base] = _Allowance(saved - len(due), now, left)
        return [change for change in changes if change[0].metadata.uid not in left]


def are_all_there(base: BaseModelResource, pods: Sequence[Pod]) -> bool:
    """Whether the pods of a base are as many as it wants, and none is coming or going.

    A Deployment's status says so of new templates; of pods that end by themselves it says so later than the pods do.
    """
    return len(pods) == base.spec.replicas and all(pod.is_ready and not pod.is_leaving for pod in pods)


def is_bookkeeping(adapter: AdapterResource, after: AdapterStatus) -> bool:
    """Whether a status says nothing new but on which pods the adapter is."""
    return _lasting(adapter.status) == _lasting(after)


def _lasting(status: AdapterStatus) -> tuple[Any, ...]:
    """Return what of a status is more than bookkeeping."""
    conditions = [
        # that a pod which has just come does not keep it yet is no loss: whether it is Available says that
        (c.type, c.observed_generation, *((c.status, c.reason) if c.type != RESIDENT else ()))
        for c in status.conditions
    ]
    failed = {(p.pod_uid, p.revision, p.reason) for p in status.placements if p.state == AdapterState.FAILED}
    return (
        (status.observed_generation, status.served_name, status.desired_revision, status.stable_revision),
        (status.artifact, status.stable_artifact, status.history, status.placement, status.traffic, status.rollout),
        conditions,
        failed,
    )
