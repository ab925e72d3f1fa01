"""The commands: read what is asked for, judge it, and tell."""

import asyncio
import difflib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Final

from lorafleet_common.paths import Json
from lorafleet_contract.names import ANNOTATION_PROMOTE
from lorafleet_contract.resources import AdapterResource
from lorafleet_operator.cluster.collect import all_keys, snapshot_of
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.views import BaseKey, Snapshot
from lorafleet_operator.kubectl.cli import NOT_READY, READY, Asked, Told
from lorafleet_operator.kubectl.connect import Connection, connect
from lorafleet_operator.kubectl.decision import (
    UndoView,
    abort_of,
    decision_lines,
    promotion_of,
    source_of,
    undo_lines,
    undone,
)
from lorafleet_operator.kubectl.errors import NoSuchAdapter, NoSuchBase, NotUnderstood
from lorafleet_operator.kubectl.explain import explanation_of
from lorafleet_operator.kubectl.read import Reader
from lorafleet_operator.kubectl.rollout import ENDED, RolloutView, Stand, rollout_lines, rollout_row, rollout_view
from lorafleet_operator.kubectl.text import status_lines, tree_lines, why_lines
from lorafleet_operator.kubectl.views import FleetStatus, FleetTree, status_of, tree_of
from lorafleet_operator.kubectl.why import verdict_of

Command = Callable[[Asked], AsyncIterator[Told]]
Read = Callable[[Reader, str | None, Asked], AsyncIterator[Told]]
POLL_SECONDS: Final = 1.0
SEEN_SECONDS: Final = 30.0
"""How long the operator may take to see what was written."""


async def _status(reader: Reader, namespace: str | None, _: Asked) -> AsyncIterator[Told]:
    await reader.read(Kind.BASE, namespace)
    await reader.read(Kind.ADAPTER, namespace)
    snapshots = _snapshots(reader)
    found = status_of(snapshots, namespace)
    document = FleetStatus(bases=found.bases, adapters=found.adapters, notes=[*reader.notes, *_broken(snapshots)])
    yield Told(document, partial(status_lines, document))


async def _tree(reader: Reader, namespace: str | None, asked: Asked) -> AsyncIterator[Told]:
    await reader.read(Kind.BASE, namespace)
    if namespace is None:
        await reader.read(Kind.ADAPTER, None)
    else:
        await reader.read_widely(Kind.ADAPTER, [namespace])
    if asked.name is not None:
        names = {body["metadata"]["name"] for body in reader.store.all(Kind.BASE)}
        if asked.name not in names:
            raise NoSuchBase(asked.name, namespace, difflib.get_close_matches(asked.name, sorted(names)))
    shown = {(body["metadata"]["namespace"], body["metadata"]["name"]) for body in reader.store.all(Kind.BASE)}
    await reader.read_pods({place for place, name in shown if asked.name in (None, name)})
    snapshots = _snapshots(reader)
    found = tree_of(snapshots, namespace)
    bases, orphans = found.bases, found.orphans
    if asked.name is not None:
        bases, orphans = [node for node in bases if node.base.name == asked.name], []
    document = FleetTree(bases=bases, orphans=orphans, notes=[*reader.notes, *_broken(snapshots)])
    yield Told(document, partial(tree_lines, document))


async def _why(reader: Reader, namespace: str | None, asked: Asked) -> AsyncIterator[Told]:
    assert asked.name is not None
    assert namespace is not None
    is_whole = await reader.read_widely(Kind.ADAPTER, [namespace])
    key = _base_of(reader, namespace, asked.name)
    hidden: set[str] = set()
    if not await reader.read_widely(Kind.BASE, []):
        is_whole, hidden = False, await reader.read_bases([key])
    if key[0] not in hidden:
        await reader.read_pods({key[0]})
    snapshot = snapshot_of(reader.store, key, reader.now)
    adapter = _adapter(snapshot, namespace, asked.name)
    verdict = verdict_of(adapter, snapshot, is_base_hidden=key[0] in hidden, is_whole=is_whole)
    operator = snapshot.base.status.operator if snapshot.base is not None else None
    document = explanation_of(
        adapter,
        snapshot,
        verdict,
        events=await reader.events_of(adapter),
        lease_age_seconds=await reader.seconds_since_renewal(operator) if operator else None,
        notes=reader.notes,
    )
    yield Told(document, partial(why_lines, document), READY if verdict.is_ready else NOT_READY)


async def _rollout_status(reader: Reader, namespace: str | None, asked: Asked) -> AsyncIterator[Told]:
    view = rollout_view(await _read_adapter(reader, namespace, asked))
    yield Told(view, partial(rollout_lines, view), READY if view.stand is Stand.DONE else NOT_READY)


async def _rollout_watch(reader: Reader, namespace: str | None, asked: Asked) -> AsyncIterator[Told]:
    ends = time.monotonic() + asked.timeout_seconds if asked.timeout_seconds is not None else math.inf
    shown: RolloutView | None = None
    while True:
        view = rollout_view(await _read_adapter(reader, namespace, asked))
        if view != shown:
            yield Told(view, partial(rollout_row, view), READY if view.stand is Stand.DONE else NOT_READY)
            shown = view
        left = ends - time.monotonic()
        if view.stand in ENDED or left <= 0:
            return
        await asyncio.sleep(min(POLL_SECONDS, left))


async def _rollout_promote(reader: Reader, namespace: str | None, asked: Asked) -> AsyncIterator[Told]:
    adapter = await _read_adapter(reader, namespace, asked)
    decision, view = promotion_of(adapter, is_full=asked.is_full)
    if decision.is_spent:
        await reader.annotate(adapter, {ANNOTATION_PROMOTE: None})
        ends = time.monotonic() + SEEN_SECONDS
        while (rollout := adapter.status.rollout) is not None and rollout.spent_promotion is not None:
            if time.monotonic() > ends:
                raise NotUnderstood(f"the operator has not seen that {ANNOTATION_PROMOTE} was taken away: try again")
            await asyncio.sleep(POLL_SECONDS)
            adapter = await _read_adapter(reader, namespace, asked)
    await reader.annotate(adapter, decision.annotations)
    yield Told(view, partial(decision_lines, view))


async def _rollout_abort(reader: Reader, namespace: str | None, asked: Asked) -> AsyncIterator[Told]:
    adapter = await _read_adapter(reader, namespace, asked)
    decision, view = abort_of(adapter)
    await reader.annotate(adapter, decision.annotations)
    yield Told(view, partial(decision_lines, view))


async def _rollout_undo(reader: Reader, namespace: str | None, asked: Asked) -> AsyncIterator[Told]:
    adapter = await _read_adapter(reader, namespace, asked)
    entry = undone(adapter, asked.revision)
    source, digest = source_of(entry), entry.digest if adapter.spec.digest is not None else None
    await reader.set_source(adapter, source, digest)
    given = {name: value for name, value in source.items() if value is not None}
    meta = adapter.metadata
    view = UndoView(namespace=meta.namespace, name=meta.name, revision=entry.revision, source=given, digest=digest)
    yield Told(view, partial(undo_lines, view))


async def _read_adapter(reader: Reader, namespace: str | None, asked: Asked) -> AdapterResource:
    """Return an adapter as it is now."""
    assert asked.name is not None
    assert namespace is not None
    await reader.read(Kind.ADAPTER, namespace)
    key = _base_of(reader, namespace, asked.name)
    return _adapter(snapshot_of(reader.store, key, reader.now), namespace, asked.name)


def _base_of(reader: Reader, namespace: str, name: str) -> BaseKey:
    """Return the base that an adapter names."""
    bodies = reader.store.all(Kind.ADAPTER)
    for body in bodies:
        if (body["metadata"]["namespace"], body["metadata"]["name"]) == (namespace, name):
            ref = body["spec"]["baseModelRef"]
            return (ref.get("namespace") or namespace, ref["name"])
    raise NoSuchAdapter(name, namespace, near_names(name, namespace, bodies))


def near_names(name: str, namespace: str, bodies: Iterable[Json]) -> list[str]:
    """Return what somebody may have meant: names that are near, the same name elsewhere, and who serves as it."""
    own, near = [], []
    for body in bodies:
        metadata = body["metadata"]
        if metadata["namespace"] == namespace:
            own.append(metadata["name"])
            if (body.get("spec") or {}).get("servedName") == name:
                near.append(f"{metadata['name']}, which is served as {name}")
        elif metadata["name"] == name:
            near.append(f"{name} in namespace {metadata['namespace']}")
    return [*difflib.get_close_matches(name, sorted(own)), *sorted(near)][:4]


def _adapter(snapshot: Snapshot, namespace: str, name: str) -> AdapterResource:
    for adapter in snapshot.adapters:
        if (adapter.metadata.namespace, adapter.metadata.name) == (namespace, name):
            return adapter
    problem = next((b.problem for b in snapshot.broken if (b.meta.namespace, b.meta.name) == (namespace, name)), "")
    raise NotUnderstood(f"LoraAdapter {namespace}/{name} cannot be read: {problem}")


def _snapshots(reader: Reader) -> list[Snapshot]:
    return [snapshot_of(reader.store, key, reader.now) for key in sorted(all_keys(reader.store))]


def _broken(snapshots: Iterable[Snapshot]) -> list[str]:
    return [
        f"{broken.kind} {broken.meta.namespace}/{broken.meta.name} cannot be read: {broken.problem}"
        for snapshot in snapshots
        for broken in snapshot.broken
    ]


def _of(read: Read) -> Command:
    async def run(asked: Asked) -> AsyncIterator[Told]:
        connection: Connection = await connect(asked.kubeconfig, asked.context)
        try:
            namespace = None if asked.is_everywhere else asked.namespace or connection.namespace
            async for told in read(Reader(connection.api), namespace, asked):
                yield told
        finally:
            await connection.api.close()

    return run


COMMANDS: Final[dict[str, Command]] = {
    "status": _of(_status),
    "tree": _of(_tree),
    "why": _of(_why),
    "rollout status": _of(_rollout_status),
    "rollout watch": _of(_rollout_watch),
    "rollout promote": _of(_rollout_promote),
    "rollout abort": _of(_rollout_abort),
    "rollout undo": _of(_rollout_undo),
}
