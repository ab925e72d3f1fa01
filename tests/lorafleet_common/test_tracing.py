"""Which trace a header names, what variables ask for, and what a span says."""

import gzip
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lorafleet_common.errors import ConfigError
from lorafleet_common.tracing import OFF, open_tracing, trace_id_of
from lorafleet_common.tracing_spans import SpanTracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-{PARENT}-01", TRACE),
        (f" 00-{TRACE}-{PARENT}-00 ", TRACE),
        (f"01-{TRACE}-{PARENT}-01-what-comes-later", TRACE),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        (f"00-{TRACE}\n-{PARENT}-01", None),
        ("", None),
        (None, None),
    ],
)
def test_the_trace_of_a_header(header: str | None, trace: str | None) -> None:
    assert trace_id_of(header) == trace


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_spans_are_off_unless_they_are_asked_for(variables: dict[str, str]) -> None:
    assert open_tracing(variables, service="pod") is OFF
    trace = OFF.request({"traceparent": f"00-{TRACE}-{PARENT}-01"}, "POST /", {})
    assert (trace.trace_id, trace.headers(), trace.is_recorded) == (TRACE, {}, False)
    assert trace.log_suffix == f" trace={TRACE}"
    assert OFF.request({}, "POST /", {}).log_suffix == ""


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ],
)
def test_what_cannot_be_sent_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", variable: value}, service="pod")


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    """Somebody who collects spans by OTLP over HTTP: its URL, and what it has got by path."""
    got: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_is_left_is_sent_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        tracing = open_tracing(os.environ, service="lorafleet-inference")
        tracing.request({"traceparent": f"00-{TRACE}-{PARENT}-01"}, "POST /x", {}).end(200)
        tracing.close()
        ((path, request),) = got
    (resource,) = request.resource_spans
    assert path == "/v1/traces"
    assert [one.value.string_value for one in resource.resource.attributes if one.key == "service.name"] == ["mine"]
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("POST /x", TRACE, PARENT)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> SpanTracing:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    return SpanTracing(SimpleSpanProcessor(exporter), service="lorafleet-gateway")


def ended(exporter: InMemorySpanExporter) -> Any:
    (span,) = exporter.get_finished_spans()
    return span


def test_a_span_stands_below_the_one_that_came_in(tracing: SpanTracing, exporter: InMemorySpanExporter) -> None:
    given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    trace = tracing.request(given, "POST /x", {"url.path": "/x"})
    sent = trace.headers()
    assert sent["tracestate"] == "vendor=1"
    trace.tell({"gen_ai.request.model": "red"}, name="chat red")
    trace.end(200)
    span = ended(exporter)
    assert trace.trace_id == TRACE
    assert span.context.trace_id == int(TRACE, 16)
    assert span.parent.span_id == int(PARENT, 16)
    assert sent["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert span.name == "chat red"
    assert dict(span.attributes) == {
        "url.path": "/x",
        "gen_ai.request.model": "red",
        "http.response.status_code": 200,
    }
    assert span.status.is_unset
    assert span.resource.attributes["service.name"] == "lorafleet-gateway"
    assert span.resource.attributes["deployment.environment.name"] == "test"


@pytest.mark.parametrize(("status", "error", "kind"), [(503, None, "503"), (200, "Cut", "Cut"), (404, None, None)])
def test_failures_of_the_server_are_errors(
    tracing: SpanTracing, exporter: InMemorySpanExporter, status: int, error: str | None, kind: str | None
) -> None:
    tracing.request({}, "POST /x", {}).end(status, error)
    span = ended(exporter)
    assert span.attributes.get("error.type") == kind
    assert span.status.is_unset == (kind is None)


def test_a_trace_that_is_not_sampled_is_passed_on_and_not_recorded(
    tracing: SpanTracing, exporter: InMemorySpanExporter
) -> None:
    trace = tracing.request({"traceparent": f"00-{TRACE}-{PARENT}-00"}, "POST /x", {})
    assert not trace.is_recorded
    assert trace.headers()["traceparent"].startswith(f"00-{TRACE}-")
    assert trace.headers()["traceparent"].endswith("-00")
    trace.end(200)
    assert not exporter.get_finished_spans()
