"""What an adapter takes on a pod is what the pod's engine will say that it takes."""

import pytest
from support import operator_views as v

from lorafleet_contract.admin import Budgets
from lorafleet_contract.resources import ArtifactStatus
from lorafleet_operator.decide.base_status import capacity_of
from lorafleet_operator.decide.intent import resolve_key
from lorafleet_operator.decide.paging import Paging, all_pages, pages_of
from lorafleet_operator.decide.plan import plan_of


def budgets(**more: int) -> Budgets:
    others = dict.fromkeys(
        ("host_cache_bytes", "host_used_bytes", "disk_cache_bytes", "disk_used_bytes", "used_rank_pages"), 0
    )
    return Budgets(max_resident_adapters=8, max_rank=64, **others, **more)


OLD = budgets(rank_page=8, total_rank_pages=256)
NEW = budgets(rank_page=1, total_rank_pages=2052, memory_pages=14592)


@pytest.mark.parametrize(("rank", "pages"), [(1, 1), (8, 1), (9, 2), (64, 8)])
def test_pods_that_count_rank_pages_take_every_adapter_for_one_on_all_layers(rank: int, pages: int) -> None:
    assert Paging.of(OLD).pages_of(rank, memory_pages=3) == Paging.of(OLD).pages_of(rank) == pages
    assert all_pages(OLD) == 256


def test_pods_that_tell_pages_have_what_an_adapter_fills() -> None:
    assert Paging.of(NEW).pages_of(16, memory_pages=19) == 19
    assert Paging.of(NEW).pages_of(16) == 114, "one of which no pod has said: as on all linear layers"
    assert all_pages(NEW) == 14592


@pytest.mark.parametrize(("memory_pages", "num_placed"), [(None, 1), (19, 6)])
def test_a_pod_gets_as_many_adapters_as_fit_by_their_modules(memory_pages: int | None, num_placed: int) -> None:
    """Room for one of rank 16 on all linear layers, or for six on queries and values."""
    adapters = [v.adapter(f"a{number}") for number in range(8)]
    answers = {resolve_key(a): v.artifact(a.metadata.name, rank=16, memory_pages=memory_pages) for a in adapters}
    pods = [v.seen(pod=v.pod(), rank_pages=16, memory_pages=114)]
    plan = plan_of(v.snapshot(*adapters, base=v.base(), pods=(pods[0].pod,)), pods, answers)
    assert sum(map(len, plan.placement.pods.values())) == num_placed
    capacity = capacity_of(plan, pods)
    assert (capacity.rank_pages, capacity.assigned_rank_pages) == (114, 114)


def test_status_keeps_what_a_pod_said_and_other_pods_are_told() -> None:
    one = v.artifact("a", memory_pages=19)
    assert one.resolved.facts.memory_pages == ArtifactStatus.of(one.source, one.resolved).memory_pages == 19


def test_what_a_pod_says_of_an_adapter_goes_before() -> None:
    entry = v.entry("a", "a", rank=16, memory_pages=21)
    assert (pages_of(entry, NEW), pages_of(entry, OLD)) == (21, 2)
    old = v.entry("a", "a", rank=16, rank_pages=5)
    assert (pages_of(old, OLD), pages_of(old, NEW)) == (5, 114)
