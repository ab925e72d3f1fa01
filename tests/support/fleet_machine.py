"""What may happen to a fleet, for hypothesis to put into any order."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.simulated_fleet import BASE, NAMESPACE
from support.virtual_fleet import VirtualFleet
from support.virtual_gateway import VirtualGateway
from support.virtual_time import VirtualLoop

from lorafleet_operator.cluster.store import Kind

QUIET_SECONDS = 30.0
"""After the last change, where every event and answer arrived."""
LOST_QUIET_SECONDS = 200.0
"""Where some did not: lists and backoffs make up for them."""
NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.sampled_from(["p1", "p2", "p3", "missing", "bad-load"])
PLACEMENTS = st.sampled_from(
    [{"mode": "All"}, {"mode": "Fixed", "replicas": 1}, {"mode": "OnDemand"}, {"mode": "Auto", "minReplicas": 0}]
)
STEPS = st.sampled_from(
    [
        None,
        None,
        [{"setWeight": 30}, {"pause": {"durationSeconds": 5}}, {"setWeight": 60}, {"pause": {"durationSeconds": 1}}],
    ]
)
"""None of them waits for a person, and their deadline is far: each ends with the revision that spec asks for."""
OPERATORS = st.integers(0, 1)
NUMBERS = st.integers(0, 7)
MAX_PODS = 3
ENDINGS = st.permutations(["base", "adapters", "pods", "operators"])
"""What is deleted, or ended and started again, one after the other, at the end of all."""


class FleetMachine(RuleBasedStateMachine):
    """Resources, pods, networks and operators change; at the end it is quiet, and everything is as the resources say."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        asyncio.set_event_loop(None)
        self.fleet = self.do(self._make())
        self.has_lost = False
        self.loses = False
        """Whether in this run anything may be lost on its way."""
        self.ending: list[str] = []

    async def _make(self) -> VirtualFleet:
        return VirtualFleet()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def run_for(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    @initialize(num_pods=st.integers(1, 2), path=PATHS, loses=st.booleans(), ending=ENDINGS)
    def begin(self, num_pods: int, path: str, loses: bool, ending: list[str]) -> None:
        self.loses, self.ending = loses, ending

        async def begin() -> None:
            self.fleet.base(replicas=num_pods)
            self.fleet.adapter("a", path)
            for name in ("operator-0", "operator-1"):
                self.fleet.start(name)
            self.fleet.open_gateway()
            await asyncio.sleep(1)
            for _ in range(num_pods):
                await self.fleet.pod()

        self.do(begin())

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0, 8.0, 40.0]))
    def wait(self, seconds: float) -> None:
        """While requests run; after a long time in which nothing was in the way everything that is served is answered."""

        async def wait() -> None:
            for name in ("a", "b", "c", BASE):
                self.gateway.begin(name)
            await asyncio.sleep(seconds)

        self.do(wait())
        if seconds >= QUIET_SECONDS and self.fleet.is_calm():
            unanswered = self.do(self.fleet.unanswered())
            assert unanswered == [], unanswered

    @rule(name=NAMES, num=st.integers(1, 5))
    def ask(self, name: str, num: int) -> None:
        """Requests that are on their way when the next thing happens."""

        async def ask() -> None:
            for _ in range(num):
                self.gateway.begin(name)
            await asyncio.sleep(0.003)

        self.do(ask())

    @rule(name=NAMES, path=PATHS, placement=PLACEMENTS, steps=STEPS)
    def apply(self, name: str, path: str, placement: dict[str, Any], steps: list[dict[str, Any]] | None = None) -> None:
        rollout = {"rollout": {"steps": steps, "progressDeadlineSeconds": 86400}} if steps is not None else {}

        async def apply() -> None:
            self.fleet.adapter(name, path, placement=placement, **rollout)

        self.do(apply())

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        async def delete() -> None:
            if self.fleet.kube.find(Kind.ADAPTER, NAMESPACE, name) is not None:
                self.fleet.delete(name)

        self.do(delete())

    @precondition(lambda self: len(self.fleet.pods) < MAX_PODS)
    @rule(load_seconds=st.sampled_from([0.0, 0.3, 4.0]), resolve_seconds=st.sampled_from([0.0, 0.0, 3.0]))
    def add_pod(self, load_seconds: float, resolve_seconds: float) -> None:
        async def add() -> None:
            pod = await self.fleet.pod(load_seconds=load_seconds)
            pod.resolve_seconds = resolve_seconds

        self.do(add())

    def _pod(self, number: int) -> str:
        return sorted(self.fleet.pods)[number % len(self.fleet.pods)]

    @precondition(lambda self: len(self.fleet.pods) > 1)
    @rule(number=NUMBERS)
    def kill_pod(self, number: int) -> None:
        self.do(self.fleet.kill(self._pod(number)))

    @rule(number=NUMBERS, how=st.sampled_from(["restart", "hang", "mute", "wake"]))
    def disturb_pod(self, number: int, how: str) -> None:
        async def disturb() -> None:
            name = self._pod(number)
            pod = self.fleet.pods[name]
            if how == "restart":
                self.fleet.restart(name)
            elif how == "wake":
                pod.wake()
                pod.speak()
            else:
                getattr(pod, how)()

        self.do(disturb())

    @precondition(lambda self: self.loses)
    @rule(number=OPERATORS, what=st.sampled_from(["has_cluster", "loses_answers", "is_deaf", "repeats_events"]))
    def disturb_network(self, number: int, what: str) -> None:
        self.has_lost = self.has_lost or what != "repeats_events"
        network = self.fleet.processes[number].network
        setattr(network, what, not getattr(network, what))

    @rule(number=OPERATORS, seconds=st.sampled_from([0.0, 0.001, 0.05, 2.0]))
    def delay_events(self, number: int, seconds: float) -> None:
        self.fleet.processes[number].network.event_seconds = seconds

    @precondition(lambda self: self.loses)
    @rule(number=OPERATORS, pod=NUMBERS)
    def cut_off_pod(self, number: int, pod: int) -> None:
        self.has_lost = True
        self.fleet.processes[number].network.unreachable ^= {self._pod(pod)}

    @precondition(lambda self: self.loses)
    @rule(number=OPERATORS)
    def kill_operator(self, number: int) -> None:
        self.has_lost = True
        self.do(self.fleet.processes[number].kill())

    @precondition(lambda self: self.loses)
    @rule()
    def delete_lease(self) -> None:
        self.has_lost = True

        async def delete() -> None:
            if self.fleet.kube.find("leases", "system", "lorafleet-operator") is not None:
                self.fleet.kube.delete("leases", "system", "lorafleet-operator")

        self.do(delete())

    @property
    def gateway(self) -> VirtualGateway:
        assert self.fleet.gateway is not None
        return self.fleet.gateway

    @precondition(lambda self: self.loses)
    @rule(what=st.sampled_from(["has_cluster", "is_deaf"]))
    def disturb_gateway(self, what: str) -> None:
        self.gateway.disturbed_at(self.loop.time())
        setattr(self.gateway.network, what, not getattr(self.gateway.network, what))

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 20.0]))
    def delay_events_of_the_gateway(self, seconds: float) -> None:
        self.gateway.disturbed_at(self.loop.time())
        self.gateway.network.event_seconds = seconds

    @precondition(lambda self: self.loses)
    @rule(pod=NUMBERS)
    def cut_pod_off_from_the_gateway(self, pod: int) -> None:
        self.gateway.disturbed_at(self.loop.time())
        self.gateway.network.unreachable ^= {self._pod(pod)}

    @rule()
    def restart_the_gateway(self) -> None:
        async def restart() -> None:
            await self.gateway.close()
            self.fleet.open_gateway()
            self.gateway.disturbed_at(self.loop.time())

        self.do(restart())

    @rule()
    def compact(self) -> None:
        """A watch that begins anew has to list."""
        self.fleet.kube.compact()

    @invariant()
    def nothing_forbidden_is_seen(self) -> None:
        self.fleet.check()

    def teardown(self) -> None:
        try:
            if self.fleet.processes:
                self.fleet.heal()
                self.run_for(LOST_QUIET_SECONDS if self.has_lost else QUIET_SECONDS)
                self.fleet.check()
                wrong = self.fleet.unconverged()
                assert wrong == [], wrong
                unanswered = self.do(self.fleet.unanswered())
                assert unanswered == [], unanswered
                self.fleet.check()
                for what in self.ending:
                    self.do(self.fleet.delete_all(what))
                    self.run_for(0.1)
                self.run_for(LOST_QUIET_SECONDS)
                self.fleet.check()
                assert self.fleet.adapters() == [], f"deleted in the order {self.ending}"
        finally:
            self.do(self.fleet.close())
            self.do(self.loop.shutdown_asyncgens())
            self.loop.close()
