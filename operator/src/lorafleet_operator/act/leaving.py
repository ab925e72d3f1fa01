"""Has the emptiest pods go first: writes what each costs to delete, just before fewer are asked for, and at no other time."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from lorafleet_common.kube.errors import KubeConflict, KubeError, KubeNotFound
from lorafleet_common.paths import collection
from lorafleet_contract.names import ANNOTATION_DELETION_COST, MANAGED_BY
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.decide.leaving import deletion_costs
from lorafleet_operator.decide.views import BaseKey, ObservedPod
from lorafleet_operator.errors import AdminError, NotLeading

logger = logging.getLogger(__name__)
MAX_PARALLEL: Final = 16


class Leaving:
    """Deletion costs of pods."""

    def __init__(self, api: Writes, client: AdminClient) -> None:
        self._api = api
        self._client = client

    async def rank(self, base: BaseKey, pods: Sequence[ObservedPod], token: str) -> None:
        """Ask the pods of a base what they run now, and write what each costs to delete.

        What cannot be written is logged and no reason to keep more pods than are wanted: Kubernetes then chooses.

        Raises:
            NotLeading: nothing was written.
        """
        told = dict(await asyncio.gather(*(self._sequences(pod, token) for pod in pods if not pod.pod.is_leaving)))
        costs = deletion_costs(pods, {uid: number for uid, number in told.items() if number is not None})
        names, slots = {pod.uid: pod.pod.name for pod in pods}, asyncio.Semaphore(MAX_PARALLEL)

        async def write(uid: str, cost: int) -> None:
            async with slots:
                await self._write(base[0], names[uid], uid, cost)

        await asyncio.gather(*(write(uid, cost) for uid, cost in costs.items()))

    async def _sequences(self, pod: ObservedPod, token: str) -> tuple[str, int | None]:
        if pod.pod.ip is None or not pod.pod.is_ready:
            return pod.uid, None
        try:
            return pod.uid, (await self._client.load(pod.pod.ip, token)).num_sequences
        except AdminError as error:
            logger.info("pod %s does not say what it runs: %s", pod.pod.name, error)
            return pod.uid, None

    async def _write(self, namespace: str, name: str, uid: str, cost: int) -> None:
        metadata = {"name": name, "namespace": namespace, "uid": uid}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**metadata, "annotations": {ANNOTATION_DELETION_COST: str(cost)}},
        }
        try:
            await self._api.apply(f"{collection('v1', 'pods', namespace)}/{name}", body, manager=MANAGED_BY)
        except NotLeading:
            raise
        except (KubeConflict, KubeNotFound):
            return  # it is gone
        except KubeError as error:
            logger.warning("pod %s/%s is not told what it costs to delete: %s", namespace, name, error)
