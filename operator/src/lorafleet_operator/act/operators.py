"""Other operators of the same cluster: which bases they have, and whether they live.

Each base's status names the operator that works on it, by the namespace and name of its Lease. Two that would work on one
base would undo each other's Deployments for ever.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeError, KubeNotFound
from lorafleet_common.paths import collection
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator import metrics
from lorafleet_operator.act.status_writer import StatusWriter
from lorafleet_operator.cluster.lease import GROUP_VERSION, mark_of
from lorafleet_operator.decide.ownership import Heard, Turn, turn_of, wanted_operator
from lorafleet_operator.decide.views import BaseKey

logger = logging.getLogger(__name__)
LOOK_SECONDS: Final = 5.0
"""The Lease of another operator is read this often at most."""


@dataclass(slots=True)
class _Seen:
    mark: tuple[str, ...] | None
    """Holder and renewal; None without a Lease."""
    since: float
    looked_at: float


class Operators:
    """This operator among others."""

    def __init__(self, api: KubeApi, writer: StatusWriter, *, me: str, clock: Callable[[], float] = monotonic) -> None:
        self.me = me
        """`namespace/Lease`."""
        self.elsewhere: dict[BaseKey, str] = {}
        """Who operates bases in namespaces that this operator does not serve."""
        self._api = api
        self._writer = writer
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._left: dict[BaseKey, str] = {}

    async def take(self, base: BaseModelResource) -> bool:
        """Return whether a base is this operator's; one that nobody has is taken.

        Raises:
            KubeError: it could not be taken.
        """
        holder, key = base.status.operator or "", (base.metadata.namespace, base.metadata.name)
        other = await self._look(holder) if holder not in ("", self.me) else None
        turn = turn_of(base, self.me, other)
        if turn is Turn.THEIRS:
            await self._leave(base, key, holder or wanted_operator(base) or "")
            return False
        if turn is Turn.TAKE:
            await self._writer.claim(base.metadata, self.me)
            logger.info("%s/%s: operated by %s from now on%s", *key, self.me, f", by {holder} before" if holder else "")
            if holder:
                message = f"operated by {self.me} from now on, by {holder} before"
                self._writer.tell(base, ("Normal", "OperatorChanged", message))
        self.forget(key)
        return True

    def is_elsewhere(self, key: BaseKey) -> bool:
        """Whether a base that is not seen is another operator's."""
        return key in self.elsewhere

    def forget(self, key: BaseKey) -> None:
        """A base is gone, or this operator's."""
        if self._left.pop(key, None) is not None:
            self._count()

    async def _leave(self, base: BaseModelResource, key: BaseKey, holder: str) -> None:
        if self._left.get(key) == holder:
            return
        self._left[key] = holder
        self._count()
        message = f"{holder} operates it; {self.me} leaves it alone"
        logger.warning("%s/%s: %s", *key, message)
        self._writer.tell(base, ("Warning", "OperatedByAnother", message))

    def _count(self) -> None:
        metrics.BASES_LEFT.clear()
        for holder, number in Counter(self._left.values()).items():
            metrics.BASES_LEFT.labels(holder).set(number)

    async def _look(self, operator: str) -> Heard:
        """Return what is seen of another operator. One that may not be looked at counts as living."""
        now, seen = self._clock(), self._seen.get(operator)
        if seen is not None and now - seen.looked_at < LOOK_SECONDS:
            return Heard(seen.mark is not None, now - seen.since)
        namespace, _, name = operator.partition("/")
        mark: tuple[str, ...] | None
        try:
            mark = mark_of(await self._api.get(f"{collection(GROUP_VERSION, 'leases', namespace)}/{name}"))
        except KubeNotFound:
            mark = None
        except KubeError as error:
            logger.debug("the Lease %s cannot be read: %s", operator, error)
            mark, seen = (str(now),), None
        since = seen.since if seen is not None and seen.mark == mark else now
        self._seen[operator] = _Seen(mark, since, now)
        return Heard(mark is not None, now - since)
