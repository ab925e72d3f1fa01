"""Bases of several tenants share one operator: what the pods of one do, or do not do, costs the others nothing."""

import asyncio
import contextlib
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from aiohttp import web
from support import operator_views as v
from support.simulated_fleet import until

from lorafleet_contract.admin import CatalogueWrite, PodState, ResolveAnswer, ResolveRequest
from lorafleet_contract.sources import SourceRef
from lorafleet_operator.act import execute, resolve
from lorafleet_operator.act.admin_client import MAX_ANSWER_BYTES, AdminClient
from lorafleet_operator.act.execute import Executor
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.act.resolve import Resolver
from lorafleet_operator.decide.diff import PodChange
from lorafleet_operator.decide.intent import ResolveKey
from lorafleet_operator.errors import PodUnreachable

HANGING, OTHER = ("team", "hangs"), ("team", "other")


class Pods:
    """An admin client: pods at addresses that begin with `10.` take what they are asked and never answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def _hear(self, ip: str) -> None:
        self.asked.append(ip)
        if ip.startswith("10."):
            await asyncio.Event().wait()

    async def write(self, ip: str, token: str, write: CatalogueWrite, known: PodState | None = None) -> PodState:
        await self._hear(ip)
        state = v.seen(pod=v.pod()).state
        assert state is not None
        return state

    async def resolve(self, ip: str, token: str, request: ResolveRequest) -> ResolveAnswer:
        await self._hear(ip)
        return ResolveAnswer(resolved=v.artifact(request.source.path or "").resolved)


def question(name: str) -> ResolveKey:
    return ResolveKey(f"uid-{name}", SourceRef(name="models", path=name), None)


async def test_resolutions_that_hang_keep_no_other_base_from_its_own() -> None:
    pods = Pods()
    resolver = Resolver(pods, lambda *_: None, lambda *_: None)
    num_asked = resolve.MAX_PARALLEL + 3
    resolver.want(HANGING, {question(f"a{number}"): ["10.0.0.1"] for number in range(num_asked)}, "token")
    await until("as many as may be", lambda: len(pods.asked) == resolve.MAX_PARALLEL)
    resolver.want(OTHER, {question("b"): ["127.0.0.1"]}, "token")
    await until("answered", lambda: resolver.answers().keys() == {question("b")})
    assert len(pods.asked) == resolve.MAX_PARALLEL + 1
    assert resolver.num_running(HANGING) == num_asked
    await resolver.close()


def change(name: str, ip: str) -> PodChange:
    return PodChange(v.seen(pod=replace(v.pod(name), ip=ip)), (), (), "its first catalogue")


async def test_pods_that_hang_keep_no_other_base_from_being_told() -> None:
    pods = Pods()
    executor = Executor(pods, PodWatches(pods, lambda _: None), lambda *_: None)
    num_told = execute.MAX_PARALLEL + 3
    hanging = [change(f"p{number}", f"10.0.0.{number}") for number in range(num_told)]
    telling = asyncio.create_task(executor.execute(HANGING, hanging, "token", fence=1))
    await until("as many as may be", lambda: len(pods.asked) == execute.MAX_PARALLEL)
    told = await executor.execute(OTHER, [change("q", "127.0.0.1")], "token", fence=1)
    assert (told.num_taken, told.num_pending) == (1, 0)
    assert not telling.done()
    assert (await telling).num_pending == num_told
    assert len(pods.asked) == execute.MAX_PARALLEL + 1
    await executor.close()


async def test_an_answer_without_end_is_not_gathered() -> None:
    """Pods run images of their owners, and one operator reads what all of them say."""
    num_sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal num_sent
        response = web.StreamResponse()
        await response.prepare(request)
        while num_sent < 8 * MAX_ANSWER_BYTES:
            await response.write(bytes(1 << 20))
            num_sent += 1 << 20
        return response

    async with asking(answer) as client:
        with pytest.raises(PodUnreachable, match=f"longer than {MAX_ANSWER_BYTES} bytes"):
            await client.state("127.0.0.1", "token")
    assert num_sent < 4 * MAX_ANSWER_BYTES


async def test_an_answer_that_unpacks_to_much_is_not_unpacked() -> None:
    packed = gzip.compress(bytes(4 * MAX_ANSWER_BYTES))

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["accept-encoding"] == "identity"
        return web.Response(body=packed, headers={"content-encoding": "gzip", "content-type": "application/json"})

    async with asking(answer) as client:
        tracemalloc.start()
        with pytest.raises(PodUnreachable, match="its answer is no PodState"):
            await client.state("127.0.0.1", "token")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MAX_ANSWER_BYTES


@contextlib.asynccontextmanager
async def asking(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[AdminClient]:
    """Yield a client of a pod that answers so."""
    app = web.Application()
    app.router.add_get("/admin/v1/state", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = AdminClient(port=runner.addresses[0][1])
    yield client
    await client.close()
    await runner.cleanup()
