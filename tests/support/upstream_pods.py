"""Small pods over real HTTP: they publish routes and answer as told, well or badly."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Reply = Callable[[web.Request, "PodDouble", bytes], Awaitable[web.StreamResponse]]
REVISION = "aaaaaaaaaaaa"


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class PodDouble:
    """What the tests turn."""

    name: str
    port: int = 0
    tiers: dict[tuple[str, str], str] = field(default_factory=dict)
    passing: set[tuple[str, str]] = field(default_factory=set)
    """What of these is not stable here."""
    ready: bool = True
    draining: bool = False
    num_running: int = 0
    num_waiting: int = 0
    boot: str = "boot-1"
    generation: int = 1
    publishes: bool = True
    """Whether /v1/routes answers."""
    reply: Reply | None = None
    """How generation requests are answered; None: as a pod that is well."""
    received: list[Received] = field(default_factory=list)
    num_polls: int = 0
    num_whole: int = 0
    """Answers that named all adapters."""
    leaves_out: bool = True
    """Whether it leaves out what whoever asks has, or had; pods of version 0.1.0 do not."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of its routes document."""
    num_cancelled: int = 0
    num_written: int = 0
    """Events of streams that the network took."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a generation request has ended, however."""
    stop: Callable[[], Awaitable[None]] = field(default=None)  # type: ignore[assignment]
    """Ends the process, so to speak: its port refuses from then on."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _said: dict[tuple[str, int], dict[tuple[str, str], str]] = field(default_factory=dict)
    """Boot and generation -> tiers."""

    @property
    def uid(self) -> str:
        return f"uid-{self.name}"

    def changed(self) -> None:
        """Publish what was turned."""
        self.generation += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def hold(self, adapter: str, tier: str = "Device", revision: str = REVISION) -> None:
        self.tiers[adapter, revision] = tier
        self.changed()

    def document(self) -> dict[str, Any]:
        adapters = [self._entry(n, r, tier) for (n, r), tier in self.tiers.items()]
        return {
            "bootId": self.boot,
            "generation": self.generation,
            "base": "numerals",
            "ready": self.ready,
            "draining": self.draining,
            "maxModelLen": 256,
            "adapters": adapters,
            "numRunning": self.num_running,
            "numWaiting": self.num_waiting,
        }

    async def routes(self, request: web.Request) -> web.Response:
        self.num_polls += 1
        if not self.publishes:
            return web.Response(status=500)
        if "after" in request.query and int(request.query["after"]) >= self.generation:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), float(request.query["wait_seconds"]))
        document = self.document()
        known = (request.query.get("boot_id"), request.query.get("after")) == (self.boot, str(self.generation))
        if known and self.leaves_out:
            del document["adapters"]
        then = self._said.get((request.query.get("boot_id", ""), int(request.query.get("since", 0))))
        if not known and self.leaves_out and then is not None and self.boot == request.query["boot_id"]:
            document |= self._difference(int(request.query["since"]), then)
        self._said[self.boot, self.generation] = dict(self.tiers)
        self.num_whole += "adapters" in document and "since" not in document
        return web.json_response({**document, **self.extra})

    def _difference(self, since: int, then: dict[tuple[str, str], str]) -> dict[str, Any]:
        changed = [(n, r, tier) for (n, r), tier in self.tiers.items() if then.get((n, r)) != tier]
        return {
            "since": since,
            "adapters": [self._entry(n, r, tier) for n, r, tier in changed],
            "removed": [{"name": n, "revision": r} for n, r in then.keys() - self.tiers.keys()],
        }

    def _entry(self, name: str, revision: str, tier: str) -> dict[str, Any]:
        return {"name": name, "revision": revision, "stable": (name, revision) not in self.passing, "tier": tier}

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.received.append(Received(request.path_qs, {k.lower(): v for k, v in request.headers.items()}, body))
        try:
            return await (self.reply or well)(request, self, body)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.ended.set()


async def well(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
    """Answer at once with what was asked."""
    headers = {"x-lorafleet-pod": pod.name, "x-request-id": request.headers["x-request-id"]}
    if revision := request.headers.get("x-lorafleet-revision"):
        headers |= {"x-lorafleet-revision": revision, "x-lorafleet-adapter": asked_adapter(body)}
    return web.json_response({"pod": pod.name}, headers=headers)


def asked_adapter(body: bytes) -> str:
    """What a body names, in the words of OpenAI's API or of LoRAX's."""
    asked: dict[str, Any] = json.loads(body)
    return str(asked["model"] if "model" in asked else asked["parameters"]["adapter_id"])


def refusing_in_lorax(status: int, code: str, kind: str) -> Reply:
    """Refuse in LoRAX's shape."""

    async def reply(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        error = {"error": f"{pod.name} says {code}", "error_type": kind, "code": code}
        return web.json_response(error, status=status, headers={"x-lorafleet-pod": pod.name})

    return reply


def refusing(status: int, code: str, retry_after: str | None = None) -> Reply:
    """Refuse in OpenAI's shape."""

    async def reply(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        error = {"message": f"{pod.name} says {code}", "type": "x", "param": None, "code": code}
        headers = {"x-lorafleet-pod": pod.name, **({"retry-after": retry_after} if retry_after else {})}
        return web.json_response({"error": error}, status=status, headers=headers)

    return reply


async def breaking(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
    """Die before the answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def streaming(
    *events: str, breaks: bool = False, pause: asyncio.Event | None = None, headers: dict[str, str] | None = None
) -> Reply:
    """Stream events; wait for `pause` after the first, break off after the last."""

    async def reply(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        said = {"content-type": "text/event-stream", "x-lorafleet-pod": pod.name, **(headers or {})}
        response = web.StreamResponse(headers=said)
        await response.prepare(request)
        for index, event in enumerate(events):
            await response.write(event.encode())
            pod.num_written += 1
            if index == 0 and pause is not None:
                await pause.wait()
        if breaks:
            assert request.transport is not None
            # what was written has to be on its way before the connection breaks
            await asyncio.sleep(0.05)
            request.transport.abort()
        return response

    return reply


@asynccontextmanager
async def pod_double(name: str) -> AsyncIterator[PodDouble]:
    """Run one."""
    pod = PodDouble(name)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_get("/v1/routes", pod.routes)
    for path in ("/v1/{path:.*}", "/tokenize", "/detokenize", "/", "/generate", "/generate_stream", "/embed"):
        app.router.add_post(path, pod.generate)
    app.router.add_get("/info", pod.generate)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pod.port = runner.addresses[0][1]
    pod.stop = runner.cleanup
    try:
        yield pod
    finally:
        await runner.cleanup()
