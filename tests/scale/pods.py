"""Pods without an engine, many in one process: each listens on its own loopback address and keeps the contracts of admin and routes.

`python -m scale.pods --control-port N` runs them; who measures starts and stops pods, and asks what they were told when, through
the control port. A pod that was told to keep an adapter has it at once: what is measured is the control plane. Documents are
joined from pieces that all pods share, so that the pods take as little of the machine as may be from what is measured.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from support.fake_pod import Library, Refused

from lorafleet_contract import admin
from lorafleet_contract.base import Wire
from lorafleet_contract.names import ADMIN_PORT, HEADER_ADAPTER, HEADER_POD, HEADER_REVISION, PUBLIC_PORT, revision_of
from lorafleet_contract.reasons import Reason
from lorafleet_contract.routes import RouteAdapter, Routes

RANK_PAGE = 8
MAX_RANK = 64
Key = tuple[str, str]
"""Served name and revision."""
Taken = tuple[float, str, str, str, str]
"""Monotonic seconds, address of the pod, name, revision, residency or `Removed`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One revision as it stands in documents; the same for all pods that were told the same."""

    entry: admin.CatalogueEntry
    observed: bytes
    routed: bytes


class Pieces:
    """Pieces by what they say."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Piece] = {}

    def of(self, entry: admin.CatalogueEntry) -> Piece:
        key = (entry.name, entry.digest, entry.residency, entry.pinned, entry.stable)
        if key not in self._known:
            self._known[key] = _piece(entry)
        return self._known[key]


def _piece(entry: admin.CatalogueEntry) -> Piece:
    is_resident = entry.residency is admin.Residency.RESIDENT
    facts, revision = entry.source.facts, revision_of(entry.digest)
    tier = admin.Tier.DEVICE if is_resident else admin.Tier.DISK
    observed = admin.ObservedAdapter(
        name=entry.name,
        revision=revision,
        digest=entry.digest,
        owner=admin.Owner.OPERATOR,
        residency=entry.residency,
        pinned=entry.pinned,
        stable=entry.stable,
        state=admin.AdapterState.READY,
        tier=tier,
        rank=facts.rank,
        rank_pages=-(-facts.rank // RANK_PAGE),
        size_bytes=facts.size_bytes,
        num_tokens=0,
    )
    routed = RouteAdapter(name=entry.name, revision=revision, stable=entry.stable, tier=tier)
    return Piece(entry, *(one.model_dump_json(by_alias=True, exclude_none=True).encode() for one in (observed, routed)))


@dataclass
class ScalePod:
    """One pod."""

    address: str
    token_sha256: str
    slots: int
    pieces: Pieces
    taken: list[Taken]
    boot_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    generation: int = 1
    fence: int = 0
    catalogue_generation: int = 0
    num_writes: int = 0
    entries: dict[Key, Piece] = field(default_factory=dict)
    _changed_at: dict[Key, int] = field(default_factory=dict)
    """The first generation that had an entry as it is, or has none any more; in the order of generations."""
    _revisions: dict[str, set[str]] = field(default_factory=dict)
    _documents: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _runners: list[web.AppRunner] = field(default_factory=list)
    _library: Library = field(default_factory=Library)

    @property
    def is_ready(self) -> bool:
        """Its first catalogue has come: all of it is there at once."""
        return self.fence > 0

    def take(self, write: admin.CatalogueWrite) -> None:
        """One catalogue write.

        Raises:
            Refused: it is older than one that was taken.
        """
        if (write.fence, write.generation) < (self.fence, self.catalogue_generation):
            raise Refused(409, admin.AdminError(reason=Reason.STALE_FENCE, message="older than what was taken"))
        self.fence, self.catalogue_generation = write.fence, write.generation
        self.num_writes += 1
        self.generation += 1
        now = time.monotonic()
        for entry in write.adapters:
            revision = revision_of(entry.digest)
            if entry.stable:
                self._unsettle(entry.name, revision)
            self._put(entry.name, revision, entry)
            self._revisions.setdefault(entry.name, set()).add(revision)
            self.taken.append((now, self.address, entry.name, revision, entry.residency))
        for ref in write.removed:
            if self.entries.pop((ref.name, ref.revision), None) is not None:
                self._note(ref.name, ref.revision)
                self._revisions[ref.name].discard(ref.revision)
                self.taken.append((now, self.address, ref.name, ref.revision, "Removed"))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _put(self, name: str, revision: str, entry: admin.CatalogueEntry) -> None:
        piece = self.pieces.of(entry)
        if self.entries.get((name, revision)) is not piece:
            self.entries[name, revision] = piece
            self._note(name, revision)

    def _note(self, name: str, revision: str) -> None:
        self._changed_at.pop((name, revision), None)
        self._changed_at[name, revision] = self.generation

    def _unsettle(self, name: str, stable: str) -> None:
        for revision in self._revisions.get(name, ()):
            other = self.entries[name, revision]
            if revision != stable and other.entry.stable:
                self._put(name, revision, other.entry.model_copy(update={"stable": False}))

    def state(self, since: int | None = None) -> bytes:
        """The document of the admin port, or what of it has changed since a generation."""
        if since is None:
            return self._whole("state", self._state_head, [piece.observed for piece in self.entries.values()])
        changed, removed = self._since(since)
        head = admin.PodDifference(**dict(self._state_head()), since=since, removed=removed)
        return _joined(head, [self.entries[key].observed for key in changed])

    def routes(self, since: int | None = None) -> bytes:
        """The document of the public port, or what of it has changed since a generation."""
        if since is None:
            return self._whole("routes", self._routes_head, [piece.routed for piece in self.entries.values()])
        changed, removed = self._since(since)
        head = self._routes_head().model_copy(update={"since": since, "removed": removed})
        return _joined(head, [self.entries[key].routed for key in changed])

    def _since(self, generation: int) -> tuple[list[Key], list[admin.RevisionRef]]:
        """What of a generation is another, and what is gone."""
        changed = []
        for key in reversed(self._changed_at):
            if self._changed_at[key] <= generation:
                break
            changed.append(key)
        gone = [admin.RevisionRef(name=name, revision=r) for name, r in changed if (name, r) not in self.entries]
        return [key for key in changed if key in self.entries], gone

    def _whole(self, name: str, head: Any, pieces: list[bytes]) -> bytes:
        known = self._documents.get(name)
        if known is None or known[0] != self.generation:
            known = self._documents[name] = (self.generation, _joined(head(), pieces))
        return known[1]

    def _state_head(self) -> admin.PodState:
        resident = [p.entry for p in self.entries.values() if p.entry.residency is admin.Residency.RESIDENT]
        return admin.PodState(
            boot_id=self.boot_id,
            generation=self.generation,
            fence=self.fence,
            catalogue_generation=self.catalogue_generation,
            ready=self.is_ready,
            draining=False,
            base=admin.BaseFacts(served_name="base", max_model_len=2048, dtype="float32", device="cpu"),
            budgets=admin.Budgets(
                max_resident_adapters=self.slots,
                max_rank=MAX_RANK,
                rank_page=RANK_PAGE,
                total_rank_pages=self.slots * MAX_RANK // RANK_PAGE,
                used_rank_pages=sum(-(-entry.source.facts.rank // RANK_PAGE) for entry in resident),
                host_cache_bytes=1 << 30,
                host_used_bytes=0,
                disk_cache_bytes=1 << 30,
                disk_used_bytes=0,
            ),
            adapters=[],
        )

    def _routes_head(self, *, is_known: bool = False) -> Routes:
        return Routes(
            boot_id=self.boot_id,
            generation=self.generation,
            base="base",
            ready=self.is_ready,
            draining=False,
            max_model_len=2048,
            adapters=None if is_known else [],
        )

    async def listen(self) -> None:
        """Open both ports."""
        admin_app, public_app = web.Application(client_max_size=1 << 26, middlewares=[self._guard]), web.Application()
        admin_app.router.add_get("/admin/v1/state", self._get_state)
        admin_app.router.add_put("/admin/v1/adapters", self._put_adapters)
        admin_app.router.add_post("/admin/v1/resolve", self._post_resolve)
        public_app.router.add_get("/v1/routes", self._get_routes)
        public_app.router.add_post("/v1/chat/completions", self._post_chat)
        for app, port in ((admin_app, ADMIN_PORT), (public_app, PUBLIC_PORT)):
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, self.address, port, reuse_address=True).start()
            self._runners.append(runner)

    async def close(self) -> None:
        """Close both ports."""
        self.generation += 1
        self._changed.set()
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            if hashlib.sha256(given.encode()).hexdigest() != self.token_sha256:
                raise Refused(401, admin.AdminError(reason=Reason.UNAUTHORIZED, message="a wrong token"))
            answer: web.StreamResponse = await handler(request)
            return answer
        except Refused as refusal:
            return _answer(_bytes(refusal.error), refusal.status)

    async def _wait(self, request: web.Request) -> bool:
        """Wait as the query says; return whether whoever asks knows what there is."""
        after = request.query.get("after")
        if after is not None and self.generation <= int(after):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), float(request.query["wait_seconds"]))
        return (request.query.get("boot_id"), after) == (self.boot_id, str(self.generation))

    async def _get_state(self, request: web.Request) -> web.Response:
        if await self._wait(request):
            return web.Response(status=304)
        return _answer(self.state(self._asked_since(request)))

    async def _get_routes(self, request: web.Request) -> web.Response:
        if await self._wait(request):
            return _answer(_bytes(self._routes_head(is_known=True)))
        return _answer(self.routes(self._asked_since(request)))

    async def _put_adapters(self, request: web.Request) -> web.Response:
        self.take(admin.CatalogueWrite.model_validate_json(await request.read()))
        return _answer(self.state(self._asked_since(request)))

    def _asked_since(self, request: web.Request) -> int | None:
        """The generation of this boot to which a difference is asked for."""
        since = request.query.get("since")
        return int(since) if since is not None and request.query.get("boot_id") == self.boot_id else None

    async def _post_resolve(self, request: web.Request) -> web.Response:
        question = admin.ResolveRequest.model_validate_json(await request.read())
        return _answer(_bytes(admin.ResolveAnswer(resolved=self._library.resolve(question.source))))

    async def _post_chat(self, request: web.Request) -> web.Response:
        model = json.loads(await request.read())["model"]
        revision = request.headers.get(HEADER_REVISION, "")
        headers = {HEADER_POD: self.address, HEADER_ADAPTER: model, HEADER_REVISION: revision}
        return web.json_response({"model": model}, headers=headers)


def _bytes(document: Wire) -> bytes:
    return document.model_dump_json(by_alias=True, exclude_none=True).encode()


def _joined(head: Wire, pieces: list[bytes]) -> bytes:
    """A document with its adapters."""
    return _bytes(head).replace(b'"adapters":[]', b'"adapters":[' + b",".join(pieces) + b"]")


def _answer(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


class Control:
    """What who measures asks of the process."""

    def __init__(self) -> None:
        self._pods: dict[str, ScalePod] = {}
        self._pieces = Pieces()
        self._taken: list[Taken] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/pods", self._start)
        app.router.add_delete("/pods/{address}", self._stop)
        app.router.add_get("/pods", self._list)
        app.router.add_get("/taken", self._get_taken)
        return app

    async def _start(self, request: web.Request) -> web.Response:
        given = await request.json()
        for address in given["addresses"]:
            pod = ScalePod(address, given["token_sha256"], given["slots"], self._pieces, self._taken)
            await pod.listen()
            self._pods[address] = pod
        return web.json_response({})

    async def _stop(self, request: web.Request) -> web.Response:
        await self._pods.pop(request.match_info["address"]).close()
        return web.json_response({})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                address: {"ready": pod.is_ready, "entries": len(pod.entries), "writes": pod.num_writes}
                for address, pod in self._pods.items()
            }
        )

    async def _get_taken(self, request: web.Request) -> web.Response:
        return web.json_response(self._taken[int(request.query["from"]) :])


async def _serve(port: int) -> None:
    runner = web.AppRunner(Control().app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args().control_port))


if __name__ == "__main__":
    main()
