"""The fence of each base: what its pods compare writes of two leaders by."""

import logging
from collections.abc import Sequence
from typing import Final

from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.decide.views import BaseKey, ObservedPod

logger = logging.getLogger(__name__)
MAX_JUMP: Final = 1_000_000
"""Nobody has led this often since the Lease was made: a pod that says so is not believed."""


class Fences:
    """Fences by base, each at least that of the leadership; they only grow.

    Where pods know a later one than this leadership, because the Lease was deleted and made again, that of their base goes
    above it. What a pod says moves its own base only.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._raised: dict[BaseKey, int] = {}

    def of(self, base: BaseKey) -> int:
        """Return the fence under which the pods of a base are written to."""
        return max(self._lease.fence, self._raised.get(base, 0))

    async def rise(self, base: BaseKey, pods: Sequence[ObservedPod], *, generation: int) -> None:
        """Go above what the pods of a base know, once it is certain that this process leads.

        Args:
            base: the base.
            pods: its pods.
            generation: the highest that this process has given to a write.

        Raises:
            KubeError: the Lease could not be renewed; somebody else may lead.
        """
        known = [(pod.state.fence, pod.state.catalogue_generation) for pod in pods if pod.state is not None]
        highest = max((mark for mark in known if mark[0] <= self._lease.fence + MAX_JUMP), default=(0, 0))
        if highest <= (self.of(base), generation):
            return
        await self._lease.renew()
        self._raised[base] = max(highest[0] + 1, self.of(base))
        logger.warning("a pod of %s/%s knows a later fence; it is %d from now on", *base, self.of(base))

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._raised.pop(base, None)
