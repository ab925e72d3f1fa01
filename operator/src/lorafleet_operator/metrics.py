"""The operator's metrics: name, labels and meaning stand here and nowhere else; docs/reference/operator.md is made from TABLE."""

from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from lorafleet_contract.resources import AdapterCounts

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter that nobody reads
REGISTRY: Final = CollectorRegistry()


@dataclass(frozen=True, slots=True)
class Described:
    """One line of the table."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


TABLE: Final[list[Described]] = []


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    TABLE.append(Described(f"{name}_total", "counter", labels, meaning))
    return Counter(name, meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    TABLE.append(Described(name, "gauge", labels, meaning))
    return Gauge(name, meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    TABLE.append(Described(name, "histogram", labels, meaning))
    return Histogram(name, meaning, labels, buckets=buckets, registry=REGISTRY)


RECONCILES = _counter(
    "lorafleet_operator_reconciles",
    "Passes over a base model, by result: ok; partly (a pod did not take its catalogue); failed (the API server); fault (of ours).",
    "result",
)
RECONCILE_SECONDS = _histogram(
    "lorafleet_operator_reconcile_seconds",
    "Time of a pass over a base model.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
QUEUE_LENGTH = _gauge("lorafleet_operator_queue_length", "Base models that wait for a pass.")
QUEUE_AGE = _gauge("lorafleet_operator_queue_oldest_seconds", "How long the first of them has waited.")
ADMIN_SECONDS = _histogram(
    "lorafleet_operator_admin_request_seconds",
    "Time of a request to a pod's admin API, by what was asked and HTTP code; none is no answer.",
    "verb",
    "code",
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
RESOLVES = _counter("lorafleet_operator_resolves", "Sources resolved by pods, by result: ok or a reason.", "result")
STATUS_WRITES = _counter("lorafleet_operator_status_writes", "Statuses written, by kind.", "kind")
POD_WRITES = _counter(
    "lorafleet_operator_catalogue_writes", "Catalogue writes to pods, by result: ok, failed.", "result"
)
MOVES = _counter("lorafleet_operator_adapter_moves", "Adapters that a pod was newly told to keep resident.")
ADAPTERS = _gauge(
    "lorafleet_operator_adapters",
    "LoraAdapters of a base model: desired (all), ready, failed (Stalled).",
    "namespace",
    "base",
    "state",
)
RESYNC_TIME = _gauge(
    "lorafleet_operator_last_resync_timestamp_seconds", "When everything was listed last, in Unix time."
)
WATCH_TIME = _gauge(
    "lorafleet_operator_watch_timestamp_seconds",
    "When a watch was last heard to begin, in Unix time; each is begun anew every minute.",
    "kind",
)
LEADER = _gauge("lorafleet_operator_leader", "1 while this process leads.")


def count_adapters(base: tuple[str, str], counts: AdapterCounts) -> None:
    """Set how many adapters of a base there are; a base without any has no series."""
    for state, number in (("desired", counts.desired), ("ready", counts.ready), ("failed", counts.failed)):
        if counts.desired:
            ADAPTERS.labels(*base, state).set(number)
        else:
            ADAPTERS.remove(*base, state)


def describe() -> str:
    """Return the table in Markdown."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for line in TABLE:
        labels = ", ".join(f"`{label}`" for label in line.labels)
        lines.append(f"| `{line.name}` | {line.kind} | {labels} | {line.meaning} |")
    return "\n".join(lines) + "\n"
