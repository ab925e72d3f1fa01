"""What one pod is told: no more than it lacks, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from support import operator_views as v
from support.operator_views import NOW

from lorafleet_contract.admin import AdapterState, CatalogueEntry, ObservedAdapter, Owner, Residency, RevisionRef
from lorafleet_contract.reasons import RETRYABLE, Reason
from lorafleet_contract.resources import AdapterResource
from lorafleet_operator.decide.catalogue import AdapterRevisions, Wanted
from lorafleet_operator.decide.diff import PodChange, Removal, change_of, without
from lorafleet_operator.decide.intent import intents_of

OLD = v.artifact("french")
OLD_REF = RevisionRef(name="french", revision=OLD.revision)


def wanted(content: str = "french", name: str = "french", **more: Any) -> CatalogueEntry:
    return CatalogueEntry(name=name, source=v.artifact(content).resolved, **more)


def lineups(*adapters: AdapterResource, target: str | None = None) -> dict[str, AdapterRevisions]:
    """Line-ups of adapters, by name."""
    intents = intents_of(v.snapshot(*adapters, base=v.base()), [], {})
    return {one.name: AdapterRevisions(one, target or one.published) for one in intents}


def told(
    *entries: ObservedAdapter,
    wants: Sequence[CatalogueEntry] = (),
    known: Mapping[str, AdapterRevisions] | None = None,
    seen_fence: int = 3,
    fence: int = 3,
    now: datetime = NOW,
    orphans_known: bool = True,
    retried: Sequence[str] = (),
) -> PodChange | None:
    pod = v.seen(*entries, pod=v.pod(), fence=seen_fence)
    given = {"fence": fence, "now": now, "are_orphans_known": orphans_known, "retried": retried}
    return change_of(pod, Wanted.of(wants), known or {}, **given)


DIFFERENT = {
    "nothing": (v.entry("french"), False),
    "it is not there": (v.entry("other", "other", owner=Owner.LOCAL), True),
    "another revision is there": (v.entry("french-v2", stable=False, state=AdapterState.DRAINING), True),
    "where it should be": (v.entry("french", residency=Residency.ON_DEMAND), True),
    "whether it is pinned": (v.entry("french", pinned=True), True),
    "whether it is stable": (v.entry("french", stable=False), True),
    "its content": (v.entry("french").model_copy(update={"digest": v.digest("french")[:-1] + "x"}), True),
    "nothing that it was told": (v.entry("french", state=AdapterState.LOADING), False),
    "it is on its way out": (v.entry("french", state=AdapterState.DRAINING, stable=False), False),
}


@pytest.mark.parametrize(("entry", "is_told"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_a_pod_is_told_what_differs(entry: ObservedAdapter, is_told: bool) -> None:
    change = told(entry, wants=[wanted(), wanted("german", "german")])
    assert change is not None
    assert [one.name for one in change.entries] == (["french", "german"] if is_told else ["german"])
    assert not change.removals


@pytest.mark.parametrize("reason", list(Reason))
def test_what_failed_is_told_again_where_somebody_asks_and_it_may_help(reason: Reason) -> None:
    failed = v.entry("french", state=AdapterState.FAILED, reason=reason)
    may_help = reason in RETRYABLE or reason is Reason.SOURCE_NOT_ALLOWED
    assert (told(failed, wants=[wanted()], retried=["french"]) is not None) == may_help
    assert told(failed, wants=[wanted()], retried=["german"]) is None
    ready = v.entry("french", reason=reason)
    assert told(ready, wants=[wanted()], retried=["french"]) is None


@pytest.mark.parametrize(
    ("seen_fence", "fence", "why"), [(0, 1, "its first catalogue"), (1, 2, "a new leader"), (2, 2, None), (3, 2, None)]
)
def test_a_new_pod_and_a_new_leaders_pod_are_told_everything(seen_fence: int, fence: int, why: str | None) -> None:
    change = told(v.entry("french"), v.entry("odd", "odd"), wants=[wanted()], seen_fence=seen_fence, fence=fence)
    assert change is not None
    assert len(change.entries) == (why is not None)
    assert change.why == (why or f"remove odd@{v.artifact('odd').revision}")
    assert [ref.name for removal in change.removals for ref in removal.revisions] == ["odd"]
    empty = told(seen_fence=seen_fence, fence=fence)
    assert (empty is not None) == (why is not None), "an empty catalogue is one too"


def test_what_leaves_has_the_drain_time_of_its_adapter() -> None:
    """And a name that nobody has any more a minute; those of equal time leave together."""
    gone = [
        v.adapter(name, deleted=True, unload={"drainTimeoutSeconds": seconds}, status=v.served(name))
        for name, seconds in (("a", 90), ("b", 9), ("c", 9))
    ]
    entries = [v.entry(name, name) for name in ("a", "nobody", "b", "c")]
    change = told(*entries, known=lineups(*gone))
    assert change is not None
    left = {removal.drain_timeout_seconds: [ref.name for ref in removal.revisions] for removal in change.removals}
    assert list(left.items()) == [(9.0, ["b", "c"]), (60.0, ["nobody"]), (90.0, ["a"])]
    assert not change.entries
    revisions = [ref.revision for removal in change.removals for ref in removal.revisions]
    assert revisions == [v.artifact(name).revision for name in ("b", "c", "nobody", "a")]


def test_a_name_without_an_adapter_stays_while_that_is_not_sure() -> None:
    assert told(v.entry("nobody", "nobody"), orphans_known=False) is None


def test_entries_that_are_not_to_leave_hold_up_none_that_are() -> None:
    others = [
        v.entry("local", "local", owner=Owner.LOCAL),
        v.entry("french"),
        v.entry("draining", "draining", state=AdapterState.DRAINING),
    ]
    change = told(*others, v.entry("nobody", "nobody"), wants=[wanted()])
    assert change is not None
    assert [ref.name for removal in change.removals for ref in removal.revisions] == ["nobody"]


def test_a_replaced_revision_leaves_in_its_time() -> None:
    new = v.artifact("french-v2")
    history = [
        {"revision": a.revision, "digest": a.digest, "since": (NOW - timedelta(seconds=age)).isoformat()}
        for a, age in ((new, 1), (OLD, 99))
    ]
    adapter = v.adapter(
        source={"name": "models", "path": "french-v2"},
        status=v.served("french-v2", history=history),
        unload={"drainTimeoutSeconds": 7},
    )
    known = lineups(adapter)
    entries = (v.entry("french", stable=False), v.entry("french-v2"))
    assert told(*entries, wants=[wanted("french-v2")], known=known) is None
    later = told(*entries, wants=[wanted("french-v2")], known=known, now=NOW + timedelta(seconds=5))
    assert later is not None
    assert later.removals == (Removal(7.0, (OLD_REF,)),)
    moving = lineups(adapter, target=OLD.revision)
    later = told(*entries, wants=[wanted("french-v2")], known=moving, now=NOW + timedelta(seconds=5))
    assert later is None, "the target stays"


@pytest.mark.parametrize(
    ("num_new", "num_gone", "why"),
    [
        (1, 0, "tell n0"),
        (0, 1, "remove g0@{0}"),
        (2, 2, "tell n0, n1; remove g0@{0}, g1@{1}"),
        (5, 5, "tell n0, n1, n2, n3, n4; remove g0@{0}, g1@{1}, g2@{2}, g3@{3}, g4@{4}"),
        (6, 6, "tell n0, n1, n2, n3, n4 …; remove g0@{0}, g1@{1}, g2@{2}, g3@{3}, g4@{4} …"),
    ],
)
def test_why_names_a_few(num_new: int, num_gone: int, why: str) -> None:
    entries = [v.entry(f"g{number}", f"g{number}") for number in range(num_gone)]
    change = told(*entries, wants=[wanted(f"n{number}", f"n{number}") for number in range(num_new)])
    assert change is not None
    assert change.why == why.format(*(v.artifact(f"g{number}").revision for number in range(num_gone)))


def test_two_revisions_of_a_name_are_named_once() -> None:
    change = told(wants=[wanted(), wanted("french-v2", stable=False)])
    assert change is not None
    assert change.why == "tell french"


def test_a_change_without_some_names_keeps_the_rest() -> None:
    change = told(v.entry("nobody", "nobody"), wants=[wanted(), wanted("german", "german")])
    assert change is not None
    left = without(change, {"french"})
    assert [entry.name for entry in left.entries] == ["german"]
    assert left == replace(change, entries=left.entries)
    assert without(change, ()) == change
