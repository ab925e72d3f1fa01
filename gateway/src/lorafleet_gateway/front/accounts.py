"""What is told of a request that has ended: metrics, the access log, its span, and evidence of the revision that answered it."""

import logging
from typing import Final

from lorafleet_contract.evidence import ErrorClass
from lorafleet_contract.lorax import INFO
from lorafleet_contract.openai import ErrorCode
from lorafleet_gateway import metrics
from lorafleet_gateway.front.evidence import Ledger, RevisionKey, error_class_of
from lorafleet_gateway.front.exchange import Exchange
from lorafleet_gateway.front.outcomes import Result, result_of
from lorafleet_gateway.front.tracing import told

access = logging.getLogger("lorafleet_gateway.access")
TOKEN_PATHS: Final = frozenset({"/tokenize", "/detokenize"})
UNJUDGED_PATHS: Final = TOKEN_PATHS | {INFO}
"""Nothing is generated there, so what comes of it says nothing of a revision."""


def account(exchange: Exchange) -> None:
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


def count(evidence: Ledger, exchange: Exchange) -> None:
    """Count a request for an adapter as evidence of the revision that answered it, or should have."""
    target, revision = exchange.route.target, exchange.answered_revision or exchange.route.revision
    if target is None or target.adapter is None or revision is None or exchange.request.path in UNJUDGED_PATHS:
        return
    if exchange.route.is_without_pod:
        return
    if (gave_up := exchange.route.gave_up) is not None:
        evidence.fell_back(
            RevisionKey(target.base_key, target.adapter, gave_up.revision),
            ErrorClass.ADAPTER_FAILED if gave_up.code is ErrorCode.ADAPTER_FAILED else None,
            is_named=gave_up.revision in target.pinnable,
        )
    evidence.add(
        RevisionKey(target.base_key, target.adapter, revision),
        error_class_of(exchange.status, exchange.result),
        first_byte_seconds=exchange.first_byte_seconds,
        seconds=exchange.seconds_with_pods,
        is_named=revision == target.revision or revision in target.pinnable,
    )


def end_trace(exchange: Exchange) -> None:
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
