"""The generation routes: read the request, have it offered to pods, pass the answer through, count what came of it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from aiohttp import web
from yarl import URL

from lorafleet_common.keys.guard import Caller, Grant
from lorafleet_common.tracing import OFF, Tracing
from lorafleet_contract.names import HEADER_REVISION, split_model
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.config import GatewayConfig
from lorafleet_gateway.errors import InvalidRequest, ModelNotFound, Overloaded, RequestError
from lorafleet_gateway.fleet.pods import Pod
from lorafleet_gateway.front import headers, lorax
from lorafleet_gateway.front.accounts import UNJUDGED_PATHS, account, count, end_trace
from lorafleet_gateway.front.answers import error_response
from lorafleet_gateway.front.body import check_size, model_of, read_body
from lorafleet_gateway.front.dispatch import Dispatcher, Route
from lorafleet_gateway.front.evidence import Ledger
from lorafleet_gateway.front.exchange import Exchange
from lorafleet_gateway.front.holding import Holding
from lorafleet_gateway.front.keys import CLIENT_LEFT, as_errors
from lorafleet_gateway.front.outcomes import Refusal, Result
from lorafleet_gateway.front.passing import Passing
from lorafleet_gateway.front.retry import Offers
from lorafleet_gateway.front.state import State
from lorafleet_gateway.front.tracing import begin_trace
from lorafleet_gateway.front.upstream import Upstream
from lorafleet_gateway.front.usage import Bill


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
        self._passing = Passing(state, client_timeout_seconds=config.client_timeout_seconds)

    async def handle(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        """Answer one request; cancelled when the client leaves, which cancels it in the pod too."""
        route = Route(Offers(self._config.max_attempts, self._config.retry_seconds))
        exchange = Exchange(request, headers.request_id_of(request.headers), time.perf_counter(), route, caller)
        exchange.is_lorax = request.path in lorax.PATHS
        exchange.trace = begin_trace(self._tracing, request)
        try:
            response = await self._answer(exchange)
        except RequestError as error:
            response = self._passing.closing(
                error_response(error, request_id=exchange.request_id, is_lorax=exchange.is_lorax)
            )
            exchange.status = error.status
            if isinstance(error, Overloaded):
                metrics.OVERLOADED.of(route.base, route.adapter, error.why).inc()
        except (asyncio.CancelledError, ConnectionError):
            exchange.status, exchange.result = CLIENT_LEFT, Result.CLIENT_LEFT
            raise
        finally:
            account(exchange)
            count(self._evidence, exchange)
            end_trace(exchange)
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
                exchange.take_share()
                answer = await self._dispatcher.offer(
                    exchange.route, partial(self._ask, exchange), elapsed_seconds=lambda: exchange.elapsed_seconds
                )
                return self._passing.refusal(exchange, answer) if isinstance(answer, Refusal) else answer

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
            response = await self._passing.answer(exchange, outcome)
            has_failed = exchange.result is Result.ERROR or exchange.status >= 500
            if exchange.result is Result.CUT:
                self._fleet.answered(pod, failed=True)
            elif not has_failed or exchange.route.is_of_stable:  # errors of a canary say nothing of its pod
                self._fleet.answered(pod, failed=has_failed)
            return response


def _model_field(exchange: Exchange, asked: lorax.Asked) -> str:
    if not exchange.is_lorax:
        return "model"
    return lorax.MERGED_IDS if asked.is_merge else lorax.ADAPTER_FIELD
