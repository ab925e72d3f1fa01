"""The generation routes: read the request, have it offered to pods, pass the answer through, count what came of it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict
from yarl import URL

from lorafleet_common.keys.guard import Caller, Grant
from lorafleet_common.tracing import OFF, RequestTrace, Tracing
from lorafleet_contract.evidence import ErrorClass
from lorafleet_contract.lorax import INFO
from lorafleet_contract.names import HEADER_POD, HEADER_REVISION, split_model
from lorafleet_contract.openai import ErrorCode
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.config import GatewayConfig
from lorafleet_gateway.errors import InvalidRequest, ModelNotFound, PodLost, RequestError
from lorafleet_gateway.fleet.pods import Pod
from lorafleet_gateway.front import headers, lorax
from lorafleet_gateway.front.answers import SERVER, error_event, error_response
from lorafleet_gateway.front.body import check_size, model_of, read_body
from lorafleet_gateway.front.dispatch import Dispatcher, Route
from lorafleet_gateway.front.evidence import Ledger, RevisionKey, error_class_of
from lorafleet_gateway.front.holding import Holding
from lorafleet_gateway.front.keys import CLIENT_LEFT, as_errors
from lorafleet_gateway.front.outcomes import Broken, Cut, ErrorEvents, Refusal, Result, result_of
from lorafleet_gateway.front.retry import NOT_THERE, Offers
from lorafleet_gateway.front.state import Phase, Room, State
from lorafleet_gateway.front.tracing import begin_trace, told
from lorafleet_gateway.front.upstream import Answer, Upstream
from lorafleet_gateway.front.usage import Bill

logger = logging.getLogger(__name__)
access = logging.getLogger("lorafleet_gateway.access")
WHOLE_BYTES: Final = 1 << 20
"""An answer that says it is no longer than this is read before it is passed on."""
EVENT_END: Final = b"\n\n"
EVENT_STREAM: Final = "text/event-stream"
TOKEN_PATHS: Final = frozenset({"/tokenize", "/detokenize"})
UNJUDGED_PATHS: Final = TOKEN_PATHS | {INFO}
"""Nothing is generated there, so what comes of it says nothing of a revision."""


@dataclass(slots=True)
class Exchange:
    """One request on its way."""

    request: web.BaseRequest
    request_id: str
    began: float
    route: Route
    caller: Caller
    body: bytes | bytearray = b""
    room: Room | None = None
    status: int = 500
    """As the OpenAI routes have it; LoRAX's clients may be told another one."""
    pod: str = ""
    """Who answered."""
    answered_revision: str | None = None
    """What the pod says that it answered with."""
    first_byte_seconds: float | None = None
    """Until a pod began to answer."""
    result: Result | None = None
    """None: as the status says."""
    is_lorax: bool = False
    """LoRAX's API was asked."""
    bill: Bill | None = None
    """Its tokens, where they are counted."""
    trace: RequestTrace = field(default_factory=lambda: RequestTrace(None))

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
    def seconds_with_pods(self) -> float:
        """As `elapsed_seconds`, without the time that it was held for want of a pod: that says nothing of any revision."""
        return self.elapsed_seconds - self.route.held_seconds


class Proxy:
    """Answers the routes that a pod of the model answers."""

    def __init__(
        self,
        config: GatewayConfig,
        cluster: Cluster,
        upstream: Upstream,
        state: State,
        evidence: Ledger,
        *,
        holding: Holding,
        tracing: Tracing = OFF,
    ) -> None:
        self._tracing = tracing
        self._config = config
        self._fleet = cluster.fleet
        self._directory = cluster.directory
        self._dispatcher = Dispatcher(cluster, holding, any_revision=config.any_revision)
        self._upstream = upstream
        self._state = state
        self._evidence = evidence

    async def handle(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        """Answer one request; cancelled when the client leaves, which cancels it in the pod too."""
        route = Route(Offers(self._config.max_attempts, self._config.retry_seconds))
        exchange = Exchange(request, headers.request_id_of(request.headers), time.perf_counter(), route, caller)
        exchange.is_lorax = request.path in lorax.PATHS
        exchange.trace = begin_trace(self._tracing, request)
        try:
            response = await self._answer(exchange)
        except RequestError as error:
            response = self._closing(error_response(error, request_id=exchange.request_id, is_lorax=exchange.is_lorax))
            exchange.status = error.status
        except (asyncio.CancelledError, ConnectionError):
            exchange.status, exchange.result = CLIENT_LEFT, Result.CLIENT_LEFT
            raise
        finally:
            _account(exchange)
            self._count(exchange)
            _end_trace(exchange)
        if not response.prepared:
            response.headers.update(exchange.caller.limit_headers())
        return response

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        caller = exchange.caller
        with self._state.request() as exchange.room, as_errors(), caller.request() as grant:
            exchange.body = await read_body(exchange.request, self._config.max_body_bytes, exchange.room)
            asked = self._asked(exchange)
            for model in asked.names:
                with as_errors(_model_field(exchange, asked)):
                    caller.check_model(split_model(model)[0])
            with self._billing(exchange, grant):
                await self._find(exchange, asked)
                answer = await self._dispatcher.offer(
                    exchange.route, partial(self._ask, exchange), elapsed_seconds=lambda: exchange.elapsed_seconds
                )
                return self._refused(exchange, answer) if isinstance(answer, Refusal) else answer

    @contextmanager
    def _billing(self, exchange: Exchange, grant: Grant) -> Iterator[None]:
        """Count the tokens of a request for its key, until it ends, however.

        Raises:
            RateLimited: the key does not have enough.
        """
        if not grant.counts_tokens or exchange.request.path in UNJUDGED_PATHS:
            yield
            return
        bill = exchange.bill = Bill(grant, exchange.body)
        has_left = False
        try:
            yield
        except (asyncio.CancelledError, ConnectionError):
            has_left = True
            raise
        finally:
            bill.close(has_left=has_left)

    def _sticky_key(self, exchange: Exchange) -> str:
        return headers.sticky_key(
            exchange.request.headers,
            request_id=exchange.request_id,
            key_name="" if self._config.spread_keys else exchange.caller.name,
        )

    async def _find(self, exchange: Exchange, asked: lorax.Asked) -> None:
        """Find out what the names of a request mean.

        Raises:
            RequestError: nothing that can be answered.
        """
        given = exchange.request.headers
        if not asked.is_merge:
            name, in_name = split_model(asked.names[0])
            try:
                await self._dispatcher.find(exchange.route, name, self._sticky_key(exchange))
            except ModelNotFound:
                if not asked.says_source:
                    raise
                self._find_ad_hoc(exchange, asked.names[0])
                return
            if (pinned := headers.asked_revision(given, in_name)) is not None:
                await self._dispatcher.pin(exchange.route, pinned)
            return
        try:
            if HEADER_REVISION in given:
                raise InvalidRequest(
                    f"the header {HEADER_REVISION} means one adapter; of a merge, ids are NAME@REVISION"
                )
            await self._dispatcher.find_merge(exchange.route, asked.names)
        except RequestError as error:
            error.param = lorax.MERGED_IDS
            raise

    def _find_ad_hoc(self, exchange: Exchange, model: str) -> None:
        """Take it that a pod of the base that allows it finds an adapter that nobody declared.

        Raises:
            RequestError: there is no such base.
        """
        if HEADER_REVISION in exchange.request.headers:
            raise InvalidRequest(
                f"the header {HEADER_REVISION} means a declared adapter, and this is none", param=lorax.ADAPTER_FIELD
            )
        exchange.route.target = self._directory.ad_hoc_target(model)

    def _asked(self, exchange: Exchange) -> lorax.Asked:
        """Return what a request means by names.

        Raises:
            RequestError: none.
        """
        path, body = exchange.request.path, exchange.body
        check_size(body)
        exchange.is_lorax = exchange.is_lorax or lorax.is_tokenize(path, body)
        if not exchange.is_lorax:
            return lorax.Asked((model_of(body),))
        asked = lorax.asked_of(path, body)
        return asked or lorax.Asked((lorax.base_of(exchange.caller, self._directory.base_names()),))

    async def _ask(self, exchange: Exchange, pod: Pod) -> web.StreamResponse | Refusal:
        """Ask one pod, and pass its answer through.

        Raises:
            NotTaken: there was none.
        """
        given, revision = exchange.request.headers, exchange.route.revision
        sent = headers.for_pod(
            given,
            request_id=exchange.request_id,
            revision=revision,
            with_key=self._config.forward_authorization,
            asks_usage=exchange.bill is not None,
            trace=exchange.trace.headers(),
        )
        asked = exchange.request.rel_url
        query = f"?{asked.raw_query_string}" if asked.raw_query_string else ""
        url = URL(f"{pod.endpoint.url}{asked.raw_path}{query}", encoded=True)
        method = exchange.request.method
        async with self._upstream.request(url, sent, exchange.body, method=method) as outcome:
            if isinstance(outcome, Refusal):
                return outcome
            exchange.pod = pod.endpoint.pod
            response = await self._pass(exchange, outcome)
            has_failed = exchange.result is Result.ERROR or exchange.status >= 500
            if exchange.result is Result.CUT:
                self._fleet.answered(pod, failed=True)
            elif not has_failed or exchange.route.is_of_stable:  # errors of a canary say nothing of its pod
                self._fleet.answered(pod, failed=has_failed)
            return response

    async def _pass(self, exchange: Exchange, answer: Answer) -> web.StreamResponse:
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
        metrics.UPSTREAM_ERRORS.of(exchange.route.base, "cut").inc()
        if is_between_events and response.content_type == EVENT_STREAM:
            lost = PodLost("the pod that was answering was lost")
            await response.write(error_event(lost, is_lorax=exchange.is_lorax))
            await response.write_eof()
        elif exchange.request.transport is not None:
            exchange.request.transport.abort()

    def _refused(self, exchange: Exchange, refusal: Refusal) -> web.StreamResponse:
        """Pass the last pod's refusal through."""
        # to LoRAX's clients the two look like an adapter that has failed, which would count against its revision
        exchange.status = 404 if refusal.code in NOT_THERE else refusal.status
        exchange.pod = refusal.headers.get(HEADER_POD, "")
        kept = headers.for_client(refusal.headers)
        kept.setdefault("server", SERVER)
        return self._closing(web.Response(body=refusal.body, status=refusal.status, headers=kept))

    def _count(self, exchange: Exchange) -> None:
        """Count a request for an adapter as evidence of the revision that answered it, or should have."""
        target, revision = exchange.route.target, exchange.answered_revision or exchange.route.revision
        if target is None or target.adapter is None or revision is None or exchange.request.path in UNJUDGED_PATHS:
            return
        if exchange.route.is_without_pod:
            return
        if (gave_up := exchange.route.gave_up) is not None:
            self._evidence.fell_back(
                RevisionKey(target.base_key, target.adapter, gave_up.revision),
                ErrorClass.ADAPTER_FAILED if gave_up.code is ErrorCode.ADAPTER_FAILED else None,
                is_named=gave_up.revision in target.pinnable,
            )
        self._evidence.add(
            RevisionKey(target.base_key, target.adapter, revision),
            error_class_of(exchange.status, exchange.result),
            first_byte_seconds=exchange.first_byte_seconds,
            seconds=exchange.seconds_with_pods,
            is_named=revision == target.revision or revision in target.pinnable,
        )

    def _closing(self, response: web.StreamResponse) -> web.StreamResponse:
        """A gateway that is shutting down closes the connection, so that the client's next request reaches another gateway."""
        if self._state.phase is not Phase.SERVING:
            response.force_close()
        return response


def _model_field(exchange: Exchange, asked: lorax.Asked) -> str:
    if not exchange.is_lorax:
        return "model"
    return lorax.MERGED_IDS if asked.is_merge else lorax.ADAPTER_FIELD


def _account(exchange: Exchange) -> None:
    """Count and log a request that has ended: at level info what went other than well, the rest at debug; pods log it too."""
    seconds = exchange.elapsed_seconds
    metrics.REQUESTS.of(
        exchange.route.base, exchange.route.adapter, str(exchange.status), exchange.result or result_of(exchange.status)
    ).inc()
    metrics.REQUEST_SECONDS.of(exchange.route.base).observe(seconds)
    went_well = exchange.status < 400 and exchange.result is None and exchange.route.offers.num_made == 1
    level = logging.DEBUG if went_well else logging.INFO
    if access.isEnabledFor(level):
        request, target = exchange.request, exchange.route.target
        access.log(
            level,
            "%s %s %d %.3fs %s %s pod=%s offers=%d key=%s id=%s%s",
            request.method,
            request.path,
            exchange.status,
            seconds,
            target.name if target is not None else "-",
            exchange.route.revision or "-",
            exchange.pod or "-",
            exchange.route.offers.num_made,
            exchange.caller.name or "-",
            exchange.request_id,
            exchange.trace.log_suffix,
        )


def _end_trace(exchange: Exchange) -> None:
    """Tell what became of a request, and of which pod."""
    trace, route = exchange.trace, exchange.route
    if trace.is_recorded:
        trace.tell(
            told(
                {
                    "gen_ai.request.model": route.target.name if route.target is not None else None,
                    "lorafleet.base": route.base or None,
                    "lorafleet.revision": exchange.answered_revision or route.revision,
                    "lorafleet.pod": exchange.pod or None,
                    "lorafleet.offers": route.offers.num_made,
                    "lorafleet.held_seconds": route.held_seconds or None,
                    "lorafleet.first_byte_seconds": exchange.first_byte_seconds,
                    "lorafleet.request_id": exchange.request_id,
                }
            )
        )
    failed = exchange.result if exchange.result is not Result.CLIENT_LEFT else None
    trace.end(exchange.status, failed.value if failed is not None else None)
