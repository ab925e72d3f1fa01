"""An API server in memory that speaks HTTP: lists, creates, replaces and server-side applies what the operator needs.

It keeps uid, resourceVersion, generation, the status subresource, finalizers and field ownership as the real one does, as
far as the operator can tell; it validates nothing. Cluster tests hold the operator against the real one.
"""

import asyncio
import contextlib
import copy
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Path = tuple[str, ...]
IDENTITY = {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"}
PENDING = {
    "type": "Ready",
    "status": "Unknown",
    "reason": "Pending",
    "message": "waiting for the operator",
    "lastTransitionTime": "1970-01-01T00:00:00Z",
}


def leaves(value: Json, at: Path = ()) -> dict[Path, Any]:
    """Paths of a document to what stands there; lists are one value."""
    found: dict[Path, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            found.update(leaves(inner, (*at, name)))
        else:
            found[(*at, name)] = inner
    return found


def _set(document: Json, path: Path, value: Any) -> None:
    for name in path[:-1]:
        document = document.setdefault(name, {})
    document[path[-1]] = copy.deepcopy(value)


def _unset(document: Json, path: Path) -> None:
    """Take away a value, and what is empty without it."""
    first, *rest = path
    if rest and isinstance(document.get(first), dict):
        _unset(document[first], tuple(rest))
    if not rest or document.get(first) == {}:
        document.pop(first, None)


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class FakeKube:
    """Objects by collection path and name. `on_change` hears (event type, plural, body) of every change."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        """(plural, namespace, name) -> body."""
        self.owners: dict[tuple[str, str, str], dict[str, set[Path]]] = {}
        self.on_change: list[Callable[[str, str, Json], None]] = []
        self.is_away = False
        """While true everything is answered 503."""
        self.forbidden: set[tuple[str, str]] = set()
        """(plural, namespace) of what nobody may list, watch or write."""
        self.unknown: set[str] = set()
        """Plurals of kinds that it does not serve."""
        self.has_group = True
        """Whether discovery tells of the custom resources."""
        self.before: Callable[[str, str], None] | None = None
        """Called with verb and path before each answer; what it changes comes first, what it raises is answered."""
        self.writes: list[str] = []
        """`VERB path` of everything that changed something."""
        self._watches: list[asyncio.Queue[Json | None]] = []
        self._version = 0
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def put(self, plural: str, body: Json) -> Json:
        """What a user or a controller makes or changes, beside HTTP; metadata and status are completed or kept."""
        metadata = body["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        body = copy.deepcopy(body)
        known = self.objects.get(key)
        if known is None:
            defaults = {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": _now()}
            body["metadata"] = {**defaults, **body["metadata"]}
            if "lorafleet.io" in body.get("apiVersion", ""):
                body.setdefault("status", {"conditions": [dict(PENDING)]})
        else:
            body["metadata"] = {**known["metadata"], **body["metadata"]}
            body.setdefault("status", known.get("status"))
        return self._store(key, body)

    def get(self, plural: str, namespace: str, name: str) -> Json:
        return self.objects[plural, namespace, name]

    def find(self, plural: str, namespace: str, name: str) -> Json | None:
        return self.objects.get((plural, namespace, name))

    def delete(self, plural: str, namespace: str, name: str) -> None:
        key = (plural, namespace, name)
        body = copy.deepcopy(self.objects[key])
        if not body["metadata"].get("finalizers"):
            self._remove(key)
            return
        body["metadata"].setdefault("deletionTimestamp", _now())
        self._store(key, body)

    def _store(self, key: tuple[str, str, str], body: Json) -> Json:
        known = self.objects.get(key)
        if known is not None and {**body, "metadata": {**body["metadata"], "resourceVersion": ""}} == {
            **known,
            "metadata": {**known["metadata"], "resourceVersion": ""},
        }:
            return known
        if known is not None and body.get("spec") != known.get("spec"):
            body["metadata"]["generation"] += 1
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.objects[key] = body
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            self._remove(key)
        else:
            self._tell("MODIFIED" if known else "ADDED", key[0], body)
        return body

    def _remove(self, key: tuple[str, str, str]) -> None:
        self.owners.pop(key, None)
        self._version += 1
        body = self.objects.pop(key)
        self._tell("DELETED", key[0], {**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}})

    def _tell(self, event: str, plural: str, body: Json) -> None:
        for heard in list(self.on_change):
            heard(event, plural, copy.deepcopy(body))

    def _discovery(self, path: str) -> Json | None:
        """What there is to be had; None where the path is of something else."""
        group, version = "lorafleet.io", "v1alpha1"
        kinds = {"basemodeldeployments": "BaseModelDeployment", "loraadapters": "LoraAdapter"}

        def resource(plural: str, kind: str) -> Json:
            verbs = ["get", "list", "watch", "patch", "create"]
            return {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True, "verbs": verbs}

        served = {"groupVersion": f"{group}/{version}", "version": version}
        found = {"name": group, "versions": [served], "preferredVersion": served}
        documents: dict[str, Json] = {
            "/version": {"major": "1", "minor": "35"},
            "/api": {"versions": ["v1"]},
            "/api/v1": {"resources": [resource("pods", "Pod"), resource("namespaces", "Namespace")]},
            "/apis": {"groups": [found] if self.has_group else []},
            f"/apis/{group}/{version}": {"resources": [resource(*item) for item in kinds.items()]},
        }
        return documents.get(path)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """Stream what happens to a collection from now on."""
        plural, namespace, _, _ = _parsed(request.path)
        events: asyncio.Queue[Json | None] = asyncio.Queue()

        def hear(event: str, changed: str, body: Json) -> None:
            if changed == plural and namespace in ("", body["metadata"].get("namespace")):
                events.put_nowait({"type": event, "object": body})

        self.on_change.append(hear)
        self._watches.append(events)
        stream = web.StreamResponse()
        await stream.prepare(request)
        try:
            with contextlib.suppress(ConnectionResetError):
                while (event := await events.get()) is not None:
                    await stream.write(json.dumps(event).encode() + b"\n")
            return stream
        finally:
            self.on_change.remove(hear)
            self._watches.remove(events)

    def end_watches(self) -> None:
        """End all watches, as the API server does from time to time."""
        for events in self._watches:
            events.put_nowait(None)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0)
        if self.is_away:
            return web.json_response({"reason": "ServiceUnavailable", "message": "away"}, status=503)
        if (document := self._discovery(request.path.rstrip("/"))) is not None:
            return web.json_response(document)
        try:
            if request.query.get("watch") == "true":
                self._check_rights(request.path)
                return await self._watch(request)
            if self.before is not None:
                self.before(request.method, request.path)
            status, body = self._answer(request.method, request.path, dict(request.query), await request.text())
        except Refused as refusal:
            answer = {
                "kind": "Status",
                "reason": str(refusal),
                "message": f"{request.method} {request.path}: {refusal}",
            }
            return web.json_response(answer, status=refusal.status)
        return web.json_response(body, status=status)

    def forbid(self, namespace: str, *plurals: str) -> None:
        """Take the rights in a namespace away."""
        self.forbidden |= {(plural, namespace) for plural in plurals}

    def permit(self, namespace: str) -> None:
        """Give them back."""
        self.forbidden = {(plural, place) for plural, place in self.forbidden if place != namespace}

    def _check_rights(self, path: str) -> None:
        if _parsed(path)[:2] in self.forbidden:
            raise Refused(403, "Forbidden")

    def _answer(self, method: str, path: str, query: dict[str, str], text: str) -> tuple[int, Json]:
        plural, namespace, name, sub = _parsed(path)
        self._check_rights(path)
        if plural in self.unknown:
            raise Refused(404, "NotFound")
        key = (plural, namespace, name)
        body: Json = json.loads(text) if text else {}
        if method == "GET" and not name:
            return 200, self._list(plural, namespace, query.get("labelSelector"), query.get("fieldSelector"))
        if method == "GET":
            return 200, self._found(key)
        is_dry = query.get("dryRun") == "All"
        if not is_dry:
            self.writes.append(f"{method} {path}")
        if method == "DELETE":
            wanted = body.get("preconditions", {}).get("uid")
            if wanted not in (None, self._found(key)["metadata"]["uid"]):
                raise Refused(409, "Conflict")
            self.delete(*key)
            return 200, {}
        if method == "POST":
            key = (plural, namespace, body["metadata"]["name"])
            if key in self.objects:
                raise Refused(409, "AlreadyExists")
            body["metadata"].setdefault("namespace", namespace)
            return 201, body if is_dry else self.put(plural, body)
        if method == "PUT":
            if self._found(key)["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
                raise Refused(409, "Conflict")
            return 200, self.put(plural, body)
        assert method == "PATCH"
        if "force" not in query:
            return 200, self._merge(key, body)
        return 200, self._apply(key, sub, body, query["fieldManager"], is_dry=is_dry)

    def _list(self, plural: str, namespace: str, labels: str | None, fields: str | None = None) -> Json:
        items = [
            body
            for (kind, place, _), body in self.objects.items()
            if kind == plural
            and namespace in ("", place)
            and (labels is None or all(_has_label(body, term) for term in labels.split(",")))
            and (fields is None or all(_has_field(body, term) for term in fields.split(",")))
        ]
        return {"items": items, "metadata": {"resourceVersion": str(self._version)}}

    def _found(self, key: tuple[str, str, str]) -> Json:
        if key not in self.objects:
            raise Refused(404, "NotFound")
        return self.objects[key]

    def _merge(self, key: tuple[str, str, str], patch: Json) -> Json:
        """A JSON merge patch."""
        known = self._found(key)
        if patch["metadata"].get("uid", known["metadata"]["uid"]) != known["metadata"]["uid"]:
            raise Refused(409, "Conflict")
        return self._store(key, _merged(known, patch))

    def _apply(self, key: tuple[str, str, str], sub: str, applied: Json, manager: str, *, is_dry: bool) -> Json:
        known = self.objects.get(key)
        uid = applied["metadata"].get("uid")
        if known is None and (uid or sub):
            raise Refused(409 if uid and not sub else 404, "Conflict" if uid and not sub else "NotFound")
        if known is not None and uid not in (None, known["metadata"]["uid"]):
            raise Refused(409, "Conflict")
        version = applied["metadata"].get("resourceVersion")
        if known is not None and version not in (None, known["metadata"]["resourceVersion"]):
            raise Refused(409, "Conflict")
        wanted = {
            path: value
            for path, value in leaves(applied).items()
            if path[0] not in ("apiVersion", "kind") and not (path[0] == "metadata" and path[1] in IDENTITY)
        }
        body = copy.deepcopy(known) if known is not None else {**copy.deepcopy(applied)}
        owners = copy.deepcopy(self.owners.get(key, {}))
        mine = f"{manager}{'/' + sub if sub else ''}"
        for path in owners.get(mine, set()) - wanted.keys():
            if not any(path in paths for other, paths in owners.items() if other != mine):
                _unset(body, path)
        for path, value in wanted.items():
            _set(body, path, value)
        if is_dry:
            return body
        self.owners[key] = {**owners, mine: set(wanted)}
        return self.put(key[0], body) if known is None else self._store(key, body)


def _merged(document: Json, patch: Json) -> Json:
    merged = copy.deepcopy(document)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = _merged(merged.get(name) or {}, value)
        else:
            merged[name] = value
    return merged


def _parsed(path: str) -> tuple[str, str, str, str]:
    """Plural, namespace, name and subresource of a path; empty what it does not have."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    plural, name, sub = (*parts, "", "")[:3]
    return plural, namespace, name, sub


def _has_label(body: Json, term: str) -> bool:
    """Whether an object has a label, has it with a value, or has it not."""
    name, is_value, value = term.partition("=")
    labels = body["metadata"].get("labels", {})
    if name.startswith("!"):
        return name[1:] not in labels
    return name in labels and (not is_value or labels[name] == value)


def _has_field(body: Json, term: str) -> bool:
    """Whether a field of an object has a value."""
    path, _, value = term.partition("=")
    return leaves(body).get(tuple(path.split("."))) == value


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
