"""Metrics by revision while several share an adapter's traffic: the evidence of a rollout, read at each scrape."""

from collections.abc import Iterator
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from lorafleet_contract.evidence import Latency
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.directory import Directory
from lorafleet_gateway.front.evidence import BOUNDS_SECONDS, Ledger, RevisionKey

MAX_ROLLOUTS: Final = 50
"""Adapters that have such metrics at a time; of more, the first by name."""
OK: Final = "ok"


class RolloutCollector(Collector):
    """Shows what the ledger has of the revisions that share an adapter's traffic now."""

    def __init__(self, directory: Directory, ledger: Ledger) -> None:
        self._directory = directory
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """Yield the families for one scrape."""
        counted, first_byte = map(metrics.METRICS.line, (metrics.REVISION_REQUESTS, metrics.REVISION_FIRST_BYTE))
        requests = CounterMetricFamily(counted.name, counted.meaning, labels=counted.labels)
        latencies = HistogramMetricFamily(first_byte.name, first_byte.meaning, labels=first_byte.labels)
        for adapter in self._directory.sharing()[:MAX_ROLLOUTS]:
            assert adapter.name is not None
            base = self._directory.base(adapter.base_key)
            base_name = (base.name if base is not None else None) or adapter.base_key[1]
            for share in adapter.traffic:
                row = self._ledger.counted(RevisionKey(adapter.base_key, adapter.name, share.revision))
                if row is None:
                    continue
                labels = (metrics.BASES.of(base_name), adapter.name, row.revision)
                outcomes = {OK: row.num_requests - sum(row.errors.values()), **row.errors}
                for outcome, number in outcomes.items():
                    requests.add_metric((*labels, outcome), number)
                latencies.add_metric(labels, buckets_of(row.first_byte), row.first_byte.sum_seconds)
        yield requests
        yield latencies

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: registering must not need a cluster."""
        return iter(())


def buckets_of(latency: Latency) -> list[tuple[str, float]]:
    """Return a histogram as Prometheus has it: bound and how many were at most so long, the last of them without a bound."""
    total, found = 0, []
    for bound, number in zip((*BOUNDS_SECONDS, float("inf")), latency.buckets, strict=True):
        total += number
        text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
        found.append((text, float(total)))
    return found
