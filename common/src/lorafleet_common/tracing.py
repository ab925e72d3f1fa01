"""The trace that a request is part of: W3C trace context in, spans out where somebody is named who collects them.

Without the extra `otel` nothing of OpenTelemetry is imported, and a request knows its trace's id alone.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from lorafleet_common.errors import ConfigError

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables of the OpenTelemetry specification; one of them switches spans on."""
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_NEWEST: Final = "ff"
"""The version that is none."""

Value = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, Value]


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the id of the trace, 32 hexadecimal digits, that a header names; None where it names none."""
    found = _TRACEPARENT.fullmatch((traceparent or "").strip())
    if found is None:
        return None
    version, trace_id, parent_id, more = found.groups()
    is_none = version == _NEWEST or not trace_id.strip("0") or not parent_id.strip("0")
    return None if is_none or (version == "00" and more is not None) else trace_id


class RequestTrace:
    """One request as part of a trace; this one is recorded by nobody."""

    is_recorded: bool = False
    """Whether it is worth the while to work out what is told."""

    def __init__(self, trace_id: str | None) -> None:
        self.trace_id = trace_id
        """For logs."""

    @property
    def log_suffix(self) -> str:
        """What ends a line of the access log."""
        return f" trace={self.trace_id}" if self.trace_id else ""

    def headers(self) -> dict[str, str]:
        """Return the headers that name this request as the parent; none where those that came with it go on."""
        return {}

    def tell(self, attributes: Attributes, *, name: str | None = None) -> None:
        """Add attributes, and perhaps another name, to the span."""

    def fail(self, error: str) -> None:
        """Say what went wrong after the answer had begun."""

    def end(self, status: int, error: str | None = None) -> None:
        """End it, once: by the status of the answer, and what went wrong after it."""


class Tracing:
    """Where the spans of a program go; this one's go nowhere."""

    def request(self, headers: Mapping[str, str], name: str, attributes: Attributes) -> RequestTrace:  # noqa: ARG002  for those that are recorded
        """Begin with a request that has come in."""
        return RequestTrace(trace_id_of(headers.get(TRACEPARENT)))

    def close(self) -> None:
        """Send what is left, for a moment at most."""


OFF: Final = Tracing()


def open_tracing(environment: Mapping[str, str], *, service: str) -> Tracing:
    """Return what the variables of the OpenTelemetry specification ask for; `service` is the name that they may replace.

    Raises:
        ConfigError: spans are asked for, and cannot be sent; names the variable.
    """
    asked = next((name for name in ENDPOINTS if environment.get(name)), None)
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if asked is None or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return OFF
    if exporter != "otlp":
        raise ConfigError("OTEL_TRACES_EXPORTER", "has to be otlp or none")
    spoken = next((name for name in PROTOCOLS if environment.get(name)), None)
    if spoken is not None and environment[spoken] != PROTOCOL:
        raise ConfigError(spoken, f"has to be {PROTOCOL}")
    try:
        from lorafleet_common.tracing_spans import exporting  # noqa: PLC0415  the extra may not be there
    except ImportError as error:
        raise ConfigError(asked, f"needs the extra `otel` of this program, which is not installed ({error})") from error
    return exporting(service=service)
