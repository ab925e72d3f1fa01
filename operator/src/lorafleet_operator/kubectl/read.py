"""What the API server shows to the one who asks: what is essential is an error where it is hidden, the rest a note.

And the only things that the plug-in writes: annotations of an adapter, and its source.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from lorafleet_common.kube.client import KubeApi, Listed
from lorafleet_common.kube.errors import KubeError, KubeNotFound
from lorafleet_common.paths import Json, collection
from lorafleet_contract.names import GROUP, LABEL_BASE, VERSION
from lorafleet_contract.resources import AdapterResource
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.kubectl.errors import NotAllowed, PluginError, error_of, where

MAX_EVENTS: Final = 5


MERGE_PATCH: Final = "application/merge-patch+json"
FIELD_MANAGER: Final = "kubectl-lorafleet"


class Reader:
    """Lists objects into a store, as the operator's watches do, so that its pure parts can be asked about them."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self.store = Store()
        self.notes: list[str] = []
        """What is not shown, and why."""
        self.now = datetime.now(UTC)

    async def read(self, kind: Kind, namespace: str | None) -> None:
        """Take in all objects of a kind; None is all namespaces.

        Raises:
            PluginError: they are not shown.
        """
        known = self.store.uids(kind, namespace)
        self.store.replace(kind, await self._list(kind, namespace), known_before=known, scope=namespace)

    async def read_widely(self, kind: Kind, namespaces: Iterable[str]) -> bool:
        """Take in what there is of a kind; return whether it is all there is, and not that of some namespaces only.

        Args:
            kind: what to list.
            namespaces: what is essential, where the whole cluster is not shown.

        Raises:
            PluginError: not even those are shown.
        """
        try:
            await self.read(kind, None)
        except NotAllowed as error:
            for namespace in sorted(set(namespaces)):
                await self.read(kind, namespace)
            self.notes.append(f"other namespaces' {error.resource} are not shown: you may not list them")
            return False
        return True

    async def read_pods(self, namespaces: Collection[str]) -> None:
        """Take in the pods of bases, namespace by namespace; those that are hidden are a note."""
        for namespace in sorted(namespaces):
            await self._read_or_note(Kind.POD, namespace)

    async def read_bases(self, keys: Iterable[BaseKey]) -> set[str]:
        """Take in the bases of some namespaces; return the namespaces that are hidden."""
        namespaces = {namespace for namespace, _ in keys}
        return {namespace for namespace in sorted(namespaces) if not await self._read_or_note(Kind.BASE, namespace)}

    async def _read_or_note(self, kind: Kind, namespace: str) -> bool:
        try:
            await self.read(kind, namespace)
        except NotAllowed as error:
            self.store.hide(kind, namespace)
            self.notes.append(f"{error.resource} {where(namespace)} are not shown: you may not list them")
            return False
        return True

    async def events_of(self, adapter: AdapterResource) -> list[Json]:
        """Return the latest Events about an adapter, the oldest first; none where they are hidden."""
        meta = adapter.metadata
        path = collection("v1", "events", meta.namespace)
        try:
            listed = await self._api.list(path, fields=f"involvedObject.uid={meta.uid}")
        except KubeError as error:
            self.notes.append(_note(error, "list", "events", meta.namespace))
            return []
        return sorted(listed.items, key=lambda event: str(event.get("lastTimestamp") or ""))[-MAX_EVENTS:]

    async def seconds_since_renewal(self, lease: str) -> float | None:
        """Return the age of an operator's Lease `namespace/name`; None where it is not known."""
        namespace, _, name = lease.partition("/")
        path = collection("coordination.k8s.io/v1", "leases", namespace)
        try:
            body = await self._api.get(f"{path}/{name}")
            renewed = datetime.fromisoformat((body.get("spec") or {})["renewTime"])
        except KubeNotFound:
            self.notes.append(f"the Lease {lease} of the operator is gone")
            return None
        except KubeError as error:
            self.notes.append(_note(error, "get", "leases", namespace))
            return None
        except (KeyError, ValueError, TypeError):
            return None
        return max(0.0, (self.now - renewed).total_seconds())

    async def annotate(self, adapter: AdapterResource, annotations: Mapping[str, str | None]) -> None:
        """Write annotations on a LoraAdapter; None takes one away.

        Raises:
            PluginError: they were not written.
        """
        await self._patch(adapter, {"metadata": {"annotations": dict(annotations)}})

    async def set_source(self, adapter: AdapterResource, source: Mapping[str, str | None], digest: str | None) -> None:
        """Write where a LoraAdapter comes from; None in `source` takes a field away, no `digest` leaves that as it is.

        Raises:
            PluginError: it was not written.
        """
        spec: Json = {"source": dict(source)}
        await self._patch(adapter, {"spec": spec if digest is None else {**spec, "digest": digest}})

    async def _patch(self, adapter: AdapterResource, patch: Json) -> None:
        meta = adapter.metadata
        path = f"{collection(f'{GROUP}/{VERSION}', Kind.ADAPTER, meta.namespace)}/{meta.name}"
        body = {**patch, "metadata": {"uid": meta.uid, **patch.get("metadata", {})}}
        query = {"fieldManager": FIELD_MANAGER}
        try:
            await self._api.request("PATCH", path, query=query, body=body, content_type=MERGE_PATCH)
        except KubeError as error:
            raise error_of(error, "patch", Kind.ADAPTER, meta.namespace) from error

    async def _list(self, kind: Kind, namespace: str | None) -> Listed:
        is_pod = kind is Kind.POD
        path = collection("v1" if is_pod else f"{GROUP}/{VERSION}", kind, namespace)
        try:
            return await self._api.list(path, labels=LABEL_BASE if is_pod else None)
        except KubeError as error:
            raise error_of(error, "list", kind, namespace) from error


def _note(error: KubeError, verb: str, plural: str, namespace: str) -> str:
    found: PluginError = error_of(error, verb, plural, namespace)
    if isinstance(found, NotAllowed):
        return f"{found.resource} {where(namespace)} are not shown: you may not {verb} them"
    return str(found)
