"""The gateway in a trace: what a pod is told, what the log says, and the span of a request."""

import logging
import time
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.upstream_pods import REVISION, PodDouble, breaking, streaming

from lorafleet_common.tracing_spans import SpanTracing

from .conftest import World, eventually

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


async def pod_of(world: World, **options: Any) -> PodDouble:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open(**options)
    return pod


async def ended(exporter: InMemorySpanExporter, number: int) -> tuple[ReadableSpan, ...]:
    """Wait until so many spans have ended: they do after their answers."""
    await eventually("spans ended", lambda: len(exporter.get_finished_spans()) == number)
    return exporter.get_finished_spans()


async def test_a_trace_goes_through_and_into_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    pod = await pod_of(world)
    caplog.set_level(logging.DEBUG, "lorafleet_gateway.access")
    await world.ask(headers={**GIVEN, "x-request-id": "mine"})
    await world.ask(headers={"x-request-id": "other"})
    assert {name: pod.received[0].headers[name] for name in GIVEN} == GIVEN
    assert "traceparent" not in pod.received[1].headers
    await eventually("both are logged", lambda: sum("access" in record.name for record in caplog.records) == 2)
    first, second = (record.getMessage() for record in caplog.records if record.name == "lorafleet_gateway.access")
    assert first.endswith(f" id=mine trace={TRACE}")
    assert second.endswith(" id=other")


async def test_the_pods_span_stands_below_the_gateways(world: World) -> None:
    exporter = InMemorySpanExporter()
    pod = await pod_of(world, tracing=SpanTracing(SimpleSpanProcessor(exporter), service="lorafleet-gateway"))
    await world.ask(headers={**GIVEN, "x-request-id": "mine"})
    await world.ask("nobody")
    span, refused = await ended(exporter, 2)
    assert pod.received[0].headers["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert pod.received[0].headers["tracestate"] == "vendor=1"
    assert span.parent is not None
    assert span.parent.span_id == int(PARENT, 16)
    told = dict(span.attributes or {})
    assert told.pop("lorafleet.first_byte_seconds") > 0  # type: ignore[operator]
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.request.model": "french",
        "lorafleet.base": "numerals",
        "lorafleet.revision": REVISION,
        "lorafleet.pod": "one",
        "lorafleet.offers": 1,
        "lorafleet.request_id": "mine",
    }
    assert (refused.attributes or {})["http.response.status_code"] == 404
    assert refused.parent is None
    assert refused.status.is_unset


@pytest.mark.parametrize(("reply", "error"), [(breaking, "502"), (streaming("data: x\n\n", breaks=True), "cut")])
async def test_what_went_wrong_is_told(world: World, reply: Any, error: str) -> None:
    exporter = InMemorySpanExporter()
    pod = await pod_of(world, tracing=SpanTracing(SimpleSpanProcessor(exporter), service="lorafleet-gateway"))
    pod.reply = reply
    await world.ask()
    (span,) = await ended(exporter, 1)
    assert (span.attributes or {})["error.type"] == error
    assert not span.status.is_unset


class Stuck(SpanExporter):
    """Somebody who collects spans and does not come to an end."""

    def __init__(self) -> None:
        self.num_asked = 0

    def export(self, spans: Any) -> SpanExportResult:
        assert all(isinstance(span, ReadableSpan) for span in spans)
        self.num_asked += 1
        time.sleep(5)
        return SpanExportResult.FAILURE


async def test_requests_do_not_wait_for_who_collects_spans(world: World) -> None:
    stuck = Stuck()
    processor = BatchSpanProcessor(stuck, max_queue_size=8, max_export_batch_size=4, schedule_delay_millis=1)
    tracing = SpanTracing(processor, service="lorafleet-gateway")
    await pod_of(world, tracing=tracing)
    began = time.monotonic()
    for _ in range(40):
        assert (await world.ask()).status_code == 200
    assert time.monotonic() - began < 5
    assert stuck.num_asked == 1
