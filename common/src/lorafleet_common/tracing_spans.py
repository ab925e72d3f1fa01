"""Spans by OpenTelemetry's SDK: a thread of its own sends them, and what it cannot keep up with is dropped."""

import threading
from collections.abc import Mapping
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lorafleet_common.tracing import TRACEPARENT, TRACESTATE, Attributes, RequestTrace, Tracing

CLOSE_SECONDS: Final = 2.0
"""How long the end of a program waits for whoever collects spans."""
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class SpanTrace(RequestTrace):
    """A request with a span."""

    def __init__(self, span: Span) -> None:
        super().__init__(format_trace_id(span.get_span_context().trace_id))
        self.is_recorded = span.is_recording()
        self._span = span

    def headers(self) -> dict[str, str]:
        """Return the headers that name this request as the parent."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(self._span, Context()))
        return carrier

    def tell(self, attributes: Attributes, *, name: str | None = None) -> None:
        """Add attributes, and perhaps another name, to the span."""
        self._span.set_attributes(attributes)
        if name is not None:
            self._span.update_name(name)

    def fail(self, error: str) -> None:
        """Say what went wrong after the answer had begun."""
        self._span.set_attribute("error.type", error)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self, status: int, error: str | None = None) -> None:
        """End it: a server's span has failed from status 500 on."""
        self._span.set_attribute("http.response.status_code", status)
        kind = error or (str(status) if status >= 500 else None)
        if kind is not None:
            self.fail(kind)
        self._span.end()


class SpanTracing(Tracing):
    """A span for each request, given to a processor when it ends."""

    def __init__(self, processor: SpanProcessor, *, service: str) -> None:
        # the variables win: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        resource = Resource.create({SERVICE_NAME: service}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("lorafleet")

    def request(self, headers: Mapping[str, str], name: str, attributes: Attributes) -> RequestTrace:
        """Begin the span of a request, below the one that its headers name."""
        given = {key: headers[key] for key in (TRACEPARENT, TRACESTATE) if key in headers}
        parent = _PROPAGATOR.extract(given, Context())
        return SpanTrace(self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER, attributes=attributes))

    def close(self) -> None:
        """Send what is left, for a moment at most."""
        # the SDK's own end waits as long as who collects them takes
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)


def exporting(*, service: str) -> SpanTracing:
    """Send spans to where the variables of the OpenTelemetry specification say."""
    return SpanTracing(BatchSpanProcessor(OTLPSpanExporter()), service=service)
