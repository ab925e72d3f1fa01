"""One pass decided: from the snapshot and what pods said to what each pod is told. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator.decide.catalogue import (
    AdapterRevisions,
    Catalogue,
    WantMemory,
    budgets_of,
    revisions_by_name,
    wants_of,
)
from lorafleet_operator.decide.diff import Alike, PodChange, change_of
from lorafleet_operator.decide.intent import (
    NO_VERDICTS,
    Intent,
    Question,
    Resolutions,
    resolve_key,
)
from lorafleet_operator.decide.lineups import LineupMemory, lineups_of
from lorafleet_operator.decide.names import reservations_of
from lorafleet_operator.decide.place import Placement, PodBudget, Want, place
from lorafleet_operator.decide.rollout import leaves_at
from lorafleet_operator.decide.told import ToldMemory
from lorafleet_operator.decide.verify import Verdict, VerifyKey, is_told, verify_key
from lorafleet_operator.decide.views import ObservedPod, Snapshot


@dataclass(frozen=True, slots=True)
class Plan:
    """What one pass is about."""

    lineups: tuple[AdapterRevisions, ...]
    budgets: tuple[PodBudget, ...]
    placement: Placement
    intents: tuple[Intent, ...] = field(init=False, repr=False, compare=False)
    """All adapters of the base."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "intents", tuple(lineup.intent for lineup in self.lineups))


class PassMemory:
    """What the passes over one base remember of each other."""

    def __init__(self) -> None:
        self.lineups = LineupMemory()
        self.told = ToldMemory()
        self.wants = WantMemory()
        self._placed: tuple[Sequence[PodBudget], Sequence[Want], Placement] | None = None

    def placed(self, budgets: Sequence[PodBudget], wants: Sequence[Want]) -> Placement:
        """Return where each adapter is to be resident; what was placed last is not placed again."""
        if self._placed is None or self._placed[:2] != (budgets, wants):
            self._placed = (budgets, wants, place(budgets, wants))
        return self._placed[2]


def plan_of(
    snapshot: Snapshot,
    pods: Sequence[ObservedPod],
    resolutions: Resolutions,
    auto: Mapping[str, int] | None = None,
    verdicts: Mapping[VerifyKey, Verdict] = NO_VERDICTS,
    *,
    memory: "PassMemory | None" = None,
) -> Plan:
    """Return which adapters go where; `auto` has adapter uid -> number of pods, of those with mode Auto.

    `memory` is of the last pass: it saves work and changes nothing.
    """
    memory = memory or PassMemory()
    base = snapshot.base
    lineups = lineups_of(snapshot, pods, resolutions, verdicts, memory.lineups)
    budgets = tuple(budgets_of(base, pods)) if base is not None else ()
    return Plan(lineups, budgets, memory.placed(budgets, wants_of(lineups, pods, auto, memory.wants)))


def changes_of(
    plan: Plan,
    snapshot: Snapshot,
    pods: Sequence[ObservedPod],
    *,
    fence: int,
    retried: Collection[str] = (),
    memory: "PassMemory | None" = None,
) -> list[PodChange]:
    """Return what each pod has to be told; pods that know everything are left out. `memory` as in `plan_of`."""
    told = (memory or PassMemory()).told
    lineups, catalogue = revisions_by_name(plan.lineups), Catalogue(plan.lineups, plan.placement, told.catalogue)
    told.begin(catalogue, retried)
    alike: Alike = set()
    changes = []
    for pod in pods:
        if not pod.is_writable:
            continue
        keys = told.keys_of(pod, fence)
        change = change_of(
            pod,
            catalogue.wanted_by(pod) if keys is None else catalogue.wanted_of(pod, keys),
            lineups,
            fence=fence,
            now=snapshot.now,
            # a resource that cannot be read may be the one that a name belongs to
            are_orphans_known=snapshot.are_orphans_known and not snapshot.broken,
            retried=retried,
            alike=alike,
            keys=keys,
        )
        told.compared(pod, change, keys, catalogue)
        if change is not None:
            changes.append(change)
    return changes


def resolvers_of(pods: Sequence[ObservedPod]) -> list[ObservedPod]:
    """Return the pods that are best asked what a source is: those that declare the sources of the latest spec.

    One that serves has its model up, which others may still be loading.
    """
    able = [pod for pod in pods if pod.is_writable]
    if not able:
        return []
    newest = max(able, key=lambda pod: (pod.pod.created_at, pod.uid)).pod.template

    def rank(pod: ObservedPod) -> tuple[bool, bool]:
        return (pod.pod.template == newest, pod.is_serving)

    best = max(rank(pod) for pod in able)
    return sorted((pod for pod in able if rank(pod) == best), key=lambda pod: pod.pod.name)


def questions_of(plan: Plan, pods: Sequence[ObservedPod]) -> dict[Question, list[ObservedPod]]:
    """Return what pods are to be asked, and which of them can answer it."""
    resolvers = resolvers_of(pods)
    questions: dict[Question, list[ObservedPod]] = {
        resolve_key(intent.adapter): resolvers for intent in plan.intents if intent.needs_resolving
    }
    for intent in plan.intents:
        if (lost := intent.lost) is not None and intent.is_served:
            questions[lost] = [pod for pod in pods if pod.is_writable and pod.own(lost.name, lost.revision) is not None]
    return questions


def verifications_of(plan: Plan, pods: Sequence[ObservedPod]) -> dict[VerifyKey, tuple[Intent, list[ObservedPod]]]:
    """Return which revisions have to answer questions, until status says how they did, and the pods that can answer."""
    found: dict[VerifyKey, tuple[Intent, list[ObservedPod]]] = {}
    for intent in plan.intents:
        if intent.verdict is None or intent.desired is None or intent.refusal is not None or not intent.is_served:
            continue
        key = verify_key(intent.adapter, intent.desired.revision)
        if not (is_told(intent.adapter, key) or intent.adapter.spec.suspend):
            able = [pod for pod in pods if pod.is_serving and pod.serves(intent.name, key.revision)]
            found[key] = intent, sorted(able, key=lambda pod: pod.pod.name)
    return found


def released(
    plan: Plan, pods: Sequence[ObservedPod], base: BaseModelResource | None, now: datetime, *, is_sure: bool = True
) -> list[Intent]:
    """Return the deleted adapters that may go: their names are reserved, and no pod can hold them any more.

    A pod that is gone or going counts as unloaded, and so does every pod of a base that is gone (not of one that cannot be
    read). A pod that runs and does not answer may hold it, until `unload.forceAfterSeconds` are over; without `is_sure` only
    those go.
    """
    deleted = [intent for intent in plan.intents if intent.is_deleted]
    if base is None:
        return [intent for intent in deleted if is_sure or forced_at(intent) <= now]
    written = base.status.reserved_names
    unwritten = {entry.name for entry in reservations_of(base, deleted, now) if entry not in written}
    return [
        intent
        for intent in deleted
        if intent.name not in unwritten
        and (
            forced_at(intent) <= now
            or (is_sure and not intent.owns_name)
            or (is_sure and not any(_may_hold(pod, intent.name) for pod in pods if not pod.pod.is_leaving))
        )
    ]


def forced_at(intent: Intent) -> datetime:
    """Return when a deleted adapter goes whatever pods say."""
    unload, deleted = intent.adapter.spec.unload, intent.adapter.metadata.deletion_timestamp
    assert deleted is not None
    return deleted + timedelta(seconds=max(unload.force_after_seconds, unload.drain_timeout_seconds))


def _may_hold(pod: ObservedPod, name: str) -> bool:
    return pod.pod.is_running if pod.state is None else bool(pod.entries_of(name))


def next_leave(
    plan: Plan, pods: Sequence[ObservedPod], now: datetime, memory: PassMemory | None = None
) -> float | None:
    """Return in how many seconds the next revision may leave; None when none is waiting.

    Where `memory` is of `changes_of` of the same pass, pods are not looked through again.
    """
    unwanted = memory.told.unwanted if memory is not None else _unwanted(plan, pods)
    others: dict[str, list[str]] = {}
    for name, revision in unwanted:
        others.setdefault(name, []).append(revision)
    times = [
        leaves_at(one.intent, now)
        for one in plan.lineups
        if one.name in others and one.intent.is_served
        if any(revision not in (one.target, one.intent.published) for revision in others[one.name])
    ]
    times += [forced_at(intent) for intent in plan.intents if intent.is_deleted]
    later = [time for time in times if time > now]
    return (min(later) - now).total_seconds() if later else None


def _unwanted(plan: Plan, pods: Sequence[ObservedPod]) -> set[tuple[str, str]]:
    """Return what pods have and should not have."""
    wanted = {(lineup.name, artifact.revision) for lineup in plan.lineups for artifact in lineup.intent.artifacts}
    return {key for pod in pods for key in pod.own_by_revision.keys() - wanted}
