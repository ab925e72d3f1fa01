"""Follows what the pods of base models with `spec.autoscaling` have to do, and keeps how many pods each should have.

Pods are asked every few seconds for a few bytes. A pass is woken when the answer is another number of pods, and by nothing else.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from lorafleet_common.clock import WallClock, monotonic, utc_now, whole_seconds
from lorafleet_common.supervise import end, supervise
from lorafleet_contract.admin import PodLoad
from lorafleet_contract.autoscaling import AutoscalingSpec, AutoscalingStatus
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator import metrics
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.decide.autoscaling import Load, Peaks, Scaled, bounded, decide, first_peaks
from lorafleet_operator.decide.views import BaseKey, Pod
from lorafleet_operator.errors import AdminError

logger = logging.getLogger(__name__)
SAMPLE_SECONDS: Final = 5.0
"""How often pods are asked what they have to do."""


@dataclass(slots=True)
class _Base:
    spec: AutoscalingSpec
    scaled: Scaled
    peaks: Peaks
    pods: tuple[Pod, ...] = ()
    token: str = ""
    task: asyncio.Task[None] | None = None
    silent: set[str] = field(default_factory=set)
    """Uids of pods that did not say what they have when they were asked last."""


class Autoscaling:
    """The bases whose pods are counted by their load."""

    def __init__(self, client: AdminClient, wake: Callable[[BaseKey], None], *, now: WallClock = utc_now) -> None:
        self._client = client
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
        current = known.scaled.status.desired_replicas
        if (allowed := bounded(spec, current)) != current:
            words = f"from {current} to {allowed}: {spec.min_replicas} to {spec.max_replicas} are allowed"
            known.scaled = Scaled(self._status(allowed, Reason.OUT_OF_BOUNDS, words), None)
        metrics.DESIRED_REPLICAS.labels(*key).set(known.scaled.status.desired_replicas)
        return known.scaled

    def forget(self, key: BaseKey) -> None:
        """Ask the pods of a base no more."""
        known = self._bases.pop(key, None)
        if known is not None:
            assert known.task is not None
            known.task.cancel()
            metrics.DESIRED_REPLICAS.remove(*key)

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = [known.task for known in self._bases.values() if known.task is not None]
        self._bases.clear()
        await end(tasks)

    def _begin(self, base: BaseModelResource, spec: AutoscalingSpec, pods: Sequence[Pod]) -> _Base:
        """Go on with the number that status tells, or with the pods that there are."""
        status = base.status.autoscaling
        if status is None:
            number = max(1, sum(not pod.is_leaving for pod in pods))
            allowed = bounded(spec, number)
            status = self._status(allowed, Reason.INITIAL_REPLICAS, f"{allowed} to begin with; there are {len(pods)}")
        return _Base(spec, Scaled(status, None), first_peaks(status.desired_replicas, monotonic()))

    def _status(self, desired: int, reason: Reason, message: str) -> AutoscalingStatus:
        return AutoscalingStatus(
            desired_replicas=desired, reason=reason, message=message, last_scale_time=whole_seconds(self._now())
        )

    async def _watch(self, key: BaseKey) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            known = self._bases[key]
            asked = [pod for pod in known.pods if pod.is_ready and not pod.is_leaving]
            told = await asyncio.gather(*(self._load(known, pod) for pod in asked))
            if self._bases.get(key) is known:
                self._take(key, known, told)

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

    def _take(self, key: BaseKey, known: _Base, told: Sequence[PodLoad | None]) -> None:
        """Decide by what pods said."""
        said = [load for load in told if load is not None]
        load = Load(sum(one.num_sequences for one in said), len(told) - len(said))
        before = known.scaled
        scale = decide(known.spec, before.status.desired_replicas, load, known.peaks, monotonic())
        known.peaks = scale.peaks
        status = before.status
        if scale.reason is not None:
            logger.info("pods of %s/%s: %s", *key, scale.message)
            status = self._status(scale.desired, scale.reason, scale.message)
        known.scaled = Scaled(status, scale.limit)
        if known.scaled != before:
            self._wake(key)
