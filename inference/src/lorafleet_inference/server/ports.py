"""The two ports of a pod, open from its start to its end; what answers at them changes once the base model is here."""

import asyncio
import logging
import socket

from starlette.types import ASGIApp, Receive, Scope, Send

from lorafleet_common.sockets import url_of
from lorafleet_inference.server.connections import ConnectionLimits
from lorafleet_inference.server.listening import http_server

logger = logging.getLogger(__name__)


class Port:
    """A listening socket and the app that answers there, served in the running loop."""

    def __init__(self, listener: socket.socket, app: ASGIApp, limits: ConnectionLimits) -> None:
        self.url = url_of(listener)
        self.app = app
        """May be set at any time: the next request is its."""
        self._server = http_server(self, limits)
        self.lost = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        """Done when nobody listens any more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request by the app of now."""
        await self.app(scope, receive, send)

    def close(self) -> None:
        """Have it end; `lost` is done when it has."""
        self._server.should_exit = True


class Ports:
    """The public port and that of the admin API."""

    def __init__(self, public: Port, admin: Port) -> None:
        self.public, self.admin = public, admin

    @property
    def lost(self) -> tuple[asyncio.Future[None], ...]:
        """Each is done when nobody listens there any more."""
        return self.public.lost, self.admin.lost

    def say_lost(self) -> None:
        """Log why nobody listens, where that is so."""
        for ended in self.lost:
            if ended.done() and (error := ended.exception()) is not None:
                logger.error("a port was lost: %s", error)

    async def close(self) -> None:
        """Close both, and wait for answers that are on their way, for a moment."""
        self.public.close()
        self.admin.close()
        await asyncio.gather(*self.lost, return_exceptions=True)
