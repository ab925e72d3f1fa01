"""The gateway's life: connect, listen, follow the cluster; at the end unready, grace, drain, out."""

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any, Final

from aiohttp import web

from lorafleet_common.collector import pass_over_what_is_there
from lorafleet_common.keys.file import following, open_guard
from lorafleet_common.keys.guard import Guard
from lorafleet_common.kube.client import connect
from lorafleet_common.signals import StopSignals
from lorafleet_common.sockets import bind, connections_with_files
from lorafleet_common.tracing import Tracing, open_tracing
from lorafleet_common.web_ports import Limits
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.config import GatewayConfig
from lorafleet_gateway.fleet.pods import Fleet
from lorafleet_gateway.front.holding import Holding
from lorafleet_gateway.front.monitoring import Monitoring
from lorafleet_gateway.front.rollout_metrics import RolloutCollector
from lorafleet_gateway.front.server import FrontDoor, open_port
from lorafleet_gateway.front.state import Phase, State
from lorafleet_gateway.front.upstream import Upstream

logger = logging.getLogger(__name__)
FILES_OF_A_CONNECTION: Final = 2
"""Of a client, and the one to a pod."""
REFUSAL_SECONDS: Final = 0.5
"""In which those that are held for want of a pod are told that this gateway ends, where there was none until then."""
MAX_MONITORING_CONNECTIONS: Final = 256
"""Of operators, and of who collects metrics."""


async def serve(config: GatewayConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port cannot be had, the file of keys is none, or spans cannot be sent.
        KubeError: there is no API server to be asked.
        GatewayError: something essential ended.
    """
    guard, keys_file = open_guard(config.keys_file, metrics.KEYS, option="--keys-file")
    tracing = open_tracing(os.environ, service="lorafleet-gateway")
    with (
        bind(config.host, config.port, option="--port") as listener,
        bind(config.host, config.metrics_port, option="--metrics-port") as metrics_listener,
    ):
        stop = StopSignals()
        api = await connect()
        upstream = Upstream(
            connect_timeout_seconds=config.connect_timeout_seconds, idle_timeout_seconds=config.idle_timeout_seconds
        )
        try:
            async with Fleet() as fleet:
                cluster = Cluster(api, fleet, config.watch_namespaces)
                with following(keys_file):
                    await _run(
                        config, cluster, upstream, (listener, metrics_listener), stop, guard=guard, tracing=tracing
                    )
        finally:
            await upstream.close()
            await api.close()
            await asyncio.to_thread(tracing.close)


async def _run(
    config: GatewayConfig,
    cluster: Cluster,
    upstream: Upstream,
    listeners: tuple[socket.socket, socket.socket],
    stop: StopSignals,
    *,
    guard: Guard,
    tracing: Tracing,
) -> None:
    state = State(max_in_flight=config.max_in_flight, max_held_bytes=config.max_held_bytes)
    door = FrontDoor(config, cluster, upstream, state, guard, tracing=tracing)
    collectors = (metrics.ClusterCollector(cluster.readings), RolloutCollector(cluster.directory, door.evidence))
    for collector in collectors:
        metrics.REGISTRY.register(collector)
    most = connections_with_files(config.max_connections, files_each=FILES_OF_A_CONNECTION)
    ports = (
        (door.handle, listeners[0], Limits(most, config.client_timeout_seconds)),
        (Monitoring(door).handle, listeners[1], Limits(MAX_MONITORING_CONNECTIONS, config.client_timeout_seconds)),
    )
    runners = [await open_port(*port) for port in ports]
    logger.info("metrics on port %d", listeners[1].getsockname()[1])
    host, port = listeners[0].getsockname()[:2]
    logger.info("listening on %s port %d", host, port)
    pass_over_what_is_there()
    followed = asyncio.ensure_future(cluster.follow())
    stopping = asyncio.ensure_future(stop.told.wait())
    try:
        await asyncio.wait((followed, stopping), return_when=asyncio.FIRST_COMPLETED)
        if followed.done():
            followed.result()
        await _drain(config, state, stop, door.holding)
    finally:
        await _close(runners, followed, stopping)
        for collector in collectors:
            metrics.REGISTRY.unregister(collector)


async def _drain(config: GatewayConfig, state: State, stop: StopSignals, holding: Holding) -> None:
    state.phase = Phase.LEAVING
    logger.info("told to end: %d requests in flight", state.num_in_flight)
    if stop.by_router:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.told_again.wait(), config.drain_grace_seconds)
    state.phase = Phase.DRAINING
    idle, again = asyncio.ensure_future(state.wait_idle()), asyncio.ensure_future(stop.told_again.wait())
    await asyncio.wait((idle, again), timeout=config.drain_timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    holding.refuse()
    await asyncio.wait((idle,), timeout=REFUSAL_SECONDS)
    for waiting in (idle, again):
        waiting.cancel()
    if state.num_in_flight:
        logger.warning("%d requests did not end in time and are cut", state.num_in_flight)


async def _close(runners: list[web.ServerRunner], *tasks: asyncio.Future[Any]) -> None:
    for runner in runners:
        await runner.cleanup()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
