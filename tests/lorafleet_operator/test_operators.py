"""Two operators over the same objects: one has a base, the other leaves it alone and says so, until the first one is gone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from support.operator_views import base as base_view
from support.simulated_fleet import BASE, CONFIG, NAMESPACE, SYSTEM, Fleet, settled, simulated_fleet, until

from lorafleet_contract.names import ANNOTATION_OPERATOR, FINALIZER
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator import metrics
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.decide.ownership import GONE_SECONDS, SILENT_SECONDS, Heard, Turn, turn_of

FIRST, SECOND = f"{SYSTEM}/lorafleet-operator", f"{SYSTEM}/second"
FAST = replace(CONFIG, resync_seconds=1)
OTHER = replace(FAST, lease="second", pod_name="second-0", key_secret="second-key")
ELSEWHERE = "other-team"


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


def holder(fleet: Fleet, name: str = BASE) -> str | None:
    operator: str | None = fleet.kube.get(Kind.BASE, NAMESPACE, name)["status"].get("operator")
    return operator


def generation(fleet: Fleet) -> int:
    number: int = fleet.kube.get("deployments", NAMESPACE, BASE)["metadata"]["generation"]
    return number


async def two(fleet: Fleet, second: OperatorConfig = OTHER) -> None:
    """A base and an adapter that the first operator has, and a second one beside it."""
    fleet.base()
    fleet.adapter("french")
    await fleet.operate(FAST)
    await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french"))
    await fleet.operate(second)
    await until("left", lambda: "OperatedByAnother" in fleet.event_reasons())
    await settled(fleet)


async def test_second_operator_leaves_a_base_alone_and_says_so(fleet: Fleet) -> None:
    """Each has a key of its own, and would replace the other's pods for ever."""
    await two(fleet)
    before, writes = generation(fleet), len(fleet.kube.writes)
    assert holder(fleet) == FIRST
    await asyncio.sleep(2.5)  # both have listed everything twice
    assert generation(fleet) == before
    assert [w for w in fleet.kube.writes[writes:] if "second" not in w and "status" in w] == []
    sample = metrics.REGISTRY.get_sample_value("lorafleet_operator_bases_left", {"operator": FIRST})
    assert sample == 1
    assert fleet.event_reasons().count("OperatedByAnother") == 1
    fleet.adapter("german")
    await until("the first goes on", lambda: fleet.is_ready("german"))


async def test_annotation_hands_a_base_over(fleet: Fleet) -> None:
    await two(fleet)
    body = fleet.kube.get(Kind.BASE, NAMESPACE, BASE)
    fleet.kube.put(Kind.BASE, {**body, "metadata": {**body["metadata"], "annotations": {ANNOTATION_OPERATOR: SECOND}}})
    await until("taken", lambda: holder(fleet) == SECOND)
    await until("said", lambda: "OperatorChanged" in fleet.event_reasons())
    await until("another token", lambda: fleet.event_reasons().count("OperatedByAnother") == 2)
    await settled(fleet)
    before = generation(fleet)
    await asyncio.sleep(2.5)
    assert generation(fleet) == before
    assert holder(fleet) == SECOND


async def test_two_that_come_together_do_not_both_have_a_base(fleet: Fleet) -> None:
    await fleet.operate(FAST)
    await fleet.operate(OTHER)
    fleet.base()
    await until("one has it", lambda: holder(fleet) in (FIRST, SECOND))
    await until("one has left it", lambda: "OperatedByAnother" in fleet.event_reasons())
    await settled(fleet)
    before = generation(fleet)
    await asyncio.sleep(2.5)
    assert generation(fleet) == before


async def test_operators_of_disjoint_namespaces_do_not_meet(fleet: Fleet) -> None:
    for name in (NAMESPACE, ELSEWHERE):
        fleet.kube.put("namespaces", {"metadata": {"name": name}})
    fleet.base()
    fleet.base(namespace=ELSEWHERE)
    await fleet.operate(replace(FAST, watch_namespaces=(NAMESPACE,)))
    await fleet.operate(replace(OTHER, watch_namespaces=(ELSEWHERE,)))
    await until("first", lambda: holder(fleet) == FIRST)
    await until("second", lambda: fleet.kube.get(Kind.BASE, ELSEWHERE, BASE)["status"].get("operator") == SECOND)
    assert "OperatedByAnother" not in fleet.event_reasons()


async def test_namespace_that_is_left_out_is_given_up(fleet: Fleet) -> None:
    """Adapters that are deleted there go, and another operator may have its bases."""
    for name in (NAMESPACE, ELSEWHERE):
        fleet.kube.put("namespaces", {"metadata": {"name": name}})
    fleet.base()
    fleet.adapter("french")
    fleet.adapter("german")
    both = await fleet.operate(replace(FAST, watch_namespaces=(NAMESPACE, ELSEWHERE)))
    await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french", "german"))
    await fleet.end(both)
    fleet.delete("french")
    assert FINALIZER in fleet.kube.get(Kind.ADAPTER, NAMESPACE, "french")["metadata"]["finalizers"]
    await fleet.operate(replace(FAST, watch_namespaces=(ELSEWHERE,)))
    await until("gone", lambda: fleet.is_gone("french"))
    await until("given up", lambda: holder(fleet) == "")
    await fleet.operate(replace(OTHER, watch_namespaces=(NAMESPACE,)))
    await until("taken", lambda: holder(fleet) == SECOND)
    fleet.delete("german")
    await asyncio.sleep(1.5)
    assert not fleet.is_gone("german"), "whoever has the base lets its adapters go"


async def test_adapter_whose_base_is_another_operators_is_left_alone(fleet: Fleet) -> None:
    """Both serve the adapter's namespace, and only one that of its base."""
    for name in (NAMESPACE, ELSEWHERE):
        fleet.kube.put("namespaces", {"metadata": {"name": name}})
    fleet.base(allowedNamespaces=[ELSEWHERE])
    fleet.adapter("french", namespace=ELSEWHERE, base={"name": BASE, "namespace": NAMESPACE})
    await fleet.operate(FAST)
    await fleet.pod()
    await until("ready", lambda: fleet.condition("french", namespace=ELSEWHERE)[0] == "True")
    await fleet.operate(replace(OTHER, watch_namespaces=(ELSEWHERE,)))
    for _ in range(20):
        await asyncio.sleep(0.1)
        assert fleet.condition("french", namespace=ELSEWHERE) == ("True", "Serving")


def base(operator: str | None, wanted: str | None = None) -> BaseModelResource:
    made = base_view()
    annotations = {ANNOTATION_OPERATOR: wanted} if wanted else {}
    metadata = made.metadata.model_copy(update={"annotations": annotations})
    return made.model_copy(
        update={"metadata": metadata, "status": made.status.model_copy(update={"operator": operator})}
    )


LIVING, SILENT = Heard(True, SILENT_SECONDS - 1), Heard(True, SILENT_SECONDS)
JUST_GONE, GONE = Heard(False, GONE_SECONDS - 1), Heard(False, GONE_SECONDS)


@pytest.mark.parametrize(
    ("operator", "wanted", "other", "turn"),
    [
        (None, None, None, Turn.TAKE),
        ("", None, None, Turn.TAKE),
        ("a/me", None, None, Turn.OURS),
        ("a/me", "b/it", None, Turn.OURS),
        ("b/it", None, LIVING, Turn.THEIRS),
        ("b/it", None, SILENT, Turn.TAKE),
        ("b/it", None, JUST_GONE, Turn.THEIRS),
        ("b/it", None, GONE, Turn.TAKE),
        ("b/it", "a/me", LIVING, Turn.TAKE),
        ("b/it", "b/it", GONE, Turn.THEIRS),
        (None, "b/it", None, Turn.THEIRS),
    ],
)
def test_turn(operator: str | None, wanted: str | None, other: Heard | None, turn: Turn) -> None:
    assert turn_of(base(operator, wanted), "a/me", other) is turn
