"""What the leading operator does: everything listed, then events, passes and resyncs as long as the Lease is held."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from lorafleet_common.clock import WallClock, utc_now
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeError, KubeNotFound
from lorafleet_common.supervise import end, to_its_end
from lorafleet_operator.act import events
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.act.apply import Applier
from lorafleet_operator.act.autoscaling import Autoscaling
from lorafleet_operator.act.execute import Executor
from lorafleet_operator.act.fence import Fences
from lorafleet_operator.act.gateway_watch import GatewayWatch
from lorafleet_operator.act.judging import Gateways, Measures
from lorafleet_operator.act.kept_names import KeptNames
from lorafleet_operator.act.leaving import Leaving
from lorafleet_operator.act.operators import Operators
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.act.prometheus import Prometheus
from lorafleet_operator.act.reconcile import Reconciler
from lorafleet_operator.act.resolve import Resolver
from lorafleet_operator.act.status_writer import StatusWriter
from lorafleet_operator.act.strays import Strays
from lorafleet_operator.act.tools import Tools
from lorafleet_operator.act.verify import Verifier
from lorafleet_operator.act.waiting_pods import WaitingPods
from lorafleet_operator.cluster.handlers import EventSink
from lorafleet_operator.cluster.keys import admin_key
from lorafleet_operator.cluster.lease import GROUP_VERSION as LEASE_VERSION
from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.cluster.scope import Change, Scope
from lorafleet_operator.cluster.store import Store
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import WatchEnded
from lorafleet_operator.process.health import Health
from lorafleet_operator.process.queue import WorkQueue
from lorafleet_operator.process.resync import Resync
from lorafleet_operator.process.workers import work

logger = logging.getLogger(__name__)
T = TypeVar("T")
Watching = Callable[[EventSink, Scope], Coroutine[Any, Any, None]]
Wake = Callable[..., None]
"""Have a pass over a base, by its key: soon, or in some seconds."""
EVENT_DELAY_SECONDS: Final = 0.03
"""Events that come together make one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What converging works with, made and closed by `lead`."""

    config: OperatorConfig
    api: KubeApi
    lease: Lease
    client: AdminClient
    gateways: Gateways
    measures: Measures
    holds: GatewayWatch
    """Of requests that gateways hold for want of a pod."""
    now: WallClock


async def lead(
    config: OperatorConfig,
    api: KubeApi,
    lease: Lease,
    health: Health,
    watching: Watching,
    *,
    client: Callable[[], AdminClient] = AdminClient,
    gateways: Gateways | None = None,
    measures: Measures | None = None,
    now: WallClock = utc_now,
) -> None:
    """Make the cluster what its resources say as long as the Lease is held; `watching` tells what happens between lists.

    Raises:
        OperatorError: something essential ended.
    """
    admin = client()
    own = GatewayWatch(api, namespace=config.namespace, selector=config.gateway_selector, port=config.gateway_port)
    prometheus = Prometheus(
        config.prometheus_url, token_file=config.prometheus_token_file, ca_file=config.prometheus_ca_file
    )
    parts = _Parts(
        config=config,
        api=api,
        lease=lease,
        client=admin,
        gateways=gateways or own,
        measures=measures or prometheus,
        holds=own,
        now=now,
    )
    try:
        await _all_or_none(lease.hold(), _converge(parts, health, watching))
    finally:
        # as one: whoever is cancelled while the first is closed still closes the others
        await to_its_end(_together(prometheus.close(), own.close(), admin.close()))


async def _together(*closing: Awaitable[None]) -> None:
    await asyncio.gather(*closing)


async def _converge(parts: _Parts, health: Health, watching: Watching) -> None:
    config, api, lease = parts.config, parts.api, parts.lease
    scope = Scope(config.watch_namespaces)
    store, queue = Store(scope.namespaces), WorkQueue[BaseKey]()

    def wake(key: BaseKey, delay_seconds: float = EVENT_DELAY_SECONDS) -> None:
        queue.add_after(key, delay_seconds)

    key = await _patiently(lambda: admin_key(api, namespace=config.namespace, name=config.key_secret))
    writes = Writes(api, lambda: lease.is_held)
    tools = _tools(parts, key, store, writes=writes, wake=wake)
    names = KeptNames(api, writes, store, namespace=config.namespace, name=config.names, now=parts.now)
    strays = Strays(api, scope, tools.operators, tools.writer)

    async def tell(change: Change) -> None:
        await _tell_of_namespace(change, writes, lease)

    resync = Resync(api, scope, seconds=config.resync_seconds, store=store, applier=tools.applier, wake=wake, tell=tell)
    health.resync = resync
    try:
        await _list(names, resync)
        await strays.look()
        await names.keep()
        logger.info("everything is listed; converging")
        reconciler = Reconciler(tools)
        workers = (work(queue, reconciler) for _ in range(config.workers))
        await _all_or_none(
            watching(EventSink(store, wake), scope),
            resync.for_ever(),
            strays.for_ever(config.resync_seconds),
            names.for_ever(config.resync_seconds),
            *workers,
        )
    finally:
        health.resync = None
        queue.close()
        await to_its_end(tools.close())


async def _list(names: KeptNames, resync: Resync) -> None:
    """Read everything once before anything is done.

    Raises:
        WatchEnded: the custom resources are unknown.
        KubeError: refused for good.
    """
    try:
        await _patiently(names.load)
        await _patiently(resync.once)
    except KubeNotFound as error:
        raise WatchEnded(f"the custom resource definitions are not installed: {error}") from error


def _tools(parts: _Parts, key: bytes, store: Store, *, writes: Writes, wake: Wake) -> Tools:
    """Return what passes work with; whoever has it closes it."""
    client, lease, now = parts.client, parts.lease, parts.now
    watches = PodWatches(client, wake)
    writer = StatusWriter(writes, store, reporter=lease.identity, wake=wake, now=now)
    return Tools(
        key=key,
        lease=lease,
        store=store,
        applier=Applier(writes, engine_image=parts.config.engine_image, key=key),
        leaving=Leaving(writes, client),
        autoscaling=Autoscaling(client, parts.holds, wake, now=now),
        watches=watches,
        executor=Executor(client, watches, wake),
        resolver=Resolver(client, wake, watches.doubt_address),
        verifier=Verifier(client, wake),
        fences=Fences(lease),
        waiting_pods=WaitingPods(parts.api, client),
        gateways=parts.gateways,
        measures=parts.measures,
        operators=Operators(parts.api, writer, me=lease.name),
        writer=writer,
        now=now,
    )


async def _tell_of_namespace(change: Change, writes: Writes, lease: Lease) -> None:
    """Post an Event about a namespace that is refused or served again, on the Lease: what is ours and always there."""
    namespace, refusal = change
    if refusal is None:
        event = ("Normal", "NamespaceServed", f"namespace {namespace} is served again")
    else:
        event = ("Warning", "NamespaceRefused", f"namespace {namespace} is not served: {refusal}")
    if lease.is_held:
        body = events.body_of("Lease", lease.metadata, event, reporter=lease.identity, api_version=LEASE_VERSION)
        await events.post(writes, body)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call while the API server is away.

    Raises:
        KubeError: refused for good.
    """
    while True:
        try:
            return await call()
        except KubeError as error:
            if not error.retryable:
                raise
            logger.warning("the API server is away: %s", error)
            await asyncio.sleep(1)


async def _all_or_none(*essentials: Coroutine[Any, Any, None]) -> None:
    """Run things of which none may end; when one does, end the others and pass its error on."""
    tasks = [asyncio.create_task(essential) for essential in essentials]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise WatchEnded("something essential ended")
    finally:
        await end(tasks)
