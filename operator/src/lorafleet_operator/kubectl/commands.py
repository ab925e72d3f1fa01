"""The commands: read what is asked for, judge it, and tell."""

import difflib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final

from lorafleet_common.paths import Json
from lorafleet_contract.resources import AdapterResource
from lorafleet_operator.cluster.collect import all_keys, snapshot_of
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.views import BaseKey, Snapshot
from lorafleet_operator.kubectl.cli import NOT_READY, READY, Asked, Told
from lorafleet_operator.kubectl.connect import Connection, connect
from lorafleet_operator.kubectl.errors import NoSuchAdapter, NoSuchBase, NotUnderstood
from lorafleet_operator.kubectl.explain import explanation_of
from lorafleet_operator.kubectl.read import Reader
from lorafleet_operator.kubectl.text import status_lines, tree_lines, why_lines
from lorafleet_operator.kubectl.views import FleetStatus, FleetTree, status_of, tree_of
from lorafleet_operator.kubectl.why import verdict_of

Command = Callable[[Asked], Coroutine[Any, Any, Told]]
Read = Callable[[Reader, str | None, Asked], Awaitable[Told]]


async def _status(reader: Reader, namespace: str | None, _: Asked) -> Told:
    await reader.read(Kind.BASE, namespace)
    await reader.read(Kind.ADAPTER, namespace)
    snapshots = _snapshots(reader)
    found = status_of(snapshots, namespace)
    document = FleetStatus(bases=found.bases, adapters=found.adapters, notes=[*reader.notes, *_broken(snapshots)])
    return Told(document, partial(status_lines, document))


async def _tree(reader: Reader, namespace: str | None, asked: Asked) -> Told:
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
    return Told(document, partial(tree_lines, document))


async def _why(reader: Reader, namespace: str | None, asked: Asked) -> Told:
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
    return Told(document, partial(why_lines, document), READY if verdict.is_ready else NOT_READY)


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
    async def run(asked: Asked) -> Told:
        connection: Connection = await connect(asked.kubeconfig, asked.context)
        try:
            namespace = None if asked.is_everywhere else asked.namespace or connection.namespace
            return await read(Reader(connection.api), namespace, asked)
        finally:
            await connection.api.close()

    return run


COMMANDS: Final[dict[str, Command]] = {
    "status": _of(_status),
    "tree": _of(_tree),
    "why": _of(_why),
}
