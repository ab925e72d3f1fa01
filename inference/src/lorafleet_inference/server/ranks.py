"""The life of a host whose ranks serve with those of another: joins, has a port for probes, ends with the engine."""

import asyncio
import logging

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from lorafleet_common.signals import StopSignals
from lorafleet_common.sockets import bind, url_of
from lorafleet_inference.engine.joining import HostProgram, Leader, Phase
from lorafleet_inference.ranks_command import RanksConfig
from lorafleet_inference.server.listening import http_server

logger = logging.getLogger(__name__)


async def serve_ranks(config: RanksConfig) -> int:
    """Run the ranks of this host until the engine ends; return the exit status.

    SIGTERM does not end it while the engine goes on, which may have requests to answer yet; a second signal does.

    Raises:
        ConfigError: the engine does not let this host in, or is not there in time.
    """
    host = HostProgram(config.index, config.name, Leader(config.leader, config.leader_port), config.engine)
    with bind(config.host, config.port, option="--port") as listener:
        stop = StopSignals()
        server = http_server(host_app(host))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        running = asyncio.ensure_future(asyncio.to_thread(host.run))
        stopping = asyncio.ensure_future(_stop(host, stop))
        logger.info("host %d: health at %s, engine at %s", config.index, url_of(listener), host.leader)
        try:
            await asyncio.wait((running, serving), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                logger.error("the port was lost")
                host.abort()
            return await running
        finally:
            stopping.cancel()
            server.should_exit = True
            await asyncio.gather(serving, stopping, return_exceptions=True)


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
