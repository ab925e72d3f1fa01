"""The operator's metrics: name, labels and meaning stand here and nowhere else; docs/reference/operator.md is made from TABLE."""

from collections.abc import Mapping
from typing import Final

from lorafleet_common.metrics import MetricTable
from lorafleet_common.sockets import WHY_ENDED
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterCounts, AdapterStatus
from lorafleet_contract.rollout import RolloutResult

METRICS: Final = MetricTable()
TABLE, REGISTRY = METRICS.lines, METRICS.registry

RECONCILES = METRICS.counter(
    "lorafleet_operator_reconciles_total",
    "Passes over a base model, by result: ok; partly (a pod did not take its catalogue); failed (the API server); fault (of ours).",
    "result",
).metric
RECONCILE_SECONDS = METRICS.histogram(
    "lorafleet_operator_reconcile_seconds",
    "Time of a pass over a base model.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
).metric
QUEUE_LENGTH = METRICS.gauge("lorafleet_operator_queue_length", "Base models that wait for a pass.").metric
QUEUE_AGE = METRICS.gauge("lorafleet_operator_queue_oldest_seconds", "How long the first of them has waited.").metric
ADMIN_SECONDS = METRICS.histogram(
    "lorafleet_operator_admin_request_seconds",
    "Time of a request to a pod's admin API, by what was asked and HTTP code; none is no answer.",
    "verb",
    "code",
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
).metric
CONNECTIONS_ENDED = METRICS.counter(
    "lorafleet_operator_connections_ended_total",
    f"Connections to the port of probes and metrics that the operator ended, by why: {WHY_ENDED}.",
    "reason",
).metric
RESOLVES = METRICS.counter(
    "lorafleet_operator_resolves_total", "Sources resolved by pods, by result: ok or a reason.", "result"
).metric
STATUS_WRITES = METRICS.counter("lorafleet_operator_status_writes_total", "Statuses written, by kind.", "kind").metric
POD_WRITES = METRICS.counter(
    "lorafleet_operator_catalogue_writes_total", "Catalogue writes to pods, by result: ok, failed.", "result"
).metric
MOVES = METRICS.counter(
    "lorafleet_operator_adapter_moves_total", "Adapters that a pod was newly told to keep resident."
).metric
ADAPTERS = METRICS.gauge(
    "lorafleet_operator_adapters",
    "LoraAdapters of a base model: desired (all), ready, failed (Stalled).",
    "namespace",
    "base",
    "state",
).metric
DESIRED_REPLICAS = METRICS.gauge(
    "lorafleet_operator_desired_replicas",
    "Pods that autoscaling asks for; of bases with spec.autoscaling.",
    "namespace",
    "base",
).metric
RESYNC_TIME = METRICS.gauge(
    "lorafleet_operator_last_resync_timestamp_seconds", "When everything was listed last, in Unix time."
).metric
WATCH_TIME = METRICS.gauge(
    "lorafleet_operator_watch_timestamp_seconds",
    "When a watch was last heard to begin, in Unix time; each is begun anew every minute.",
    "kind",
).metric
NAMESPACE_REFUSED = METRICS.gauge(
    "lorafleet_operator_namespace_refused",
    "1 for a namespace that is to be served and that the API server does not show: it is gone, or rights are missing.",
    "namespace",
).metric
BASES_LEFT = METRICS.gauge(
    "lorafleet_operator_bases_left",
    "Base models that are left alone because another operator works on them, by namespace/Lease of that one.",
    "operator",
).metric
VERIFICATIONS = METRICS.counter(
    "lorafleet_operator_verifications_total",
    "New revisions that were asked the questions of spec.verify, by result: passed; failed; unanswered (asked again).",
    "result",
).metric
GATEWAYS = METRICS.gauge(
    "lorafleet_operator_gateways",
    "Gateways that are asked, for a rollout or a base that may go to zero: heard, silent (10 s without an answer).",
    "state",
).metric
EVIDENCE_AGE = METRICS.gauge(
    "lorafleet_operator_gateway_evidence_age_seconds",
    "How old the oldest of their last answers is; 0 while none is asked.",
).metric
LEADER = METRICS.gauge("lorafleet_operator_leader", "1 while this process leads.").metric


ROLLOUT_WEIGHT = METRICS.gauge(
    "lorafleet_operator_rollout_weight",
    "Percent of the requests for an adapter that the revision gets which is rolled out by steps; while there is one.",
    "namespace",
    "base",
    "adapter",
).metric
ROLLOUTS = METRICS.counter(
    "lorafleet_operator_rollouts_total",
    "Rollouts by steps that have ended, by result: Promoted, RolledBack, Superseded; and by why one was rolled back.",
    "result",
    "reason",
).metric
for _result, _reason in (
    (RolloutResult.PROMOTED, ""),
    (RolloutResult.SUPERSEDED, ""),
    (RolloutResult.ROLLED_BACK, Reason.ANALYSIS_FAILED),
    (RolloutResult.ROLLED_BACK, Reason.PROGRESS_DEADLINE_EXCEEDED),
    (RolloutResult.ROLLED_BACK, Reason.ABORTED),
):
    ROLLOUTS.labels(_result, _reason)  # a series that begins at one is no increase to Prometheus


def count_results(before: AdapterStatus, after: AdapterStatus) -> None:
    """Count the rollouts that end with a change of status."""
    for entry in after.history:
        if entry.result is not None and entry not in before.history:
            ROLLOUTS.labels(entry.result, entry.reason or "").inc()


class RolloutWeights:
    """The series of rollouts that are under way."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], frozenset[str]] = {}

    def tell(self, base: tuple[str, str], weights: Mapping[str, int]) -> None:
        """Set the weights of the adapters of a base, by served name; those that are not named have no series."""
        for adapter in self._told.pop(base, frozenset()) - weights.keys():
            ROLLOUT_WEIGHT.remove(*base, adapter)
        for adapter, weight in weights.items():
            ROLLOUT_WEIGHT.labels(*base, adapter).set(weight)
        if weights:
            self._told[base] = frozenset(weights)


def count_adapters(base: tuple[str, str], counts: AdapterCounts) -> None:
    """Set how many adapters of a base there are; a base without any has no series."""
    for state, number in (("desired", counts.desired), ("ready", counts.ready), ("failed", counts.failed)):
        if counts.desired:
            ADAPTERS.labels(*base, state).set(number)
        else:
            ADAPTERS.remove(*base, state)


def describe() -> str:
    """Return the table in Markdown."""
    return METRICS.markdown()
