"""All metrics of the gateway in one table: name, kind, labels and meaning stand here and nowhere else.

`docs/reference/gateway-metrics.md` is generated from TABLE.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_LABELS: Final = 100
"""Adapters (and bases) that come later are counted together."""
OTHER: Final = "_other"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter that nobody reads
REGISTRY = CollectorRegistry()
PromT = TypeVar("PromT", Counter, Histogram)
SECONDS_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)


@dataclass(frozen=True, slots=True)
class Described:
    """One line of the table."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


TABLE: list[Described] = []


class Family(Generic[PromT]):
    """One metric; `of` gives its child for label values, without the client library's checks each time."""

    def __init__(self, metric: PromT) -> None:
        self._metric: PromT = metric
        self._children: dict[tuple[str, ...], PromT] = {}

    def of(self, *values: str) -> PromT:
        """Return the child for these values, in the order of the table's labels."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child


def _counter(name: str, meaning: str, *labels: str) -> Family[Counter]:
    TABLE.append(Described(name, "counter", labels, meaning))
    return Family(Counter(name, meaning, labels, registry=REGISTRY))


def _histogram(name: str, meaning: str, *labels: str) -> Family[Histogram]:
    TABLE.append(Described(name, "histogram", labels, meaning))
    return Family(Histogram(name, meaning, labels, buckets=SECONDS_BUCKETS, registry=REGISTRY))


def _gauge(name: str, meaning: str) -> Gauge:
    TABLE.append(Described(name, "gauge", (), meaning))
    return Gauge(name, meaning, registry=REGISTRY)


def _read(name: str, meaning: str, *labels: str) -> str:
    TABLE.append(Described(name, "gauge", labels, meaning))
    return name


REQUESTS = _counter(
    "lorafleet_gateway_requests_total",
    "Requests to the generation routes, by the status that the client got; 499 if it left first.",
    "base",
    "adapter",
    "code",
)
REQUEST_SECONDS = _histogram(
    "lorafleet_gateway_request_seconds", "From the arrival of a request to the end of its answer.", "base"
)
FIRST_BYTE_SECONDS = _histogram(
    "lorafleet_gateway_time_to_first_byte_seconds",
    "From the arrival of a request to the first byte that a pod answered it with.",
    "base",
)
IN_FLIGHT = _gauge("lorafleet_gateway_requests_in_flight", "Requests being answered.")
HELD_BYTES = _gauge("lorafleet_gateway_held_body_bytes", "Bodies of requests whose answers have not begun.")
ROUTED = _counter(
    "lorafleet_gateway_routed_total",
    "Requests sent to a pod, by why to this one: base, or where it held the adapter (device, host, disk, source, "
    "unlisted), or spill: the pods that hold it were too busy.",
    "base",
    "why",
)
RETRIES = _counter(
    "lorafleet_gateway_retries_total",
    "Requests offered to another pod, by why the one before did not take it: unreachable, broken, or its error code.",
    "base",
    "reason",
)
UPSTREAM_ERRORS = _counter(
    "lorafleet_gateway_upstream_errors_total",
    "Pods that failed a request: unreachable, broken (before the answer), cut (within it), silent (idle too long), "
    "or the 5xx status that they answered.",
    "base",
    "reason",
)
LOOKUPS = _counter(
    "lorafleet_gateway_lookups_total",
    "Names that the watch did not know or did not know as ready: found, missing, failed (the API server did not answer), "
    "limited (too many look-ups).",
    "result",
)
WATCH_RESTARTS = _counter(
    "lorafleet_gateway_watch_restarts_total",
    "Watches begun again, by kind and reason: ended (by the API server, as usual), expired (listed again), broken.",
    "kind",
    "reason",
)
POLL_FAILURES = _counter(
    "lorafleet_gateway_pod_poll_failures_total", "Pods that did not say what they hold when asked.", "base"
)
READY = _gauge("lorafleet_gateway_ready", "1 while /ready answers 200, else 0.")

ENDPOINTS = _read(
    "lorafleet_gateway_endpoints",
    "Pods of a base, by state: ready, unreachable (ready, but silent), not_ready.",
    "base",
    "state",
)
ADAPTERS = _read("lorafleet_gateway_adapters", "Adapters of a base that answer.", "base")
WATCH_HEARD = _read(
    "lorafleet_gateway_watch_last_heard_timestamp_seconds",
    "When the API server said something of a kind last, in Unix time; it does so about once a minute.",
    "kind",
)


class BoundedLabels:
    """Names for one label, at most so many of them."""

    def __init__(self, max_labels: int = MAX_LABELS) -> None:
        self._max_labels = max_labels
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        """Return the label value of a name."""
        if name not in self._known:
            if len(self._known) >= self._max_labels:
                return OTHER
            self._known.add(name)
        return name


BASES = BoundedLabels()
ADAPTER_NAMES = BoundedLabels()


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a gauge that is read at a scrape."""

    name: str
    labels: tuple[str, ...]
    value: float


class ClusterCollector(Collector):
    """Shows the gauges that are read, from whoever knows them."""

    def __init__(self, read: Callable[[], list[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the families for one scrape."""
        families: dict[str, GaugeMetricFamily] = {}
        for line in TABLE:
            if line.name in (ENDPOINTS, ADAPTERS, WATCH_HEARD):
                families[line.name] = GaugeMetricFamily(line.name, line.meaning, labels=line.labels)
        for reading in self._read():
            families[reading.name].add_metric(reading.labels, reading.value)
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: registering must not need a cluster."""
        return iter(())


def describe() -> str:
    """Return the table of all metrics in Markdown, for docs/reference/gateway-metrics.md."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for line in TABLE:
        labels = ", ".join(f"`{label}`" for label in line.labels)
        lines.append(f"| `{line.name}` | {line.kind} | {labels} | {line.meaning} |")
    return "\n".join(lines) + "\n"
