"""A small API server over real HTTP: lists with pages and selectors, watches with bookmarks, and the faults they have."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

Json = dict[str, Any]
BORN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Change:
    version: int
    type: str
    plural: str
    body: Json


@dataclass
class KubeDouble:
    """What the tests turn: objects, and what goes wrong."""

    objects: dict[tuple[str, str, str], Json] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    version: int = 100
    oldest: int = 0
    """Watches from before this get 410."""
    is_down: bool = False
    holds_events: bool = False
    """Watches say nothing although things happen."""
    refuses: dict[str, int] = field(default_factory=dict)
    """Plural, or namespace/plural -> status."""
    requests: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    num_watching: int = 0
    port: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _cut: int = 0
    _ended: int = 0
    _uids: itertools.count = field(default_factory=lambda: itertools.count(1))

    @property
    def configuration(self) -> Configuration:
        return Configuration(host=f"http://127.0.0.1:{self.port}")

    def put(self, plural: str, namespace: str, name: str, *, labels: Json | None = None, **body: Any) -> Json:
        """Create an object, or change it: given top-level fields replace the old ones."""
        key = (plural, namespace, name)
        old = self.objects.get(key)
        self.version += 1
        number = next(self._uids) if old is None else 0
        metadata = (
            dict(old["metadata"]) if old else {"name": name, "namespace": namespace, "uid": f"uid-{name}-{number}"}
        )
        metadata.setdefault("creationTimestamp", (BORN + timedelta(seconds=number)).isoformat().replace("+00:00", "Z"))
        metadata["resourceVersion"] = str(self.version)
        metadata |= body.pop("metadata", {})
        if labels is not None:
            metadata["labels"] = labels
        self.objects[key] = {**(old or {}), **body, "metadata": metadata}
        self._happened(Change(self.version, "MODIFIED" if old else "ADDED", plural, self.objects[key]))
        return self.objects[key]

    def delete(self, plural: str, namespace: str, name: str, *, silently: bool = False) -> None:
        """Delete an object; `silently`: no watch ever tells of it."""
        self.version += 1
        body = self.objects.pop((plural, namespace, name))
        body = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        if not silently:
            self._happened(Change(self.version, "DELETED", plural, body))

    def bookmark(self) -> None:
        """Tell all watches how far they are."""
        self.version += 1
        self._happened(Change(self.version, "BOOKMARK", "", {"metadata": {"resourceVersion": str(self.version)}}))

    def expire(self) -> None:
        """What has happened so far is too old to be watched from."""
        self.version += 1
        self.oldest = self.version
        self.end_watches()

    def cut_watches(self) -> None:
        """Break the connections of all watches."""
        self._cut += 1
        self._wake()

    def end_watches(self) -> None:
        """End all watches as the API server does from time to time."""
        self._ended += 1
        self._wake()

    def release_events(self) -> None:
        self.holds_events = False
        self._wake()

    def num_requests(self, *parts: str) -> int:
        return sum(all(part in request for part in parts) for request in self.requests)

    def _happened(self, change: Change) -> None:
        self.history.append(change)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        self.tokens.append(request.headers.get("authorization", ""))
        plural, namespace = _split(request.path)
        if self.is_down:
            return _status(503, "ServiceUnavailable", "down")
        for refused in {plural, f"{namespace}/{plural}"} & self.refuses.keys():
            return _status(self.refuses[refused], "Forbidden", f"{plural} is forbidden")
        selected = Selected(plural, namespace, dict(request.query))
        if request.query.get("watch") == "true":
            return await self._watch(request, selected)
        return self._list(selected)

    def _list(self, selected: "Selected") -> web.Response:
        items = [body for (plural, _, _), body in sorted(self.objects.items()) if selected.has(plural, body)]
        start, limit = int(selected.query.get("continue", "0")), int(selected.query.get("limit", "500"))
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return web.json_response({"metadata": metadata, "items": items[start : start + limit]})

    async def _watch(self, request: web.Request, selected: "Selected") -> web.StreamResponse:
        since = int(selected.query["resourceVersion"])
        assert selected.query["allowWatchBookmarks"] == "true"
        response = web.StreamResponse()
        await response.prepare(request)
        cut, ended = self._cut, self._ended
        self.num_watching += 1
        try:
            while True:
                if self._cut != cut:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if since < self.oldest:
                    await response.write(_line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}))
                    return response
                changed = self._changed
                for change in [] if self.holds_events else [c for c in self.history if c.version > since]:
                    since = change.version
                    if change.type == "BOOKMARK" or selected.has(change.plural, change.body):
                        await response.write(_line(change.type, change.body))
                if self._ended != ended:
                    return response
                await changed.wait()
        finally:
            self.num_watching -= 1


@dataclass(frozen=True)
class Selected:
    plural: str
    namespace: str
    query: dict[str, str]

    def has(self, plural: str, body: Json) -> bool:
        if plural != self.plural or self.namespace not in ("", body["metadata"]["namespace"]):
            return False
        labels = body["metadata"].get("labels", {})
        if (wanted := self.query.get("labelSelector")) and not all(labels.get(k) == v for k, v in _pairs(wanted)):
            return False
        if wanted := self.query.get("fieldSelector"):
            return all(_at(body, path) == value for path, value in _pairs(wanted))
        return True


def _pairs(selector: str) -> list[tuple[str, str]]:
    return [(part.partition("=")[0], part.partition("=")[2]) for part in selector.split(",")]


def _at(body: Json, path: str) -> Any:
    value: Any = body
    for part in path.split("."):
        value = (value or {}).get(part)
    return value


def _split(path: str) -> tuple[str, str]:
    parts = path.strip("/").split("/")
    return parts[-1], parts[-2] if "namespaces" in parts else ""


def _line(kind: str, body: Json) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def _status(code: int, reason: str, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": message}, status=code)


@asynccontextmanager
async def kube_double() -> AsyncIterator[KubeDouble]:
    """Run one."""
    double = KubeDouble()
    app = web.Application()
    app.router.add_get("/{path:.*}", double.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    double.port = runner.addresses[0][1]
    try:
        yield double
    finally:
        double.end_watches()
        await runner.cleanup()
