"""While pods are replaced, statuses that say only where adapters are wait their turn; everything else is written at once."""

from dataclasses import replace
from typing import Any

from support import operator_views as v
from support.operator_views import KEY, NOW
from support.simulated_fleet import Fleet, settled, simulated_fleet, until

from lorafleet_contract.admin import AdapterState
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterReplicas, AdapterResource, AdapterStatus, PlacementStatus
from lorafleet_operator.decide.bookkeeping import (
    LOOK_SECONDS,
    MAX_SAVED_WRITES,
    WRITES_PER_SECOND,
    Bookkeeping,
    are_all_there,
    is_bookkeeping,
)
from lorafleet_operator.decide.conditions import said, with_times

Change = tuple[AdapterResource, AdapterStatus]


def status(
    *placements: PlacementStatus, ready: bool = True, resident: bool = True, generation: int = 2, **more: Any
) -> AdapterStatus:
    verdicts = [
        said("Ready", ready, Reason.SERVING if ready else Reason.NO_READY_PODS, f"on {len(placements)} pods"),
        said("Available", True, Reason.SERVING, "m"),
        said("Resident", resident, Reason.SERVING, f"on {len(placements)} pods"),
    ]
    return AdapterStatus(
        observed_generation=generation,
        stable_revision="a" * 12,
        placements=list(placements),
        replicas=AdapterReplicas(desired=3, resident=len(placements)),
        conditions=with_times(verdicts, [], generation=generation, now=NOW),
        **more,
    )


def on(pod: str, state: AdapterState = AdapterState.READY) -> PlacementStatus:
    return PlacementStatus(pod=pod, pod_uid=f"uid-{pod}", revision="a" * 12, state=state)


def change(name: str, before: AdapterStatus, after: AdapterStatus) -> Change:
    adapter = v.adapter(name)
    return adapter.model_copy(update={"status": before}), after


def moved(number: int) -> Change:
    return change(f"a{number:03d}", status(on("p0")), status(on("p1")))


def names(changes: list[Change]) -> list[str]:
    return [adapter.metadata.name for adapter, _ in changes]


def test_where_an_adapter_is_can_wait_and_what_somebody_acts_on_cannot() -> None:
    old = status(on("p0"))
    waits = [
        status(on("p1")),
        status(on("p0"), on("p1")),
        status(resident=False),
        status(on("p0", AdapterState.LOADING)),
        status(on("p0"), last_used=NOW),
    ]
    urgent = [
        status(on("p0"), ready=False),
        status(on("p0"), generation=3),
        status(on("p0", AdapterState.FAILED)),
        status(on("p0"), desired_revision="b" * 12),
        old.model_copy(update={"stable_revision": "b" * 12}),
        old.model_copy(update={"conditions": old.conditions[1:]}),
        old.model_copy(update={"served_name": "other"}),
    ]
    assert [is_bookkeeping(*change("one", old, after)) for after in waits] == [True] * len(waits)
    assert [is_bookkeeping(*change("one", old, after)) for after in urgent] == [False] * len(urgent)


def test_pods_that_stay_hold_nothing_back() -> None:
    many = [moved(number) for number in range(3 * MAX_SAVED_WRITES)]
    assert Bookkeeping().due(KEY, many, are_pods_settled=True, now=0) == many


def test_writes_while_pods_are_replaced_are_bounded_and_everybody_has_a_turn() -> None:
    bookkeeping = Bookkeeping()
    many = [moved(number) for number in range(60)]
    urgent = change("zz-urgent", status(on("p0")), status(on("p0"), ready=False))
    first = bookkeeping.due(KEY, [*many, urgent], are_pods_settled=False, now=0)
    assert names(first) == [*names(many[:MAX_SAVED_WRITES]), "zz-urgent"]
    assert bookkeeping.due(KEY, many[MAX_SAVED_WRITES:], are_pods_settled=False, now=0.5) == []
    # the pods that are replaced next move all of them again: those that were not written have the first turn
    told: list[str] = []
    step = 0
    while len(told) < 60 - MAX_SAVED_WRITES:
        step += 1
        due = names(bookkeeping.due(KEY, many, are_pods_settled=False, now=step * LOOK_SECONDS))
        assert len(due) == LOOK_SECONDS * WRITES_PER_SECOND
        told += due
    assert set(told) >= set(names(many[MAX_SAVED_WRITES:]))


def test_whatever_waits_is_written_when_the_pods_are_settled_and_what_was_saved_is_not_more_than_a_burst() -> None:
    bookkeeping = Bookkeeping()
    many = [moved(number) for number in range(100)]
    assert len(bookkeeping.due(KEY, many, are_pods_settled=False, now=0)) == MAX_SAVED_WRITES
    assert len(bookkeeping.due(KEY, many, are_pods_settled=False, now=10_000)) == MAX_SAVED_WRITES
    assert bookkeeping.due(KEY, many, are_pods_settled=True, now=10_000) == many
    bookkeeping.forget(KEY)
    assert len(bookkeeping.due(("team", "other"), many, are_pods_settled=False, now=10_000)) == MAX_SAVED_WRITES


async def test_pods_that_are_replaced_cost_less_than_a_write_for_each_of_their_adapters() -> None:
    adapters, num_pods = [f"a{number:02d}" for number in range(30)], 2

    def num_writes(fleet: Fleet) -> int:
        return sum("/loraadapters/" in write and write.endswith("/status") for write in fleet.kube.writes)

    async with simulated_fleet() as fleet:
        fleet.base(replicas=num_pods)
        for name in adapters:
            fleet.adapter(name, placement={"mode": "All"})
        await fleet.operate()
        for _ in range(num_pods):
            await fleet.pod()

        def is_told() -> bool:
            shown = [{p["pod"] for p in fleet.status(name).get("placements", ())} for name in adapters]
            return all(pods == set(fleet.pods) for pods in shown)

        await until("all are told", lambda: fleet.is_ready(*adapters) and is_told())
        await settled(fleet)
        before = num_writes(fleet)
        for _ in range(3):  # one more than there should be, all the time
            new = await fleet.pod()
            await until("the new pod is ready", lambda new=new: new.is_ready and len(new.residents()) == len(adapters))
            await settled(fleet)
            if len(fleet.pods) > num_pods + 1:
                await fleet.kill(min(fleet.pods))
                await settled(fleet)
        assert num_writes(fleet) - before <= MAX_SAVED_WRITES + 5
        await fleet.kill(min(fleet.pods))
        await until("statuses name the pods that are there", is_told)
        assert num_writes(fleet) - before <= MAX_SAVED_WRITES + 5 + len(adapters)


def test_pods_are_all_there_when_none_is_missing_coming_or_going() -> None:
    two = v.base(replicas=2)
    assert are_all_there(two, [v.pod("p0"), v.pod("p1")])
    assert not are_all_there(two, [v.pod("p0")])
    assert not are_all_there(two, [v.pod("p0"), v.pod("p1"), v.pod("p2")])
    assert not are_all_there(two, [v.pod("p0"), replace(v.pod("p1"), is_ready=False)])
    assert not are_all_there(two, [v.pod("p0"), replace(v.pod("p1"), is_leaving=True)])
