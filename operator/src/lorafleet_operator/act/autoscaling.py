"""Follows what the pods of base models with `spec.autoscaling` have to do, and keeps how many pods each should have.

Pods are asked every few seconds for a few bytes; while there are none, gateways tell of requests that they hold. A pass is
woken when the answer is another number of pods, and by nothing else.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from lorafleet_common.clock import WallClock, monotonic, utc_now, whole_seconds
from lorafleet_common.supervise import end, supervise
from lorafleet_contract.admin import PodLoad
from lorafleet_contract.autoscaling import AutoscalingSpec, AutoscalingStatus
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator import metrics
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.decide.autoscaling import Load, Memory, Scaled, begin, bounded, decide
from lorafleet_operator.decide.views import BaseKey, Pod
from lorafleet_operator.errors import AdminError

logger = logging.getLogger(__name__)
SAMPLE_SECONDS: Final = 5.0
"""How often pods are asked what they have to do."""


@dataclass(frozen=True, slots=True)
class Holds:
    """What gateways say of requests that found no pod of a base."""

    num_held: int = 0
    """That wait now."""
    num_arrived: int = 0
    """That came while gateways are followed; it only grows."""
    is_blind: str = ""
    """Why some may not be told of; empty where all are."""


class Gateways(Protocol):
    """Whoever asks gateways what they hold."""

    def follow_holds(self, base: BaseKey, told: Callable[[], None] | None) -> None:
        """Ask gateways from now on as long as any base wants it, and call `told` when a request was held; None: no more."""

    def holds(self, base: BaseKey) -> Holds:
        """Return what they have said so far."""


@dataclass(slots=True)
class _Base:
    spec: AutoscalingSpec
    scaled: Scaled
    memory: Memory
    pods: tuple[Pod, ...] = ()
    token: str = ""
    num_pending: int = 0
    """Adapters that only a pod can bring further."""
    num_arrived: int = 0
    """As of the last look."""
    num_requests: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Uid of a pod -> boot and requests since then, as of the last look."""
    silent: set[str] = field(default_factory=set)
    """Uids of pods that did not say what they have when they were asked last."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Autoscaling:
    """The bases whose pods are counted by their load."""

    def __init__(
        self,
        client: AdminClient,
        gateways: Gateways,
        wake: Callable[[BaseKey], None],
        *,
        now: WallClock = utc_now,
    ) -> None:
        self._client = client
        self._gateways = gateways
        self._wake = wake
        self._now = now
        self._bases: dict[BaseKey, _Base] = {}

    def follow(self, base: BaseModelResource, pods: Sequence[Pod], token: str) -> Scaled | None:
        """Return how many pods a base should have now, and ask its pods from now on; None where its spec has no autoscaling."""
        key, spec = (base.metadata.namespace, base.metadata.name), base.spec.autoscaling
        if spec is None:
            self.forget(key)
            return None
        known = self._bases.get(key)
        if known is None:
            known = self._bases[key] = self._begin(base, spec, pods)
            known.task = asyncio.create_task(supervise(f"the load of {key[0]}/{key[1]}", lambda: self._watch(key)))
        known.spec, known.pods, known.token = spec, tuple(pods), token
        self._gateways.follow_holds(key, known.news.set if spec.zero is not None else None)
        status = known.scaled.status
        if (allowed := bounded(spec, status.desired_replicas)) != status.desired_replicas:
            words = f"{spec.min_replicas} to {spec.max_replicas} are allowed"
            status = self._status(
                allowed, Reason.OUT_OF_BOUNDS, f"from {status.desired_replicas} to {allowed}: {words}"
            )
        known.scaled = replace(known.scaled, status=status, awake_until=_awake_until(spec, status, pods))
        metrics.DESIRED_REPLICAS.labels(*key).set(status.desired_replicas)
        return known.scaled

    def pending(self, key: BaseKey, num_adapters: int) -> None:
        """Take note of how many adapters of a base only a pod can bring further."""
        known = self._bases.get(key)
        if known is not None:
            if num_adapters > known.num_pending:
                known.news.set()
            known.num_pending = num_adapters

    def forget(self, key: BaseKey) -> None:
        """Ask the pods of a base no more."""
        known = self._bases.pop(key, None)
        if known is not None:
            assert known.task is not None
            known.task.cancel()
            self._gateways.follow_holds(key, None)
            metrics.DESIRED_REPLICAS.remove(*key)

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = [known.task for known in self._bases.values() if known.task is not None]
        for key in list(self._bases):
            self.forget(key)
        await end(tasks)

    def _begin(self, base: BaseModelResource, spec: AutoscalingSpec, pods: Sequence[Pod]) -> _Base:
        """Go on with the number that status tells, or with the pods that there are."""
        status = base.status.autoscaling
        if status is None:
            number = sum(not pod.is_leaving for pod in pods)
            allowed = bounded(spec, max(1, number))
            status = self._status(allowed, Reason.INITIAL_REPLICAS, f"{allowed} to begin with: there were {number}")
        key = base.metadata.namespace, base.metadata.name
        arrived = self._gateways.holds(key).num_arrived
        return _Base(spec, Scaled(status), begin(status.desired_replicas, monotonic()), num_arrived=arrived)

    def _status(self, desired: int, reason: Reason, message: str) -> AutoscalingStatus:
        return AutoscalingStatus(
            desired_replicas=desired, reason=reason, message=message, last_scale_time=whole_seconds(self._now())
        )

    async def _watch(self, key: BaseKey) -> None:
        known = self._bases[key]
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(known.news.wait(), SAMPLE_SECONDS)
            known.news.clear()
            asked = [pod for pod in known.pods if pod.is_ready and not pod.is_leaving]
            told = await asyncio.gather(*(self._load(known, pod) for pod in asked))
            self._take(key, known, {pod.uid: load for pod, load in zip(asked, told, strict=True)})

    async def _load(self, known: _Base, pod: Pod) -> PodLoad | None:
        """Return what a pod has to do; None when it does not say."""
        try:
            if pod.ip is None:
                return None
            load = await self._client.load(pod.ip, known.token)
        except AdminError as error:
            if pod.uid not in known.silent:
                logger.warning("pod %s does not say what it has to do: %s", pod.name, error)
            known.silent.add(pod.uid)
            return None
        known.silent.discard(pod.uid)
        return load

    def _take(self, key: BaseKey, known: _Base, told: dict[str, PodLoad | None]) -> None:
        """Decide by what pods and gateways said."""
        before = known.scaled
        load = self._weigh(key, known, told)
        scale = decide(known.spec, before.status.desired_replicas, load, known.memory, monotonic())
        known.memory = scale.memory
        status = before.status
        if scale.reason is not None:
            logger.info("pods of %s/%s: %s", *key, scale.message)
            status = self._status(scale.desired, scale.reason, scale.message)
        known.scaled = replace(before, status=status, limit=scale.limit)
        if known.scaled != before:
            self._wake(key)

    def _weigh(self, key: BaseKey, known: _Base, told: dict[str, PodLoad | None]) -> Load:
        """Return what there is to do, and what has been asked for since the last look."""
        said = {uid: load for uid, load in told.items() if load is not None}
        holds = self._gateways.holds(key)
        num_new = sum(
            load.num_requests - last[1] if last[0] == load.boot_id else load.num_requests
            for uid, load in said.items()
            if (last := known.num_requests.get(uid)) is not None
        )
        num_arrived = holds.num_arrived - known.num_arrived
        known.num_arrived = holds.num_arrived
        known.num_requests = {uid: (load.boot_id, load.num_requests) for uid, load in said.items()}
        found = (
            (holds.num_held, "requests held"),
            (num_arrived, "requests that found no pod"),
            (known.num_pending, "adapters that need a pod"),
            (num_new, "requests"),
        )
        return Load(
            num_sequences=sum(load.num_sequences for load in said.values()) + holds.num_held,
            num_silent=len(told) - len(said),
            wanted=next((f"{number} {words}" for number, words in found if number > 0), ""),
            is_blind=holds.is_blind,
        )


def _awake_until(spec: AutoscalingSpec, status: AutoscalingStatus, pods: Sequence[Pod]) -> datetime | None:
    """Return until when the first pod of a base that had none may take to become ready."""
    is_up = any(pod.is_ready and not pod.is_leaving for pod in pods)
    if spec.zero is None or status.reason != Reason.WOKEN or is_up:
        return None
    return status.last_scale_time + timedelta(seconds=spec.zero.hold_seconds)
