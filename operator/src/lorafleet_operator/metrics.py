"""The operator's metrics, in one table. docs/reference/operator.md lists them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lorafleet_contract.resources import AdapterCounts

REGISTRY = CollectorRegistry()

RECONCILES = Counter(
    "lorafleet_operator_reconciles", "Passes over a base model, by result.", ["result"], registry=REGISTRY
)
RECONCILE_SECONDS = Histogram(
    "lorafleet_operator_reconcile_seconds",
    "Time of a pass over a base model.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
    registry=REGISTRY,
)
QUEUE_LENGTH = Gauge("lorafleet_operator_queue_length", "Base models that wait for a pass.", registry=REGISTRY)
QUEUE_AGE = Gauge("lorafleet_operator_queue_oldest_seconds", "How long the first of them waits.", registry=REGISTRY)
ADMIN_SECONDS = Histogram(
    "lorafleet_operator_admin_request_seconds",
    "Time of a request to a pod's admin API, by what was asked and HTTP code.",
    ["verb", "code"],
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
    registry=REGISTRY,
)
RESOLVES = Counter(
    "lorafleet_operator_resolves", "Sources resolved by pods, by result: ok or a reason.", ["result"], registry=REGISTRY
)
STATUS_WRITES = Counter("lorafleet_operator_status_writes", "Statuses written, by kind.", ["kind"], registry=REGISTRY)
POD_WRITES = Counter(
    "lorafleet_operator_catalogue_writes", "Catalogue writes to pods, by result.", ["result"], registry=REGISTRY
)
MOVES = Counter(
    "lorafleet_operator_adapter_moves", "Adapters that a pod was newly told to keep resident.", registry=REGISTRY
)
ADAPTERS = Gauge(
    "lorafleet_operator_adapters",
    "LoraAdapters of a base model, by state.",
    ["namespace", "base", "state"],
    registry=REGISTRY,
)
RESYNC_TIME = Gauge(
    "lorafleet_operator_last_resync_timestamp_seconds",
    "When everything was listed last, in Unix time.",
    registry=REGISTRY,
)
LEADER = Gauge("lorafleet_operator_leader", "1 while this process leads.", registry=REGISTRY)


def count_adapters(base: tuple[str, str], counts: AdapterCounts) -> None:
    """Set how many adapters of a base there are; a base without any has no series."""
    for state, number in (("desired", counts.desired), ("ready", counts.ready), ("failed", counts.failed)):
        if counts.desired:
            ADAPTERS.labels(*base, state).set(number)
        else:
            ADAPTERS.remove(*base, state)
