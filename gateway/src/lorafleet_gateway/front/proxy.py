"""The generation routes: find out what `model` means, offer the request to pods until one takes it, pass the answer through."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict
from yarl import URL

from lorafleet_contract.names import HEADER_POD, HEADER_REVISION, split_model
from lorafleet_contract.openai import ErrorCode
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.cluster.directory import Target
from lorafleet_gateway.config import GatewayConfig
from lorafleet_gateway.errors import InvalidRequest, PodLost, RequestError, RevisionNotFound
from lorafleet_gateway.fleet.pods import Pod
from lorafleet_gateway.fleet.routing import decide, two_at_random
from lorafleet_gateway.front import headers
from lorafleet_gateway.front.answers import SERVER, error_event, error_response
from lorafleet_gateway.front.body import model_of, read_body
from lorafleet_gateway.front.evidence import Ledger, RevisionKey, error_class_of
from lorafleet_gateway.front.outcomes import Broken, Cut, ErrorEvents, NotTaken, Refusal, Result, result_of
from lorafleet_gateway.front.retry import Offers
from lorafleet_gateway.front.state import Phase, Room, State
from lorafleet_gateway.front.upstream import Answer, Upstream

logger = logging.getLogger(__name__)
access = logging.getLogger("lorafleet_gateway.access")
CLIENT_LEFT: Final = 499
WHOLE_BYTES: Final = 1 << 20
"""An answer that says it is no longer than this is read before it is passed on."""
EVENT_END: Final = b"\n\n"


@dataclass(slots=True)
class Exchange:
    """One request on its way."""

    request: web.BaseRequest
    request_id: str
    began: float
    offers: Offers
    body: bytes | bytearray = b""
    room: Room | None = None
    target: Target | None = None
    revision: str | None = None
    """The one to answer with; None for a base."""
    is_pinned: bool = False
    """The client insists on a revision."""
    leaves_revision_to_pods: bool = False
    """No pod knows the revision and the API server does not answer: their stable one is offered the request."""
    status: int = 500
    pod: str = ""
    """Who answered."""
    answered_revision: str | None = None
    """What the pod says that it answered with."""
    first_byte_seconds: float | None = None
    """Until a pod began to answer."""
    result: Result | None = None
    """None: as the status says."""

    def let_go(self) -> None:
        """The request is not offered again: a long answer must not keep a large body in memory."""
        self.body = b""
        if self.room is not None:
            self.room.give_back()

    @property
    def elapsed_seconds(self) -> float:
        """Since it arrived."""
        return time.perf_counter() - self.began

    @property
    def base(self) -> str:
        """Value of the label `base`."""
        return metrics.BASES.of(self.target.base_name) if self.target is not None else ""

    @property
    def adapter(self) -> str:
        """Value of the label `adapter`: empty for a base, and for what nobody knows."""
        name = self.target.adapter if self.target is not None else None
        return metrics.ADAPTER_NAMES.of(name) if name is not None else ""


class Proxy:
    """Answers POST /v1/chat/completions and /v1/completions."""

    def __init__(
        self, config: GatewayConfig, cluster: Cluster, upstream: Upstream, state: State, evidence: Ledger
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._upstream = upstream
        self._state = state
        self._evidence = evidence

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; cancelled when the client leaves, which cancels it in the pod too."""
        offers = Offers(self._config.max_attempts, self._config.retry_seconds)
        exchange = Exchange(request, headers.request_id_of(request.headers), time.perf_counter(), offers)
        try:
            response = await self._answer(exchange)
        except RequestError as error:
            exchange.status = error.status
            response = self._closing(error_response(error, request_id=exchange.request_id))
        except (asyncio.CancelledError, ConnectionError):
            exchange.status, exchange.result = CLIENT_LEFT, Result.CLIENT_LEFT
            raise
        finally:
            _account(exchange)
            self._count(exchange)
        return response

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        with self._state.request() as exchange.room:
            exchange.body = await read_body(exchange.request, self._config.max_body_bytes, exchange.room)
            await self._find_target(exchange, model_of(exchange.body))
            return await self._offer(exchange)

    async def _find_target(self, exchange: Exchange, model: str) -> None:
        name, in_name = split_model(model)
        exchange.target = target = await self._cluster.target(name)
        pinned = headers.asked_revision(exchange.request.headers, in_name)
        if pinned is not None and target.revision is None:
            raise InvalidRequest(f"{name!r} is a base model: it has no revisions", param="model")
        if pinned is not None and not self._config.any_revision and pinned not in target.pinnable:
            await self._cluster.lookups.look_up(name)  # the watch may not have told of a new one yet
            exchange.target = target = self._cluster.directory.target(name)
            if pinned not in target.pinnable:
                raise RevisionNotFound(f"the status of {name!r} shows no revision {pinned}", param=HEADER_REVISION)
        exchange.is_pinned = pinned is not None
        exchange.revision = pinned or target.revision

    async def _offer(self, exchange: Exchange) -> web.StreamResponse:
        """Offer the request to one pod after the other.

        Raises:
            RequestError: none took it.
        """
        offers, target = exchange.offers, exchange.target
        assert target is not None
        while True:
            pods = {pod.endpoint.uid: pod for pod in self._cluster.fleet.of(target.base_key)}
            decision = decide(
                target.name,
                [pod.candidate(target.name, exchange.revision) for pod in pods.values()],
                is_adapter=target.revision is not None,
                loads_on_demand=target.loads_on_demand,
                tried=offers.tried,
                sample=two_at_random,
            )
            if decision.uid is None:
                break
            if offers.last is not None:
                metrics.RETRIES.of(exchange.base, _word(offers.last)).inc()
            metrics.ROUTED.of(exchange.base, decision.why).inc()
            offers.made(decision.uid)
            outcome = await self._attempt(exchange, pods[decision.uid])
            if isinstance(outcome, web.StreamResponse):
                return outcome
            offers.failed(outcome)
            if isinstance(outcome, Refusal) and outcome.code is ErrorCode.REVISION_NOT_FOUND:
                target = await self._ask_again(exchange, target)
            if not offers.may_go_on(exchange.elapsed_seconds):
                break
        error = offers.error(target.name, decision.why, is_pinned=exchange.is_pinned)
        if error is not None:
            raise error
        assert isinstance(offers.last, Refusal)
        return self._refused(exchange, offers.last)

    async def _ask_again(self, exchange: Exchange, target: Target) -> Target:
        """A pod does not know the revision: see whether the watch is behind, and the name means another one by now."""
        if exchange.is_pinned:
            return target
        if not await self._cluster.lookups.look_up(target.name) and not exchange.leaves_revision_to_pods:
            exchange.leaves_revision_to_pods = True
            exchange.offers.begin_again()
            exchange.revision = None
            return target
        exchange.target = now = self._cluster.directory.target(target.name)
        if now.revision != exchange.revision:
            exchange.offers.tried.clear()
            exchange.revision = now.revision
        return now

    async def _attempt(self, exchange: Exchange, pod: Pod) -> web.StreamResponse | Refusal | NotTaken:
        given, revision = exchange.request.headers, exchange.revision
        sent = headers.for_pod(given, request_id=exchange.request_id, revision=revision)
        asked = exchange.request.rel_url
        query = f"?{asked.raw_query_string}" if asked.raw_query_string else ""
        url = URL(f"{pod.endpoint.url}{asked.raw_path}{query}", encoded=True)
        try:
            with pod.request():
                async with self._upstream.request(url, sent, exchange.body) as outcome:
                    if isinstance(outcome, Refusal):
                        return outcome
                    exchange.pod = pod.endpoint.pod
                    response = await self._pass(exchange, outcome)
                    has_failed = exchange.result in (Result.CUT, Result.ERROR) or exchange.status >= 500
                    self._cluster.fleet.answered(pod, failed=has_failed)
                    return response
        except NotTaken as error:
            logger.info("pod %s was %s: %s", pod.endpoint.pod, error.reason, error)
            metrics.UPSTREAM_ERRORS.of(exchange.base, error.reason).inc()
            pod.doubt()
            self._cluster.fleet.answered(pod, failed=True)
            return error

    async def _pass(self, exchange: Exchange, answer: Answer) -> web.StreamResponse:
        """Pass an answer through.

        Raises:
            Broken: it ended before anything of it had reached the client.
        """
        exchange.first_byte_seconds = exchange.elapsed_seconds
        exchange.answered_revision = headers.answered_revision(answer.headers)
        metrics.FIRST_BYTE_SECONDS.of(exchange.base).observe(exchange.first_byte_seconds)
        if answer.status >= 500:
            metrics.UPSTREAM_ERRORS.of(exchange.base, str(answer.status)).inc()
        kept = headers.for_client(answer.headers)
        kept.setdefault("server", SERVER)
        kept.setdefault(headers.REQUEST_ID, exchange.request_id)
        length = answer.headers.get("content-length", "")
        if length.isdigit() and int(length) <= WHOLE_BYTES:
            try:
                whole = b"".join([chunk async for chunk in answer.chunks()])
            except Cut as error:
                raise Broken(str(error)) from error
            exchange.status = answer.status
            response = self._closing(web.Response(body=whole, status=answer.status, headers=kept))
            async with self._reading(exchange):
                await response.prepare(exchange.request)
                await response.write_eof()
            return response
        return await self._stream(exchange, answer, kept)

    async def _stream(self, exchange: Exchange, answer: Answer, kept: CIMultiDict[str]) -> web.StreamResponse:
        """Pass an answer through as it arrives."""
        response = self._closing(web.StreamResponse(status=answer.status, headers=kept))
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
            async with asyncio.timeout(self._config.client_timeout_seconds):
                yield
        except TimeoutError:
            logger.info(
                "a client read nothing for %g s: cut id=%s", self._config.client_timeout_seconds, exchange.request_id
            )
            if exchange.request.transport is not None:
                exchange.request.transport.abort()
            raise ConnectionResetError("the client stopped reading") from None

    async def _cut(
        self, exchange: Exchange, response: web.StreamResponse, error: Cut, *, is_between_events: bool
    ) -> None:
        """An answer broke off after its first byte: the client must not take it for a whole one."""
        logger.warning("pod %s broke off an answer: %s id=%s", exchange.pod, error, exchange.request_id)
        metrics.UPSTREAM_ERRORS.of(exchange.base, "cut").inc()
        if is_between_events and response.content_type == "text/event-stream":
            await response.write(error_event(PodLost("the pod that was answering was lost")))
            await response.write_eof()
        elif exchange.request.transport is not None:
            exchange.request.transport.abort()

    def _refused(self, exchange: Exchange, refusal: Refusal) -> web.StreamResponse:
        """Pass the last pod's refusal through."""
        exchange.status = refusal.status
        exchange.pod = refusal.headers.get(HEADER_POD, "")
        kept = headers.for_client(refusal.headers)
        kept.setdefault("server", SERVER)
        return self._closing(web.Response(body=refusal.body, status=refusal.status, headers=kept))

    def _count(self, exchange: Exchange) -> None:
        """Count a request for an adapter as evidence of the revision that answered it, or should have."""
        target, revision = exchange.target, exchange.answered_revision or exchange.revision
        if target is None or target.adapter is None or revision is None:
            return
        self._evidence.add(
            RevisionKey(target.base_key, target.adapter, revision),
            error_class_of(exchange.status, exchange.result),
            first_byte_seconds=exchange.first_byte_seconds,
            seconds=exchange.elapsed_seconds,
            is_named=revision == target.revision or revision in target.pinnable,
        )

    def _closing(self, response: web.StreamResponse) -> web.StreamResponse:
        """Whoever talks to a gateway that is leaving shall connect anew, to another one."""
        if self._state.phase is not Phase.SERVING:
            response.force_close()
        return response


def _word(outcome: Refusal | NotTaken) -> str:
    return outcome.code if isinstance(outcome, Refusal) else outcome.reason


def _account(exchange: Exchange) -> None:
    """Count and log a request that has ended: at level info what went other than well, the rest at debug; pods log it too."""
    seconds = exchange.elapsed_seconds
    metrics.REQUESTS.of(
        exchange.base, exchange.adapter, str(exchange.status), exchange.result or result_of(exchange.status)
    ).inc()
    metrics.REQUEST_SECONDS.of(exchange.base).observe(seconds)
    went_well = exchange.status < 400 and exchange.result is None and exchange.offers.num_made == 1
    level = logging.DEBUG if went_well else logging.INFO
    if access.isEnabledFor(level):
        request, target = exchange.request, exchange.target
        access.log(
            level,
            "%s %s %d %.3fs %s %s pod=%s offers=%d id=%s",
            request.method,
            request.path,
            exchange.status,
            seconds,
            target.name if target is not None else "-",
            exchange.revision or "-",
            exchange.pod or "-",
            exchange.offers.num_made,
            exchange.request_id,
        )
