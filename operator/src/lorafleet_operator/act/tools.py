"""What passes over base models work with, made once a process."""

from dataclasses import dataclass

from lorafleet_common.clock import WallClock, utc_now
from lorafleet_operator.act.apply import Applier
from lorafleet_operator.act.autoscaling import Autoscaling
from lorafleet_operator.act.execute import Executor
from lorafleet_operator.act.fence import Fences
from lorafleet_operator.act.judging import Gateways, Measures
from lorafleet_operator.act.leaving import Leaving
from lorafleet_operator.act.operators import Operators
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.act.resolve import Resolver
from lorafleet_operator.act.status_writer import StatusWriter
from lorafleet_operator.act.verify import Verifier
from lorafleet_operator.act.waiting_pods import WaitingPods
from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.cluster.store import Store


@dataclass(frozen=True, slots=True)
class Tools:
    """What passes work with."""

    key: bytes
    lease: Lease
    store: Store
    applier: Applier
    leaving: Leaving
    autoscaling: Autoscaling
    watches: PodWatches
    executor: Executor
    resolver: Resolver
    verifier: Verifier
    fences: Fences
    operators: Operators
    writer: StatusWriter
    waiting_pods: WaitingPods
    gateways: Gateways
    measures: Measures
    now: WallClock = utc_now

    async def close(self) -> None:
        """End what is under way on pods."""
        await self.resolver.close()
        await self.verifier.close()
        await self.autoscaling.close()
        await self.executor.close()
        await self.watches.close()
        await self.writer.close()
