"""`placement.mode: Auto`: from what pods count to the number of pods that keep an adapter."""

import asyncio
from typing import Any

import pytest
from support import operator_views as v
from support.simulated_fleet import NAMESPACE
from support.virtual_fleet import VirtualFleet
from support.virtual_time import VirtualLoop

from lorafleet_contract.admin import AdapterState, Residency
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.accept import refusal_of
from lorafleet_operator.decide.adapter_status import adapter_status
from lorafleet_operator.decide.auto_placement import WINDOW_SECONDS, AutoPlacement
from lorafleet_operator.decide.catalogue import wants_of
from lorafleet_operator.decide.conditions import RESIDENT, condition_of
from lorafleet_operator.decide.demand import Demand
from lorafleet_operator.decide.plan import plan_of
from lorafleet_operator.decide.views import ObservedPod

PODS = [v.pod(f"p{number}") for number in range(4)]
Tokens = dict[str, int]


def auto(name: str, *, status: dict[str, Any] | None = None, **placement: Any) -> AdapterResource:
    return v.adapter(name, placement={"mode": "Auto", **placement}, status=status)


def observed(*tokens: Tokens, slots: int = 4, boot: str = "b") -> list[ObservedPod]:
    """A pod for each document of tokens by adapter."""
    pods = []
    for pod, counted in zip(PODS, tokens, strict=False):
        entries = [v.entry(name, name, num_tokens=number) for name, number in counted.items()]
        seen = v.seen(*entries, pod=pod, slots=slots, rank_pages=8 * slots)
        assert seen.state is not None
        pods.append(ObservedPod(pod, seen.state.model_copy(update={"boot_id": boot})))
    return pods


class World:
    """Minutes of a base with four pods, on which each adapter is asked for so many tokens."""

    def __init__(self, *adapters: AdapterResource, slots: int = 4, **base: Any) -> None:
        self.placement = AutoPlacement()
        self.adapters = adapters
        self.slots = slots
        self.base = v.base(**base)
        self.now = 1000.0
        self.counted = dict.fromkeys((a.served_name for a in adapters), 0)
        self.pods = self._pods()
        self.shares = self._look()

    def minute(self, times: int = 1, **tokens: int) -> dict[str, int]:
        """Let minutes pass; return the number of pods by name."""
        for _ in range(times):
            self.counted = {name: number + tokens.get(name, 0) for name, number in self.counted.items()}
            self.pods = self._pods()
            self.now += WINDOW_SECONDS
            self.shares = self._look()
        return self.shares

    def _pods(self) -> list[ObservedPod]:
        return observed(self.counted, {}, {}, {}, slots=self.slots)

    def _look(self) -> dict[str, int]:
        snapshot = v.snapshot(*self.adapters, base=self.base)
        found = self.placement.of(snapshot, self.base, self.pods, now=self.now)
        names = {adapter.metadata.uid: adapter.served_name for adapter in self.adapters}
        return {names[uid]: number for uid, number in found.items()}


def test_share_follows_the_tokens_up_at_once_and_down_after_five_windows() -> None:
    world = World(auto("loud"), auto("quiet"))
    assert world.shares == {"loud": 1, "quiet": 1}
    assert world.minute(loud=9000, quiet=10) == {"loud": 4, "quiet": 1}
    assert world.minute(4, loud=10, quiet=9000)["loud"] == 4
    assert world.minute(6, loud=10, quiet=9000) == {"loud": 1, "quiet": 4}


def test_bounds_are_kept_whatever_is_asked() -> None:
    world = World(auto("loud", maxReplicas=2), auto("quiet", minReplicas=3))
    assert world.shares == {"loud": 1, "quiet": 3}
    assert world.minute(3, loud=9000) == {"loud": 2, "quiet": 3}
    world.adapters = (auto("loud", maxReplicas=1), auto("quiet", minReplicas=4))
    world.now += 1  # within a window, too
    assert world._look() == {"loud": 1, "quiet": 4}


def test_what_nobody_asks_for_is_loaded_on_demand_where_it_may_be() -> None:
    world = World(auto("loud"), auto("quiet", minReplicas=0))
    assert world.minute(loud=9000) == {"loud": 4, "quiet": 0}
    assert world.minute(loud=9000, quiet=6000)["quiet"] > 0


def test_places_of_other_modes_are_not_given_out() -> None:
    fixed = [v.adapter(f"fixed{number}", placement={"mode": "All"}) for number in range(3)]
    world = World(auto("loud"), auto("other"), *fixed)
    found = world.minute(loud=9000, other=8000)
    assert sum(found.values()) <= 4
    snapshot = v.snapshot(*world.adapters, base=world.base)
    names = {adapter.metadata.uid: adapter.served_name for adapter in world.adapters}
    assert set(names.values()) - set(found) == {"fixed0", "fixed1", "fixed2"}
    assert snapshot.adapters


def test_after_a_start_an_adapter_goes_on_with_the_pods_that_keep_it() -> None:
    placements = [{"pod": pod.name, "podUid": pod.uid, "revision": "x", "state": "Ready"} for pod in PODS[:3]]
    gone = {"pod": "gone", "podUid": "uid-gone", "revision": "x", "state": "Ready"}
    world = World(auto("loud", status={"placements": [*placements, gone]}), auto("new"))
    assert world.shares == {"loud": 3, "new": 1}


def test_without_such_adapters_or_pods_nothing_is_remembered() -> None:
    world = World(v.adapter("french"))
    assert world.shares == {}
    assert world.placement.next_window(v.KEY, now=world.now) is None
    world = World(auto("loud"))
    assert world.placement.next_window(v.KEY, now=world.now + 20) == pytest.approx(WINDOW_SECONDS - 20, abs=0.1)
    world.placement.forget(v.KEY)
    assert world.placement.next_window(v.KEY, now=world.now) is None


def test_refused_adapters_take_no_places() -> None:
    world = World(auto("loud"), auto("refused", minReplicas=4, pin=False), slots=1)
    world.adapters = (
        auto("loud"),
        v.adapter("refused", placement={"mode": "Auto"}, source={"name": "no", "path": "x"}),
    )
    assert set(world._look()) == {"loud"}


def rates(*looks: tuple[float, list[ObservedPod]]) -> dict[str, float]:
    demand = Demand()
    for now, pods in looks:
        demand.look(pods, now)
    return demand.rates


def test_demand_is_the_sum_over_pods_of_what_their_counters_have_grown() -> None:
    found = rates((0, observed({"a": 500, "b": 0}, {"a": 0})), (60, observed({"a": 1100, "b": 600}, {"a": 1200})))
    assert found["a"] / found["b"] == pytest.approx(3.0)
    assert found["b"] == pytest.approx(10 * (1 - 2.718281828**-1), rel=1e-3)


def test_demand_smooths_and_forgets() -> None:
    looks = [(60.0 * minute, observed({"a": 600 * min(minute, 5)})) for minute in range(11)]
    assert rates(*looks[:6])["a"] == pytest.approx(10.0, rel=0.01)
    assert rates(*looks)["a"] < 0.1


def test_pod_that_begins_anew_or_forgets_counts_from_zero() -> None:
    anew = rates((0, observed({"a": 5000})), (60, observed({"a": 600}, boot="c")))
    assert anew == rates((0, observed({"a": 5000})), (60, observed({"a": 600})))
    assert anew["a"] == pytest.approx(10 * (1 - 2.718281828**-1), rel=1e-3)


def test_pod_that_tells_nothing_new_goes_on_as_before() -> None:
    begun, later = observed({"a": 0}), observed({"a": 600})
    silent = [v.silent(PODS[0])]
    known = rates((0, begun), (60, later), (120, later), (180, silent), (240, silent), (300, silent))
    assert known["a"] == pytest.approx(10.0, rel=0.02)
    gone = rates((0, begun), (60, later), (120, []), (180, []), (240, []))
    assert gone["a"] < 1.0


def test_old_pods_that_count_nothing_are_no_demand() -> None:
    uncounted = v.seen(v.entry("a", "a"), pod=PODS[0])
    assert not any(rates((0, [uncounted]), (60, [v.seen(v.entry("a", "a"), pod=PODS[0])])).values())


def test_number_of_pods_is_what_is_placed_and_what_status_says() -> None:
    adapter = auto("french", status=v.served("french"))
    snapshot = v.snapshot(adapter, base=v.base())
    pods = [v.seen(v.entry("french"), pod=pod) for pod in PODS]
    for number in (0, 3):
        plan = plan_of(snapshot, pods, {}, {adapter.metadata.uid: number})
        (want,) = wants_of(plan.lineups, pods, {adapter.metadata.uid: number})
        assert want.num_pods == number
        status = adapter_status(plan.lineups[0], pods, plan.placement, now=v.NOW)
        assert status.replicas.desired == number
        resident = condition_of(status.conditions, RESIDENT)
        assert resident is not None
        assert (resident.status, resident.reason) == ("True", "Resident")
    plan = plan_of(snapshot, (), {}, {})
    resident = condition_of(adapter_status(plan.lineups[0], (), plan.placement, now=v.NOW).conditions, RESIDENT)
    assert resident is not None
    assert (resident.status, resident.reason) == ("False", "NoReadyPods")


def test_quiet_adapter_on_a_base_that_loads_nothing_on_demand_is_refused() -> None:
    base = v.base(lora={"loadOnDemand": "Disabled"})
    for least, reason in ((0, Reason.INVALID_SPEC), (1, None)):
        adapter = auto("french", minReplicas=least)
        refusal = refusal_of(adapter, v.snapshot(adapter, base=base))
        assert (refusal.reason if refusal is not None else None) == reason


def test_status_of_other_modes_is_as_before() -> None:
    """A status that grew a field would be written anew for every adapter when the operator is replaced."""
    spec = v.adapter("french", placement={"mode": "Fixed", "replicas": 2}).placement
    assert spec.model_dump(by_alias=True, exclude_none=True).keys() == {"mode", "replicas", "pin", "priority"}


def test_entry_on_demand_is_told_to_pods_of_a_quiet_adapter() -> None:
    adapter = auto("french", minReplicas=0, status=v.served("french"))
    entry = v.entry("french", residency=Residency.ON_DEMAND, state=AdapterState.READY)
    pods = [v.seen(entry, pod=PODS[0])]
    plan = plan_of(v.snapshot(adapter, base=v.base()), pods, {}, {adapter.metadata.uid: 0})
    assert plan.placement.pods["french"] == frozenset()


def test_operator_follows_the_load_of_real_counters() -> None:
    """The real operator on a clock that jumps: pods count, it asks them once a minute, and places."""
    loop = VirtualLoop()
    tokens: dict[str, int] = {}

    async def count(fleet: VirtualFleet) -> None:
        while True:
            await asyncio.sleep(5)
            for pod in fleet.pods.values():
                for (name, _), entry in pod.entries.items():
                    entry.num_tokens += tokens.get(name, 0)

    def kept(fleet: VirtualFleet) -> dict[str, int]:
        statuses = {name: fleet.kube.get(Kind.ADAPTER, NAMESPACE, name)["status"] for name in ("loud", "quiet")}
        return {name: status.get("replicas", {}).get("resident", 0) for name, status in statuses.items()}

    async def run() -> list[dict[str, int]]:
        fleet = VirtualFleet()
        fleet.base(replicas=4)
        fleet.adapter("loud", placement={"mode": "Auto"})
        fleet.adapter("quiet", placement={"mode": "Auto", "maxReplicas": 2})
        fleet.start("operator-0")
        await asyncio.sleep(1)
        for _ in range(4):
            await fleet.pod()
        counting = asyncio.create_task(count(fleet))
        found = []
        for asked, seconds in (({}, 30), ({"loud": 900}, 300), ({"quiet": 900}, 240), ({"quiet": 900}, 900)):
            tokens.clear()
            tokens.update(asked)
            await asyncio.sleep(seconds)
            found.append(kept(fleet))
        counting.cancel()
        await fleet.close()
        assert fleet.faults == []
        return found

    try:
        found = loop.run_until_complete(run())
    finally:
        loop.close()
    assert found[0] == {"loud": 1, "quiet": 1}
    assert found[1] == {"loud": 4, "quiet": 1}
    assert found[2] == {"loud": 4, "quiet": 2}  # it rises in minutes; what was loud is kept for five
    assert found[3] == {"loud": 1, "quiet": 2}
