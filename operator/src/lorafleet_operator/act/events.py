"""Kubernetes Events, on transitions only."""

import asyncio
import logging
import uuid
from collections import deque
from datetime import UTC, datetime
from typing import Final

from lorafleet_common.kube.errors import KubeError
from lorafleet_common.paths import Json, collection
from lorafleet_common.supervise import end
from lorafleet_contract.autoscaling import AutoscalingStatus
from lorafleet_contract.names import GROUP, MANAGED_BY, VERSION
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import Condition, ObjectMeta
from lorafleet_contract.rollout import RolloutPhase, RolloutStatus
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.decide.canary import is_step
from lorafleet_operator.decide.conditions import READY, STALLED, condition_of

logger = logging.getLogger(__name__)
MAX_NOTE: Final = 1024
MAX_WAITING: Final = 5000
"""Events that have not been posted yet: some MB."""
LAST_SECONDS: Final = 2.0
"""What an operator that ends gives to those that wait."""
FAILURES: Final = frozenset({Reason.ANALYSIS_FAILED, Reason.PROGRESS_DEADLINE_EXCEEDED})
"""Why a rollout by steps is given up, or waits for a person who decides that."""


def transition(
    before: list[Condition], after: list[Condition], *, has_switched: bool = False
) -> tuple[str, str, str] | None:
    """Return type, reason and message of the Event that a change of conditions is worth, or None.

    Worth one: Ready became True or ceased to be, another revision answers (`has_switched`), something needs a person.
    """
    was, ready = condition_of(before, READY), condition_of(after, READY)
    if ready is None:
        return None
    stalled, had_stalled = condition_of(after, STALLED), condition_of(before, STALLED)
    if stalled is not None and (had_stalled is None or had_stalled.reason != stalled.reason):
        return "Warning", stalled.reason, stalled.message
    if has_switched and ready.status == "True":
        return "Normal", "Ready", ready.message
    if ready.status != (was.status if was is not None else None):
        if ready.status == "True":
            return "Normal", "Ready", ready.message
        if was is not None and was.status == "True":
            return "Normal", ready.reason, f"no longer Ready: {ready.message}"
    return None


def step(before: RolloutStatus | None, after: RolloutStatus | None) -> tuple[str, str, str] | None:
    """Return type, reason and message of the Event that a step of a rollout is worth: one for each phase and step."""
    if after is None or after.reason is None or not is_step(before, after):
        return None
    is_trouble = after.phase is RolloutPhase.ROLLED_BACK or after.reason in FAILURES
    reason = "Promoting" if after.phase is RolloutPhase.PROMOTING else after.reason
    return "Warning" if is_trouble else "Normal", reason, after.message or ""


def scaled(before: AutoscalingStatus | None, after: AutoscalingStatus | None) -> tuple[str, str, str] | None:
    """Return type, reason and message of the Event that another number of pods is worth."""
    if after is None or before is None or before.desired_replicas == after.desired_replicas:
        return None
    return "Normal", after.reason, after.message


def body_of(
    kind: str,
    meta: ObjectMeta,
    event: tuple[str, str, str],
    *,
    reporter: str,
    api_version: str = f"{GROUP}/{VERSION}",
) -> Json:
    """Return an Event about an object, of now."""
    event_type, reason, message = event
    namespace = meta.namespace
    moment = datetime.now(UTC)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta.name[:200]}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": api_version,
            "kind": kind,
            "name": meta.name,
            "namespace": namespace,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
        "type": event_type,
        "reason": reason,
        "message": message[:MAX_NOTE],
        "action": "Reconcile",
        "firstTimestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lastTimestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "eventTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "count": 1,
        "source": {"component": MANAGED_BY},
        "reportingComponent": f"{GROUP}/operator",
        "reportingInstance": reporter[:128],
    }


async def post(api: Writes, body: Json) -> None:
    """Post one Event; failing is logged and harmless."""
    about = body["involvedObject"]
    try:
        await api.create(collection("v1", "events", about["namespace"]), body)
    except KubeError as error:
        logger.warning("an Event about %s/%s was not posted: %s", about["namespace"], about["name"], error)


class EventQueue:
    """Events on their way to the API server: one after the other, beside the passes, which wait for none of them.

    What they tell is in statuses as well, and those are what people and programs wait for.
    """

    def __init__(self, api: Writes, *, reporter: str, max_waiting: int = MAX_WAITING) -> None:
        self._api = api
        self._reporter = reporter
        self._max_waiting = max_waiting
        self._waiting: deque[Json] = deque()
        self._posting: asyncio.Task[None] | None = None

    def add(self, kind: str, meta: ObjectMeta, event: tuple[str, str, str]) -> None:
        """Post an Event about an object soon; with too many waiting the new one is dropped."""
        if len(self._waiting) >= self._max_waiting:
            logger.warning("too many Events wait: none is posted about %s/%s: %s", meta.namespace, meta.name, event[1])
            return
        self._waiting.append(body_of(kind, meta, event, reporter=self._reporter))
        if self._posting is None:
            self._posting = asyncio.create_task(self._post())

    async def close(self) -> None:
        """Post what waits, for a moment; drop the rest."""
        if (posting := self._posting) is not None:
            await asyncio.wait((posting,), timeout=LAST_SECONDS)
            await end((posting,))
        self._waiting.clear()

    async def _post(self) -> None:
        try:
            while self._waiting:
                await post(self._api, self._waiting.popleft())
        finally:
            self._posting = None
