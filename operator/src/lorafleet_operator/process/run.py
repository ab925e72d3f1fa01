"""The operator's life: ports open, Lease taken, then it leads until the end."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from typing import Any

from lorafleet_common.collector import pass_over_what_is_there
from lorafleet_common.kube.client import KubeApi, connect
from lorafleet_operator import metrics
from lorafleet_operator.cluster.freshness import Freshness
from lorafleet_operator.cluster.handlers import EventSink, watch
from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.cluster.scope import Scope
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.process.health import Health, serve_health
from lorafleet_operator.process.lead import lead

logger = logging.getLogger(__name__)


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
