"""The operator's life: ports open, Lease taken, everything listed, then events, passes and resyncs until the end."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from lorafleet_common.clock import WallClock, utc_now
from lorafleet_common.collector import pass_over_what_is_there
from lorafleet_common.kube.client import KubeApi, connect
from lorafleet_common.kube.errors import KubeError, KubeNotFound
from lorafleet_common.supervise import end, to_its_end
from lorafleet_operator import metrics
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
from lorafleet_operator.act.pod_events import PodEvents
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.act.prometheus import Prometheus
from lorafleet_operator.act.reconcile import Reconciler
from lorafleet_operator.act.resolve import Resolver
from lorafleet_operator.act.status_writer import StatusWriter
from lorafleet_operator.act.strays import Strays
from lorafleet_operator.act.tools import Tools
from lorafleet_operator.act.verify import Verifier
from lorafleet_operator.cluster.freshness import Freshness
from lorafleet_operator.cluster.handlers import EventSink, watch
from lorafleet_operator.cluster.keys import admin_key
from lorafleet_operator.cluster.lease import GROUP_VERSION as LEASE_VERSION
from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.cluster.scope import Change, Scope
from lorafleet_operator.cluster.store import Store
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import WatchEnded
from lorafleet_operator.process.health import Health, serve_health
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


async def run(config: OperatorConfig) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        OperatorError: something essential ended; the process is to be started again.
    """
    pass_over_what_is_there()
    stop = asyncio.Event()
    _retake_signals(stop)
    health = Health()
    close_health = await serve_health(health, config.http_port)
    api = await connect()
    lease = Lease(api, namespace=config.namespace, name=config.lease, pod_name=config.pod_name)
    try:
        await _until(stop, _wait_and_lead(config, api, lease, health, stop))
    finally:
        await lease.release()
        metrics.LEADER.set(0)
        await api.close()
        await close_health()


def _retake_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _until(stop: asyncio.Event, main: Coroutine[Any, Any, None]) -> None:
    """Run `main` until it ends or the signal comes."""
    task = asyncio.ensure_future(main)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return
    task.result()


async def _wait_and_lead(
    config: OperatorConfig, api: KubeApi, lease: Lease, health: Health, stop: asyncio.Event
) -> None:
    """Wait for the Lease, then lead with kopf's watches."""
    await lease.acquire()
    metrics.LEADER.set(1)

    async def watching(sink: EventSink, scope: Scope) -> None:
        health.freshness = Freshness(scope.watch_refused)
        await watch(
            scope,
            sink,
            api.configuration,
            lease.identity,
            freshness=health.freshness,
            retake_signals=lambda: _retake_signals(stop),
        )

    await lead(config, api, lease, health, watching)


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
    converging = _converge(
        config,
        api,
        lease,
        health,
        watching,
        client=admin,
        gateways=gateways or own,
        holds=own,
        measures=measures or prometheus,
        now=now,
    )
    try:
        await _all_or_none(lease.hold(), converging)
    finally:
        # as one: whoever is cancelled while the first is closed still closes the others
        await to_its_end(_together(prometheus.close(), own.close(), admin.close()))


async def _together(*closing: Awaitable[None]) -> None:
    await asyncio.gather(*closing)


async def _converge(
    config: OperatorConfig,
    api: KubeApi,
    lease: Lease,
    health: Health,
    watching: Watching,
    *,
    client: AdminClient,
    gateways: Gateways,
    measures: Measures,
    holds: GatewayWatch,
    now: WallClock,
) -> None:
    scope = Scope(config.watch_namespaces)
    store, queue = Store(scope.namespaces), WorkQueue[BaseKey]()

    def wake(key: BaseKey, delay_seconds: float = EVENT_DELAY_SECONDS) -> None:
        queue.add_after(key, delay_seconds)

    key = await _patiently(lambda: admin_key(api, namespace=config.namespace, name=config.key_secret))
    writes = Writes(api, lambda: lease.is_held)
    tools = _tools(
        config,
        key,
        client,
        store,
        api=api,
        writes=writes,
        lease=lease,
        gateways=gateways,
        measures=measures,
        holds=holds,
        wake=wake,
        now=now,
    )
    names = KeptNames(api, writes, store, namespace=config.namespace, name=config.names, now=now)
    strays = Strays(api, scope, tools.operators, tools.writer)

    async def tell(change: Change) -> None:
        await _tell_of_namespace(change, writes, lease)

    resync = Resync(api, scope, seconds=config.resync_seconds, store=store, applier=tools.applier, wake=wake, tell=tell)
    health.resync = resync
    try:
        try:
            await _patiently(names.load)
            await _patiently(resync.once)
        except KubeNotFound as error:
            raise WatchEnded(f"the custom resource definitions are not installed: {error}") from error
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


def _tools(
    config: OperatorConfig,
    key: bytes,
    client: AdminClient,
    store: Store,
    *,
    api: KubeApi,
    writes: Writes,
    lease: Lease,
    gateways: Gateways,
    measures: Measures,
    holds: GatewayWatch,
    wake: Wake,
    now: WallClock,
) -> Tools:
    """Return what passes work with; whoever has it closes it."""
    watches = PodWatches(client, wake)
    writer = StatusWriter(writes, store, reporter=lease.identity, wake=wake, now=now)
    return Tools(
        key=key,
        lease=lease,
        store=store,
        applier=Applier(writes, engine_image=config.engine_image, key=key),
        leaving=Leaving(writes, client),
        autoscaling=Autoscaling(client, holds, wake, now=now),
        watches=watches,
        executor=Executor(client, watches, wake),
        resolver=Resolver(client, wake, watches.doubt_address),
        verifier=Verifier(client, wake),
        fences=Fences(lease),
        pod_events=PodEvents(api),
        gateways=gateways,
        measures=measures,
        operators=Operators(api, writer, me=lease.name),
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
