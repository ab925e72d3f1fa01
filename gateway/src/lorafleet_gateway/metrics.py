"""All metrics of the gateway in one table: name, kind, labels and meaning stand here and nowhere else.

`docs/reference/gateway-metrics.md` is generated from TABLE.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lorafleet_common.keys.metrics import KeyMetrics
from lorafleet_common.metrics import BoundedLabels, MetricTable
from lorafleet_common.sockets import WHY_ENDED

METRICS = MetricTable()
TABLE, REGISTRY = METRICS.lines, METRICS.registry

REQUESTS = METRICS.counter(
    "lorafleet_gateway_requests_total",
    "Requests to the generation routes, by the status that the client got (499 if it left first) and what came of it: "
    "ok, client_error, error (5xx, or an error event in a stream), cut (a pod was lost in the middle of its answer), "
    "client_left.",
    "base",
    "adapter",
    "code",
    "outcome",
)
REQUEST_SECONDS = METRICS.histogram(
    "lorafleet_gateway_request_seconds", "From the arrival of a request to the end of its answer.", "base"
)
FIRST_BYTE_SECONDS = METRICS.histogram(
    "lorafleet_gateway_time_to_first_byte_seconds",
    "From the arrival of a request to the first byte that a pod answered it with, without the time that it was held.",
    "base",
)
CONNECTIONS_ENDED = METRICS.counter(
    "lorafleet_gateway_connections_ended_total", f"Connections that the gateway ended, by why: {WHY_ENDED}.", "reason"
)
IN_FLIGHT = METRICS.gauge("lorafleet_gateway_requests_in_flight", "Requests being answered.").of()
HELD_BYTES = METRICS.gauge(
    "lorafleet_gateway_held_body_bytes",
    "Bodies of requests whose answers have not begun, and what is promised to large ones that arrive.",
).of()
OVERLOADED = METRICS.counter(
    "lorafleet_gateway_overloaded_total",
    "Requests that this gateway itself answered 429 for lack of room, by what there was too much of: requests, model_requests (the "
    "model had its share of them), bodies, model_bodies (the model had its share of the memory for them).",
    "base",
    "adapter",
    "reason",
)
HELD_REQUESTS = METRICS.gauge(
    "lorafleet_gateway_held_requests",
    "Requests that wait for a pod of a base that autoscaling lets go to zero.",
    "base",
)
HOLDS = METRICS.counter(
    "lorafleet_gateway_holds_total",
    "Requests that found no pod of such a base, by what came of it: released (a pod was ready), timeout and full (answered 503), "
    "client_left, draining (of this gateway).",
    "base",
    "result",
)
HOLD_SECONDS = METRICS.histogram(
    "lorafleet_gateway_hold_seconds",
    "For how long they waited.",
    "base",
    buckets=(1, 3, 10, 20, 30, 60, 120, 300, 600, 1800),
)
ROUTED = METRICS.counter(
    "lorafleet_gateway_routed_total",
    "Requests sent to a pod, by why to this one: base, or where it held the adapter (device, host, disk, source, "
    "unlisted), or spill: the pods that hold it were too busy.",
    "base",
    "why",
)
RETRIES = METRICS.counter(
    "lorafleet_gateway_retries_total",
    "Requests offered to another pod, by why the one before did not take it: unreachable, broken, or its error code.",
    "base",
    "reason",
)
UPSTREAM_ERRORS = METRICS.counter(
    "lorafleet_gateway_upstream_errors_total",
    "Pods that failed a request: unreachable, broken (before the answer), cut (within it), silent (idle too long), "
    "or the 5xx status that they answered.",
    "base",
    "reason",
)
LOOKUPS = METRICS.counter(
    "lorafleet_gateway_lookups_total",
    "Names that the watch did not know or did not know as ready: found, missing, failed (the API server did not answer), "
    "limited (too many look-ups).",
    "result",
)
WATCH_RESTARTS = METRICS.counter(
    "lorafleet_gateway_watch_restarts_total",
    "Watches begun again, by kind and reason: ended (by the API server, as usual), expired (listed again), broken.",
    "kind",
    "reason",
)
POLL_FAILURES = METRICS.counter(
    "lorafleet_gateway_pod_poll_failures_total", "Pods that did not say what they hold when asked.", "base"
)
EJECTIONS = METRICS.counter(
    "lorafleet_gateway_ejections_total",
    "Pods that failed five requests in a row and get nothing for 30 s, unless half of the base's pods are ejected already.",
    "base",
)
FALLBACKS = METRICS.counter(
    "lorafleet_gateway_revision_fallbacks_total",
    "Requests meant for a revision that shares an adapter's traffic, and offered to the stable one because pods refused them, "
    "by why: revision_not_found, model_not_found, adapter_loading, adapter_failed.",
    "base",
    "adapter",
    "reason",
)
READY = METRICS.gauge("lorafleet_gateway_ready", "1 while /ready answers 200, else 0.").of()

ENDPOINTS = METRICS.read(
    "lorafleet_gateway_endpoints",
    "gauge",
    "Pods of a base, by state: ready, unreachable (ready, but silent), not_ready.",
    "base",
    "state",
)
ADAPTERS = METRICS.read("lorafleet_gateway_adapters", "gauge", "Adapters of a base that answer.", "base")
SCALED_TO_ZERO = METRICS.read(
    "lorafleet_gateway_scaled_to_zero",
    "gauge",
    "1 while no pod is asked for, of a base that autoscaling lets go to zero; else 0.",
    "base",
)
WATCH_HEARD = METRICS.read(
    "lorafleet_gateway_watch_last_heard_timestamp_seconds",
    "gauge",
    "When the API server said something of a kind last, in Unix time; it does so about once a minute.",
    "kind",
)
NAMESPACE_REFUSED = METRICS.read(
    "lorafleet_gateway_namespace_refused",
    "gauge",
    "1 for a namespace that is to be followed and that the API server does not show: it is gone, or rights are missing.",
    "namespace",
)
UNREADABLE = METRICS.read(
    "lorafleet_gateway_unreadable_objects",
    "gauge",
    "Objects that this gateway cannot read, as another version wrote them, by kind, namespace and name (50 of them, those first that "
    "are not served; the others are `_other`), and whether what they stand for is answered all the same, by what it knows "
    "from before and what pods say: true, false.",
    "kind",
    "object",
    "served",
)
REVISION_REQUESTS = METRICS.read(
    "lorafleet_gateway_revision_requests_total",
    "counter",
    "Requests by revision, while several share an adapter's traffic, and what came of them: ok, or a class of "
    "[evidence](gateway.md#evidence). Of 50 adapters at most.",
    "base",
    "adapter",
    "revision",
    "outcome",
)
REVISION_FIRST_BYTE = METRICS.read(
    "lorafleet_gateway_revision_time_to_first_byte_seconds",
    "histogram",
    "Of the same, those that ended well: from the arrival of a request to the first byte that a pod answered it with.",
    "base",
    "adapter",
    "revision",
)

KEYS = KeyMetrics(METRICS, "lorafleet_gateway_")


BASES = BoundedLabels(forget=lambda name: METRICS.forget("base", name))
ADAPTER_NAMES = BoundedLabels(forget=lambda name: METRICS.forget("adapter", name))


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a gauge that is read at a scrape."""

    name: str
    labels: tuple[str, ...]
    value: float


class ClusterCollector(Collector):
    """Exposes gauges whose values are read at each scrape."""

    def __init__(self, read: Callable[[], list[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the families for one scrape."""
        families: dict[str, GaugeMetricFamily] = {}
        for line in map(
            METRICS.line, (ENDPOINTS, ADAPTERS, SCALED_TO_ZERO, WATCH_HEARD, NAMESPACE_REFUSED, UNREADABLE)
        ):
            families[line.name] = GaugeMetricFamily(line.name, line.meaning, labels=line.labels)
        for reading in self._read():
            families[reading.name].add_metric(reading.labels, reading.value)
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: registering must not need a cluster."""
        return iter(())


def describe() -> str:
    """Return the table of all metrics in Markdown, for docs/reference/gateway-metrics.md."""
    return METRICS.markdown()
