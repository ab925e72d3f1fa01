"""The life of a host whose ranks serve with those of another: joins, has a port for probes, ends with the engine."""

import asyncio
import logging

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from lorafleet_common.signals import StopSignals
from lorafleet_common.sockets import bind
from lorafleet_inference.engine.joining import HostProgram, Leader, Phase
from lorafleet_inference.ranks_command import RanksConfig
from lorafleet_inference.server.connections import ConnectionLimits
from lorafleet_inference.server.ports import Port
from lorafleet_inference.server.starting import Download, bring, early_host

logger = logging.getLogger(__name__)


async def serve_ranks(config: RanksConfig) -> int:
    """Run the ranks of this host until the engine ends; return the exit status. Its port is open before the base model is here.

    SIGTERM ends it while its base comes. Later it does not while the engine goes on, which may have requests to answer yet; a second
    signal does.

    Raises:
        ConfigError: the base model is not to be had; the engine does not let this host in, or is not there in time.
    """
    leader, download = Leader(config.leader, config.leader_port), Download()
    with bind(config.host, config.port, option="--port") as listener:
        stop = StopSignals()
        port = Port(listener, early_host(download), ConnectionLimits())
        logger.info("host %d: health at %s, engine at %s", config.index, port.url, leader)
        try:
            engine = await bring(config.base, download, stop, (port.lost,))
            if engine is None:
                return 0 if stop.told.is_set() else 1
            return await _run(HostProgram(config.index, config.name, leader, engine), port, stop)
        finally:
            port.close()
            await asyncio.gather(port.lost, return_exceptions=True)


async def _run(host: HostProgram, port: Port, stop: StopSignals) -> int:
    port.app = host_app(host)
    running = asyncio.ensure_future(asyncio.to_thread(host.run))
    stopping = asyncio.ensure_future(_stop(host, stop))
    try:
        await asyncio.wait((running, port.lost), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            logger.error("the port was lost")
            host.abort()
        return await running
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)


def host_app(host: HostProgram) -> Starlette:
    """Return what answers probes."""

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": host.phase}, 503 if host.phase is Phase.ENDED else 200)

    async def ready(_: Request) -> JSONResponse:
        return JSONResponse({"status": host.phase}, 200 if host.phase is Phase.RUNNING else 503)

    return Starlette(routes=[Route("/health", health), Route("/ready", ready)])


async def _stop(host: HostProgram, stop: StopSignals) -> None:
    await stop.told.wait()
    logger.info("told to end: this host goes on for as long as the engine does")
    host.stop()
    await stop.told_again.wait()
    host.abort()
