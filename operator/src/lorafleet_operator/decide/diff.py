"""What a pod has to be told so that it knows what it should. Pure; nothing to tell is None.

Missing data never removes: only an entry that is seen on a pod, of a name whose adapter is known and does not want it,
or of a name that no adapter has after everything was listed twice, is removed.
"""

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from lorafleet_contract.admin import AdapterState, CatalogueEntry, ObservedAdapter, RevisionRef
from lorafleet_contract.reasons import RETRYABLE, Reason
from lorafleet_operator.decide.catalogue import AdapterRevisions, Key, Wanted
from lorafleet_operator.decide.rollout import may_leave
from lorafleet_operator.decide.views import ObservedPod

RETRYABLE_ON_NEWER_POD: Final = frozenset({*RETRYABLE, Reason.SOURCE_NOT_ALLOWED})
"""Failures that may be mended without a change of the adapter: a source may be one that only newer pods declare."""
ORPHAN_DRAIN_SECONDS: Final = 60.0
Alike = set[tuple[int, int]]
"""Identities of an entry that is wanted and of one that a pod has, while both are there, of which nothing is to be told."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Revisions that leave a pod, with the time their requests have."""

    drain_timeout_seconds: float
    revisions: tuple[RevisionRef, ...]


@dataclass(frozen=True, slots=True)
class PodChange:
    """What one pod is told."""

    pod: ObservedPod
    entries: tuple[CatalogueEntry, ...]
    removals: tuple[Removal, ...]
    why: str


def change_of(
    pod: ObservedPod,
    wanted: Wanted,
    lineups: Mapping[str, AdapterRevisions],
    *,
    fence: int,
    now: datetime,
    are_orphans_known: bool,
    retried: Collection[str] = (),
    alike: Alike | None = None,
    keys: Collection[Key] | None = None,
) -> PodChange | None:
    """Return what a pod has to be told, or None.

    Args:
        pod: the pod, writable.
        wanted: all that it should have.
        lineups: adapters of its base that own their names.
        fence: of this leadership; a pod that has seen none or a lower one is told everything, to take it over.
        now: time of the snapshot.
        are_orphans_known: whether a name without an adapter may be removed.
        retried: names whose failures somebody asks to be tried again now; else pods do so in their own time.
        alike: what other pods of the same pass were found to have as they should.
        keys: where something may have changed since the pod had all that it should; then `wanted` has entries of these
            only. None: anywhere.
    """
    assert pod.state is not None
    removals = _removals(pod, unwanted_of(pod, wanted, keys), lineups, now=now, are_orphans_known=are_orphans_known)
    if pod.state.fence < fence:
        why = "its first catalogue" if pod.state.fence == 0 else "a new leader"
        return PodChange(pod, tuple(wanted.entries), removals, why)
    changed = _changed(pod, wanted, retried, alike if alike is not None else set())
    if not changed and not removals:
        return None
    return PodChange(pod, changed, removals, _why(changed, removals))


def without(change: PodChange, names: Collection[str]) -> PodChange:
    """Return the change without the entries of some names."""
    if not names:
        return change
    return replace(change, entries=tuple(entry for entry in change.entries if entry.name not in names))


def with_entries(change: PodChange, entries: tuple[CatalogueEntry, ...]) -> PodChange:
    """Return the change with some of its entries only."""
    return replace(change, entries=entries, why=_why(entries, change.removals))


def _changed(pod: ObservedPod, wanted: Wanted, retried: Collection[str], alike: Alike) -> tuple[CatalogueEntry, ...]:
    """Return the entries that the pod lacks, or has otherwise.

    Pods say the same with the same objects and are told the same with the same objects: what was compared for one pod
    needs not be compared for the others.
    """
    pairs = zip(wanted.entries, map(pod.own_by_revision.get, wanted.keys), strict=True)
    changed = []
    for entry, seen in [pair for pair in pairs if (id(pair[0]), id(pair[1])) not in alike]:
        if _differs(seen, entry, is_retried=entry.name in retried):
            changed.append(entry)
        else:
            alike.add((id(entry), id(seen)))
    return tuple(changed)


def _differs(seen: ObservedAdapter | None, entry: CatalogueEntry, *, is_retried: bool) -> bool:
    if seen is None:
        return True
    if seen.state is AdapterState.DRAINING:
        return False  # told again when it is gone
    if seen.state is AdapterState.FAILED and is_retried and seen.reason in RETRYABLE_ON_NEWER_POD:
        return True
    return (seen.digest, seen.residency, seen.pinned, seen.stable) != (
        entry.digest,
        entry.residency,
        entry.pinned,
        entry.stable,
    )


def unwanted_of(pod: ObservedPod, wanted: Wanted, keys: Collection[Key] | None) -> Set[Key]:
    """Return what of the operator's a pod has and should not have, among some keys or at all."""
    if keys is None:
        return pod.own_by_revision.keys() - wanted.all_keys
    return {key for key in keys if key in pod.own_by_revision and key not in wanted.all_keys}


def _removals(
    pod: ObservedPod,
    unwanted: Set[Key],
    lineups: Mapping[str, AdapterRevisions],
    *,
    now: datetime,
    are_orphans_known: bool,
) -> tuple[Removal, ...]:
    if not unwanted:
        return ()
    leaving: dict[float, list[RevisionRef]] = {}
    for key in sorted(unwanted):
        seen = pod.own_by_revision[key]
        if seen.state is AdapterState.DRAINING:
            continue
        drain = _drain_seconds(seen, lineups.get(seen.name), now, are_orphans_known=are_orphans_known)
        if drain is not None:
            leaving.setdefault(drain, []).append(RevisionRef(name=seen.name, revision=seen.revision))
    return tuple(Removal(drain, tuple(refs)) for drain, refs in sorted(leaving.items()))


def _drain_seconds(
    seen: ObservedAdapter, lineup: AdapterRevisions | None, now: datetime, *, are_orphans_known: bool
) -> float | None:
    """Return the drain time of an entry that has to leave, None when it stays."""
    if lineup is None:
        return ORPHAN_DRAIN_SECONDS if are_orphans_known else None
    if not may_leave(lineup.intent, seen.revision, lineup.target, now):
        return None
    return float(lineup.intent.adapter.spec.unload.drain_timeout_seconds)


def _why(changed: tuple[CatalogueEntry, ...], removals: tuple[Removal, ...]) -> str:
    names = sorted({entry.name for entry in changed})
    gone = sorted({f"{ref.name}@{ref.revision}" for removal in removals for ref in removal.revisions})
    parts = [f"tell {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"] if names else []
    if gone:
        parts.append(f"remove {', '.join(gone[:5])}{' …' if len(gone) > 5 else ''}")
    return "; ".join(parts)
