"""Passes the answers of pods through to clients, as they arrive."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from lorafleet_contract.names import HEADER_POD
from lorafleet_gateway import metrics
from lorafleet_gateway.errors import PodLost
from lorafleet_gateway.front import headers
from lorafleet_gateway.front.answers import SERVER, error_event
from lorafleet_gateway.front.exchange import Exchange
from lorafleet_gateway.front.outcomes import Broken, Cut, ErrorEvents, Refusal, Result
from lorafleet_gateway.front.retry import NOT_THERE
from lorafleet_gateway.front.state import Phase, State
from lorafleet_gateway.front.upstream import Answer

logger = logging.getLogger(__name__)
WHOLE_BYTES: Final = 1 << 20
"""An answer that says it is no longer than this is read before it is passed on."""
EVENT_END: Final = b"\n\n"
EVENT_STREAM: Final = "text/event-stream"


class Passing:
    """Writes to clients what pods answered."""

    def __init__(self, state: State, *, client_timeout_seconds: float) -> None:
        self._state = state
        self._client_timeout_seconds = client_timeout_seconds

    async def answer(self, exchange: Exchange, answer: Answer) -> web.StreamResponse:
        """Pass an answer through.

        Raises:
            Broken: it ended before anything of it had reached the client.
        """
        exchange.first_byte_seconds = exchange.seconds_with_pods
        exchange.answered_revision = headers.answered_revision(answer.headers)
        metrics.FIRST_BYTE_SECONDS.of(exchange.route.base).observe(exchange.first_byte_seconds)
        if answer.status >= 500:
            metrics.UPSTREAM_ERRORS.of(exchange.route.base, str(answer.status)).inc()
        if exchange.bill is not None:
            exchange.bill.answered(answer.status, answer.headers)
        kept = headers.for_client(answer.headers)
        kept.setdefault("server", SERVER)
        kept.setdefault(headers.REQUEST_ID, exchange.request_id)
        if answer.status != 429:  # a pod that refuses for a limit tells its own
            kept.update(exchange.caller.limit_headers())
        length = answer.headers.get("content-length", "")
        if length.isdigit() and int(length) <= WHOLE_BYTES:
            try:
                whole = b"".join([chunk async for chunk in answer.chunks()])
            except Cut as error:
                if exchange.bill is not None:
                    exchange.bill.lost()
                raise Broken(str(error)) from error
            exchange.status = answer.status
            if exchange.bill is not None:
                exchange.bill.feed(whole, is_stream=False)
            response = self.closing(web.Response(body=whole, status=answer.status, headers=kept))
            async with self._reading(exchange):
                await response.prepare(exchange.request)
                await response.write_eof()
            return response
        return await self._stream(exchange, answer, kept)

    async def _stream(self, exchange: Exchange, answer: Answer, kept: CIMultiDict[str]) -> web.StreamResponse:
        """Pass an answer through as it arrives."""
        response = self.closing(web.StreamResponse(status=answer.status, headers=kept))
        if exchange.request.version < HttpVersion11 and response.content_length is None:
            response.force_close()  # to HTTP/1.0 only the end of the connection tells the end of such an answer
        await response.prepare(exchange.request)
        exchange.let_go()
        exchange.status = answer.status
        last, errors = EVENT_END, ErrorEvents()
        try:
            async for chunk in answer.chunks():
                last = chunk
                errors.feed(chunk)
                if exchange.bill is not None:
                    exchange.bill.feed(chunk, is_stream=response.content_type == EVENT_STREAM)
                async with self._reading(exchange):
                    await response.write(chunk)
        except Cut as error:
            exchange.result = Result.CUT
            async with self._reading(exchange):
                await self._cut(exchange, response, error, is_between_events=last.endswith(EVENT_END))
        else:
            async with self._reading(exchange):
                await response.write_eof()
        if errors.found and exchange.result is None:
            exchange.result = Result.ERROR
        return response

    @asynccontextmanager
    async def _reading(self, exchange: Exchange) -> AsyncIterator[None]:
        """End the connection of a client that reads nothing for too long; its request holds an adapter in a pod.

        Raises:
            ConnectionResetError: it was ended.
        """
        try:
            async with asyncio.timeout(self._client_timeout_seconds):
                yield
        except TimeoutError:
            logger.info("a client read nothing for %g s: cut id=%s", self._client_timeout_seconds, exchange.request_id)
            if exchange.request.transport is not None:
                exchange.request.transport.abort()
            raise ConnectionResetError("the client stopped reading") from None

    async def _cut(
        self, exchange: Exchange, response: web.StreamResponse, error: Cut, *, is_between_events: bool
    ) -> None:
        """An answer broke off after its first byte: the client must not take it for a whole one."""
        logger.warning("pod %s broke off an answer: %s id=%s", exchange.pod, error, exchange.request_id)
        metrics.UPSTREAM_ERRORS.of(exchange.route.base, "cut").inc()
        if is_between_events and response.content_type == EVENT_STREAM:
            lost = PodLost("the pod that was answering was lost")
            await response.write(error_event(lost, is_lorax=exchange.is_lorax))
            await response.write_eof()
        elif exchange.request.transport is not None:
            exchange.request.transport.abort()

    def refusal(self, exchange: Exchange, refusal: Refusal) -> web.StreamResponse:
        """Pass the last pod's refusal through."""
        # to LoRAX's clients the two look like an adapter that has failed, which would count against its revision
        exchange.status = 404 if refusal.code in NOT_THERE else refusal.status
        exchange.pod = refusal.headers.get(HEADER_POD, "")
        kept = headers.for_client(refusal.headers)
        kept.setdefault("server", SERVER)
        return self.closing(web.Response(body=refusal.body, status=refusal.status, headers=kept))

    def closing(self, response: web.StreamResponse) -> web.StreamResponse:
        """A gateway that is shutting down closes the connection, so that the client's next request reaches another gateway."""
        if self._state.phase is not Phase.SERVING:
            response.force_close()
        return response
