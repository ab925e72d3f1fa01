"""From what is wanted and what pods say to what each pod is told."""

from dataclasses import replace
from datetime import timedelta

from support import operator_views as v
from support.operator_views import NOW

from lorafleet_contract.admin import AdapterState, Owner, Residency
from lorafleet_contract.resources import AdapterResource, ArtifactStatus, BaseModelResource
from lorafleet_operator.decide.catalogue import entries_for, wants_of
from lorafleet_operator.decide.diff import PodChange
from lorafleet_operator.decide.intent import ResolveFailure, RevisionKey, intents_of, resolve_key
from lorafleet_operator.decide.names import RESERVED, reservations_of
from lorafleet_operator.decide.plan import Plan, changes_of, next_leave, plan_of, questions_of, released, resolvers_of
from lorafleet_operator.decide.views import ObservedPod

OLD, NEW = v.artifact("french"), v.artifact("french-v2")
P0, P1 = v.pod("p0"), v.pod("p1")


def dumped(artifact: ArtifactStatus) -> dict:
    return artifact.model_dump(mode="json", by_alias=True, exclude_none=True)


def resolved(adapter: AdapterResource, artifact: ArtifactStatus) -> dict:
    return {resolve_key(adapter): artifact}


def told(
    adapters: list[AdapterResource],
    pods: list[ObservedPod],
    *,
    base: BaseModelResource | None = None,
    resolutions: dict | None = None,
    fence: int = 1,
    retry: bool = False,
    orphans_known: bool = True,
) -> dict[str, PodChange]:
    """By name of the pod, what it is told."""
    snapshot = v.snapshot(*adapters, base=base or v.base(), orphans_known=orphans_known)
    plan = plan_of(snapshot, pods, resolutions or {})
    changes = changes_of(plan, snapshot, pods, fence=fence, retried={a.served_name for a in adapters} if retry else ())
    return {change.pod.pod.name: change for change in changes}


def names(change: PodChange) -> dict[str, tuple[str, bool]]:
    """Revision -> residency and whether it is stable, of what is told."""
    return {entry.digest[7:19]: (entry.residency.value, entry.stable) for entry in change.entries}


def removed(change: PodChange) -> list[tuple[str, str, float]]:
    return [
        (ref.name, ref.revision, removal.drain_timeout_seconds)
        for removal in change.removals
        for ref in removal.revisions
    ]


def test_every_pod_knows_and_one_keeps() -> None:
    adapter = v.adapter()
    changes = told([adapter], [v.seen(pod=P0, fence=0), v.seen(pod=P1, fence=0)], resolutions=resolved(adapter, OLD))
    kept = sorted(names(change)[OLD.revision] for change in changes.values())
    assert kept == [("OnDemand", True), ("Resident", True)]
    assert {change.why for change in changes.values()} == {"its first catalogue"}


def test_nothing_to_say_is_nothing() -> None:
    adapter = v.adapter(status=v.served("french"))
    pods = [v.seen(v.entry("french"), pod=P0), v.seen(v.entry("french", residency=Residency.ON_DEMAND), pod=P1)]
    assert told([adapter], pods) == {}


def test_new_leader_and_new_boot_are_told_everything() -> None:
    adapter = v.adapter(status=v.served("french"))
    pods = [v.seen(v.entry("french"), pod=P0), v.seen(pod=P1, fence=0)]
    changes = told([adapter], pods, fence=2)
    assert changes["p0"].why == "a new leader"
    assert changes["p1"].why == "its first catalogue"
    assert all(len(change.entries) == 1 for change in changes.values())


def test_empty_catalogue_is_told_too() -> None:
    """Otherwise a pod without adapters would wait for one until its timeout."""
    assert told([], [v.seen(pod=P0, fence=0)])["p0"].entries == ()


def test_new_revision_comes_beside_the_old_one_which_stays_stable() -> None:
    adapter = v.adapter(source={"name": "models", "path": "french-v2"}, status=v.served("french"))
    change = told([adapter], [v.seen(v.entry("french"), pod=P0)], resolutions=resolved(adapter, NEW))["p0"]
    assert names(change) == {NEW.revision: ("Resident", False)}
    assert not change.removals


def test_without_room_beside_the_new_one_is_loaded_on_demand() -> None:
    adapter = v.adapter(source={"name": "models", "path": "french-v2"}, status=v.served("french"))
    pods = [v.seen(v.entry("french"), pod=P0, slots=1)]
    change = told([adapter], pods, resolutions=resolved(adapter, NEW))["p0"]
    assert names(change) == {NEW.revision: ("OnDemand", False)}


def test_name_moves_when_every_ready_pod_can_answer() -> None:
    adapter = v.adapter(source={"name": "models", "path": "french-v2"}, status=v.served("french"))
    old, new = v.entry("french"), v.entry("french-v2", stable=False)
    demand = v.entry("french-v2", stable=False, residency=Residency.ON_DEMAND)
    loading = v.entry("french-v2", stable=False, state=AdapterState.LOADING)
    answers = resolved(adapter, NEW)
    on_p1 = v.entry("french", residency=Residency.ON_DEMAND)
    ready = told([adapter], [v.seen(old, new, pod=P0), v.seen(on_p1, demand, pod=P1)], resolutions=answers)
    assert names(ready["p0"])[NEW.revision] == ("Resident", True)
    assert names(ready["p1"])[NEW.revision] == ("OnDemand", True)
    for waiting in (
        [v.seen(old, loading, pod=P0), v.seen(on_p1, demand, pod=P1)],
        [v.seen(old, new, pod=P0), v.seen(on_p1, pod=P1)],
        [v.seen(old, new, pod=P0), v.silent(P1)],
    ):
        changes = told([adapter], waiting, resolutions=answers)
        assert not any(names(c).get(NEW.revision, ("", False))[1] for c in changes.values())


def test_suspended_switch_stands_still() -> None:
    artifacts = {
        "artifact": NEW.model_dump(mode="json", by_alias=True, exclude_none=True),
        "stableArtifact": OLD.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    status = v.served("french", **artifacts)
    source = {"name": "models", "path": "french-v2"}
    pods = [v.seen(v.entry("french"), v.entry("french-v2", stable=False), pod=P0)]
    assert told([v.adapter(source=source, status=status, suspend=True)], pods) == {}
    moved = told([v.adapter(source=source, status=status)], pods)["p0"]
    assert names(moved)[NEW.revision] == ("Resident", True)


def after_switch(since: timedelta) -> AdapterResource:
    history = [
        {"revision": NEW.revision, "digest": NEW.digest, "since": (NOW - since).isoformat()},
        {"revision": OLD.revision, "digest": OLD.digest, "since": (NOW - timedelta(days=1)).isoformat()},
    ]
    status = v.served("french-v2", history=history)
    return v.adapter(source={"name": "models", "path": "french-v2"}, status=status, unload={"drainTimeoutSeconds": 7})


def test_old_revision_stays_until_gateways_have_heard() -> None:
    pods = [v.seen(v.entry("french", stable=False), v.entry("french-v2"), pod=P0)]
    early, late = after_switch(timedelta(seconds=2)), after_switch(timedelta(seconds=10))
    assert told([early], pods) == {}
    assert removed(told([late], pods)["p0"]) == [("french", OLD.revision, 7.0)]
    snapshot = v.snapshot(early, base=v.base())
    assert next_leave(plan_of(snapshot, pods, {}), pods, NOW) == 4.0
    snapshot = v.snapshot(late, base=v.base())
    assert next_leave(plan_of(snapshot, pods, {}), pods, NOW) is None


def test_nothing_is_removed_while_the_desired_revision_is_unknown() -> None:
    adapter = v.adapter(source={"name": "models", "path": "elsewhere"}, status=v.served("french"))
    pods = [v.seen(v.entry("french"), v.entry("odd", stable=False), pod=P0)]
    assert told([adapter], pods) == {}


def test_deleted_adapter_leaves_every_pod_with_its_drain_time() -> None:
    adapter = v.adapter(status=v.served("french"), deleted=True, unload={"drainTimeoutSeconds": 9})
    change = told([adapter], [v.seen(v.entry("french"), pod=P0)])["p0"]
    assert removed(change) == [("french", OLD.revision, 9.0)]
    draining = v.entry("french", state=AdapterState.DRAINING)
    assert told([adapter], [v.seen(draining, pod=P0)]) == {}


def test_orphan_leaves_only_when_everything_was_listed_twice() -> None:
    pods = [v.seen(v.entry("nobody", "nobody"), pod=P0)]
    assert told([], pods, orphans_known=False) == {}
    assert [r[0] for r in removed(told([], pods)["p0"])] == ["nobody"]


def test_local_adapters_are_not_ours() -> None:
    adapter = v.adapter(status=v.served("french"))
    pods = [v.seen(v.entry("other", owner=Owner.LOCAL), v.entry("mine", "mine", owner=Owner.LOCAL), pod=P0)]
    assert told([adapter], pods) == {}


def test_failures_are_told_again_where_that_may_help() -> None:
    adapter = v.adapter(status=v.served("french"))

    def again(reason: str, *, retry: bool) -> bool:
        failed = v.entry("french", state=AdapterState.FAILED, reason=reason)
        return bool(told([adapter], [v.seen(failed, pod=P0)], retry=retry))

    assert again("DiskFull", retry=True)
    assert again("SourceNotAllowed", retry=True)
    assert not again("DiskFull", retry=False)
    assert not again("BaseModelMismatch", retry=True)


def test_pods_that_are_going_are_told_nothing() -> None:
    adapter = v.adapter()
    pods = [
        v.seen(pod=v.pod("p0", leaving=True), fence=0),
        v.seen(pod=P1, fence=0, draining=True),
        v.silent(v.pod("p2")),
    ]
    assert told([adapter], pods, resolutions=resolved(adapter, OLD)) == {}


def test_silent_pod_keeps_what_status_says_it_has() -> None:
    """Until it has not been ready for so long that others take over."""
    placements = [{"pod": "p1", "podUid": "uid-p1", "revision": OLD.revision, "state": "Ready"}]
    adapter = v.adapter(status=v.served("french", placements=placements))
    known = v.entry("french", residency=Residency.ON_DEMAND)
    for pod in (P1, v.pod("p1", ready=False)):
        assert told([adapter], [v.seen(known, pod=P0), v.silent(pod)]) == {}
    restarted = told([adapter], [v.seen(known, pod=P0), v.seen(pod=v.pod("p1", ready=False), fence=0)])
    assert names(restarted["p1"]) == {OLD.revision: ("Resident", True)}
    lost = v.silent(v.pod("p1", ready=False, coming_up=False))
    assert names(told([adapter], [v.seen(known, pod=P0), lost])["p0"]) == {OLD.revision: ("Resident", True)}


def test_new_fleet_is_not_placed_on_its_first_pod() -> None:
    adapters = [v.adapter(f"a{i}") for i in range(8)]
    answers = {resolve_key(a): v.artifact(a.metadata.name) for a in adapters}
    pods = [v.seen(pod=P0, fence=0), v.silent(v.pod("p1", ready=False))]
    change = told(adapters, pods, resolutions=answers)["p0"]
    assert 2 <= sum(entry.residency is Residency.RESIDENT for entry in change.entries) <= 5


def plan(adapter: AdapterResource, pods: list[ObservedPod]) -> Plan:
    return plan_of(v.snapshot(adapter, base=v.base()), pods, {})


def reserving(base: BaseModelResource, deleted: AdapterResource) -> BaseModelResource:
    """The base once its status reserves what it has to."""
    reserved = reservations_of(base, plan(deleted, []).intents, NOW)
    return base.model_copy(update={"status": base.status.model_copy(update={"reserved_names": reserved})})


def test_finalizer_goes_when_no_pod_can_hold_it() -> None:
    deleted = v.adapter(status=v.served("french"), deleted=True)
    holding = v.seen(v.entry("french", state=AdapterState.DRAINING), pod=P0)
    base = reserving(v.base(), deleted)
    for pods, is_released in (
        ([holding], False),
        ([v.seen(pod=P0)], True),
        ([v.silent(P0)], False),
        ([v.silent(v.pod("p0", running=False, ready=False))], True),
        ([v.silent(v.pod("p0", leaving=True))], True),
        ([], True),
    ):
        assert bool(released(plan(deleted, pods), pods, base, NOW)) == is_released, pods
    assert released(plan(deleted, [holding]), [holding], None, NOW)
    assert not released(plan(v.adapter(), []), [], base, NOW)


def test_silent_pod_does_not_hold_a_deletion_for_ever() -> None:
    """After `unload.forceAfterSeconds`, and never before the drain is over."""
    pods = [v.silent(P0)]
    for unload, seconds in (({}, 900), ({"forceAfterSeconds": 10}, 60), ({"forceAfterSeconds": 100}, 100)):
        deleted = v.adapter(status=v.served("french"), deleted=True, unload=unload)
        base = reserving(v.base(), deleted)
        for is_sure in (True, False):
            after = {
                delay: bool(released(plan(deleted, pods), pods, base, NOW + timedelta(seconds=delay), is_sure=is_sure))
                for delay in (seconds - 1, seconds)
            }
            assert after == {seconds - 1: False, seconds: True}
        assert next_leave(plan(deleted, pods), pods, NOW) == seconds


def test_name_that_served_is_reserved_before_its_adapter_goes() -> None:
    """Else it is handed to whoever waits for it, as soon as its owner recreates the adapter."""
    deleted = v.adapter(status=v.served("french"), deleted=True)
    reserved = reservations_of(v.base(), plan(deleted, []).intents, NOW)
    assert [(entry.name, entry.namespace, entry.until) for entry in reserved] == [("french", "team", NOW + RESERVED)]
    assert not released(plan(deleted, []), [], v.base(), NOW)
    base = reserving(v.base(), deleted)
    assert reservations_of(base, (), NOW) == reserved
    assert reservations_of(base, (), NOW + RESERVED) == []
    never_served = v.adapter(deleted=True)
    assert released(plan(never_served, []), [], v.base(), NOW)
    asked = deleted.metadata.model_copy(update={"annotations": {"lorafleet.io/release-name": "true"}})
    handed = deleted.model_copy(update={"metadata": asked})
    assert reservations_of(v.base(), plan(handed, []).intents, NOW) == []
    assert released(plan(handed, []), [], v.base(), NOW)


def test_guests_are_placed_as_the_base_allows() -> None:
    """Also one that is refused for it, as long as a revision of it serves."""
    greedy = v.adapter(
        namespace="friends", status=v.served("french"), placement={"mode": "All", "pin": True, "priority": 2**31 - 1}
    )
    base = v.base(allowedNamespaces=["friends"])
    pods = [v.seen(v.entry("french"), pod=P0)]
    made = plan_of(v.snapshot(greedy, base=base), pods, {})
    (want,) = wants_of(made.lineups, pods)
    assert want.priority == 0
    (entry,) = entries_for(pods[0], made.lineups, made.placement)
    assert (entry.residency, entry.pinned) == (Residency.RESIDENT, False)


def test_sources_are_asked_of_pods_that_declare_them() -> None:
    """Those of the newest template; of these, those that serve."""
    old = v.seen(pod=v.pod("old", template="1", age_seconds=600))
    new = v.seen(pod=v.pod("new", template="2", age_seconds=10))
    starting = v.seen(pod=v.pod("starting", template="2", age_seconds=5, ready=False))
    mute = v.silent(v.pod("mute", template="3", age_seconds=1))
    assert [p.pod.name for p in resolvers_of([old, starting, new, mute])] == ["new"]
    assert [p.pod.name for p in resolvers_of([old, starting])] == ["starting"]
    assert [p.pod.name for p in resolvers_of([old, mute])] == ["old"]
    assert resolvers_of([mute]) == []


def test_lost_status_is_found_again_on_pods() -> None:
    intents = intents_of(v.snapshot(v.adapter(), base=v.base()), [v.seen(v.entry("french"), pod=P0)], {})
    assert intents[0].published == OLD.revision
    assert intents[0].needs_resolving


def test_revision_that_pods_answer_is_asked_for_and_told_to_every_pod() -> None:
    """Status lost it, or never had it, and spec names another one by now: those that have it say what it is made of."""
    adapter = v.adapter()
    holder, other = v.seen(v.entry("french"), pod=P0), v.seen(pod=P1, fence=0)
    found = resolved(adapter, NEW)
    lost = RevisionKey(adapter.metadata.uid, "french", OLD.revision)
    pods = [holder, other, v.silent(v.pod("p2"))]
    asked = questions_of(plan_of(v.snapshot(adapter, base=v.base()), pods, found), pods)
    assert {question: [pod.pod.name for pod in able] for question, able in asked.items()} == {
        resolve_key(adapter): ["p0", "p1"],
        lost: ["p0"],
    }
    changes = told([adapter], [holder, other], resolutions={**found, lost: OLD})
    assert {revision: stable for revision, (_, stable) in names(changes["p1"]).items()} == {
        OLD.revision: True,
        NEW.revision: False,
    }


def test_nothing_is_lost_while_status_or_spec_says_what_a_revision_is_made_of() -> None:
    """A revision that is one of both needs no pod, and neither does an adapter that pods are not to know."""
    pods = [v.seen(v.entry("french"), pod=P0)]
    moved = v.adapter(source={"name": "models", "path": "x"}, status=v.served("french"))
    fresh = v.adapter()
    for adapter, answers in ((moved, {}), (fresh, resolved(fresh, OLD))):
        intent = intents_of(v.snapshot(adapter, base=v.base()), pods, answers)[0]
        assert (intent.published, intent.stable, intent.lost) == (OLD.revision, OLD, None)


def test_revision_that_nobody_knows_any_more_is_given_up() -> None:
    """Only when every pod says that it does not have it: then nothing can bring it back."""
    adapter = v.adapter(source={"name": "models", "path": "x"}, status={"stableRevision": OLD.revision})
    found, empty = resolved(adapter, NEW), v.seen(pod=P0)

    def published(*pods: ObservedPod, **more: bool) -> str | None:
        snapshot = replace(v.snapshot(adapter, base=v.base()), **more)
        return intents_of(snapshot, pods, found)[0].published

    assert published(empty) is None
    assert published(empty, v.silent(v.pod("p1", ready=False, coming_up=False))) is None
    assert published(empty, v.silent(v.pod("p1", leaving=True))) is None
    assert published(empty, v.silent(P1)) == OLD.revision
    assert published(empty, v.seen(v.entry("french", stable=False), pod=P1)) == OLD.revision
    assert published(empty, are_pods_hidden=True) == OLD.revision
    assert published() == OLD.revision


def test_suspended_adapter_is_what_its_status_says() -> None:
    adapter = v.adapter(source={"name": "models", "path": "x"}, status=v.served("french"), suspend=True)
    intent = intents_of(v.snapshot(adapter, base=v.base()), [], {})[0]
    assert intent.desired == OLD
    assert not intent.needs_resolving


def test_pinned_digest_asks_for_another_resolution() -> None:
    adapter = v.adapter(status=v.served("french"), digest=v.digest("other"))
    snapshot = v.snapshot(adapter, base=v.base())
    assert intents_of(snapshot, [], {})[0].needs_resolving
    failure = ResolveFailure("DigestMismatch", "it has another", retryable=False)
    assert intents_of(snapshot, [], {resolve_key(adapter): failure})[0].failure == failure
    assert not intents_of(v.snapshot(v.adapter(status=v.served("french"), digest=OLD.digest), base=v.base()), [], {})[
        0
    ].needs_resolving


def test_switch_that_has_begun_goes_on_while_a_pod_says_nothing() -> None:
    """Pods that have moved are not told the old revision back; only what a pod says turns a switch back."""
    new, old = v.artifact("french-v2"), v.artifact("french")
    status = {**v.served("french"), "artifact": dumped(new), "stableArtifact": dumped(old)}
    adapter = v.adapter(source={"name": "models", "path": "french-v2"}, status=status)
    moved = (v.entry("french-v2"), v.entry("french", stable=False))
    behind = (v.entry("french-v2", stable=False), v.entry("french"))
    failed = (v.entry("french-v2", stable=False, state=AdapterState.FAILED, reason="LoadFailed"), v.entry("french"))
    silent = ObservedPod(P1, None)

    def target(*pods: ObservedPod) -> str | None:
        return plan_of(v.snapshot(adapter, base=v.base()), pods, {}).lineups[0].target

    assert target(v.seen(*behind, pod=P0), silent) == old.revision, "it has not begun"
    assert target(v.seen(*moved, pod=P0), silent) == new.revision
    assert target(v.seen(*moved, pod=P0), v.seen(*behind, pod=P1)) == new.revision
    assert target(v.seen(*moved, pod=P0), v.seen(*failed, pod=P1)) == old.revision
    assert target(v.seen(*moved, pod=P0), v.seen(v.entry("french"), pod=P1)) == old.revision


def test_grace_counts_from_when_the_status_was_seen() -> None:
    """History tells when the status was made; with hundreds of them it is written seconds later."""
    new, old = v.artifact("french-v2"), v.artifact("french")
    status = {
        "stableRevision": new.revision,
        "artifact": dumped(new),
        "history": [
            {"revision": new.revision, "digest": new.digest, "since": (NOW - timedelta(seconds=7)).isoformat()},
            {"revision": old.revision, "digest": old.digest, "since": (NOW - timedelta(hours=1)).isoformat()},
        ],
    }
    adapter = v.adapter(source={"name": "models", "path": "french-v2"}, status=status)
    pods = [v.seen(v.entry("french-v2"), v.entry("french", stable=False), pod=P0)]
    for seconds, leaves in ((1, False), (7, True)):
        seen = {adapter.metadata.uid: NOW - timedelta(seconds=seconds)}
        snapshot = replace(v.snapshot(adapter, base=v.base()), published_at=seen)
        plan = plan_of(snapshot, pods, {})
        changes = changes_of(plan, snapshot, pods, fence=1)
        assert bool(changes) == leaves, seconds
        assert (next_leave(plan, pods, NOW) is None) == leaves
