"""A program's metrics as one table: name, kind, labels and meaning stand in it and nowhere else.

The reference pages are generated from the table; a label whose values users choose is bounded by `BoundedLabels`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

MAX_LABELS: Final = 100
"""Values of one bounded label at a time; what is beyond them is counted together."""
IDLE_SECONDS: Final = 600.0
"""A value that was not used for so long makes room for a new one."""
OTHER: Final = "_other"
LATENCY_BUCKETS: Final = (
    *(0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25),
    *(2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
)

Kind = Literal["counter", "gauge", "histogram"]
PromT = TypeVar("PromT", Counter, Gauge, Histogram)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter that nobody reads


@dataclass(frozen=True, slots=True)
class Described:
    """One line of the table; `labels` without those that every metric of the table has."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


class Family(Generic[PromT]):
    """One metric; `of` gives its child for label values without the client library's checks each time."""

    def __init__(self, metric: PromT, labels: tuple[str, ...], common: Callable[[], tuple[str, ...]]) -> None:
        self.metric: PromT = metric
        self._labels = labels
        self._common = common
        self._children: dict[tuple[str, ...], PromT] = {}

    def of(self, *values: str) -> PromT:
        """Return the child for these values, in the order of the table's labels."""
        child = self._children.get(values)
        if child is None:
            every = (*self._common(), *values)
            child = self._children[values] = self.metric.labels(*every) if every else self.metric
        return child

    def forget(self, label: str, value: str) -> None:
        """Remove the series whose `label` has `value`."""
        if label not in self._labels:
            return
        at = self._labels.index(label)
        for values in [values for values in self._children if values[at] == value]:
            del self._children[values]
            self.metric.remove(*self._common(), *values)


class MetricTable:
    """The metrics of one program, and the registry that shows them."""

    def __init__(self, *common_labels: str) -> None:
        self.registry = CollectorRegistry()
        self.lines: list[Described] = []
        self._families: list[Family[Counter] | Family[Gauge] | Family[Histogram]] = []
        self._common_labels = common_labels
        self._common_values: tuple[str, ...] = ("",) * len(common_labels)

    @property
    def common_values(self) -> tuple[str, ...]:
        """Values of the labels that every metric has."""
        return self._common_values

    def bind(self, *values: str) -> None:
        """Set the values of the common labels; once, before anything is counted."""
        assert len(values) == len(self._common_labels)
        self._common_values = values

    def counter(self, name: str, meaning: str, *labels: str) -> Family[Counter]:
        """Declare a counter; its name ends in `_total`."""
        self._line(name, "counter", meaning, labels)
        return self._family(Counter(name, meaning, (*self._common_labels, *labels), registry=self.registry), labels)

    def gauge(self, name: str, meaning: str, *labels: str) -> Family[Gauge]:
        """Declare a gauge."""
        self._line(name, "gauge", meaning, labels)
        return self._family(Gauge(name, meaning, (*self._common_labels, *labels), registry=self.registry), labels)

    def histogram(
        self, name: str, meaning: str, *labels: str, buckets: tuple[float, ...] = LATENCY_BUCKETS
    ) -> Family[Histogram]:
        """Declare a histogram."""
        self._line(name, "histogram", meaning, labels)
        every = (*self._common_labels, *labels)
        return self._family(Histogram(name, meaning, every, buckets=buckets, registry=self.registry), labels)

    def read(self, name: str, kind: Kind, meaning: str, *labels: str) -> str:
        """Declare a metric that a collector reads at each scrape; return its name."""
        self._line(name, kind, meaning, labels)
        return name

    def line(self, name: str) -> Described:
        """Return the line of a metric."""
        return next(line for line in self.lines if line.name == name)

    def forget(self, label: str, value: str) -> None:
        """Remove all series whose `label` has `value`."""
        for family in self._families:
            family.forget(label, value)

    def markdown(self, labels_of: Callable[[Described], Iterable[str]] = lambda line: line.labels) -> str:
        """Return the table in Markdown, for the reference pages."""
        lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
        for line in self.lines:
            labels = ", ".join(f"`{label}`" for label in labels_of(line))
            lines.append(f"| `{line.name}` | {line.kind} | {labels} | {line.meaning} |")
        return "\n".join(lines) + "\n"

    def _line(self, name: str, kind: Kind, meaning: str, labels: tuple[str, ...]) -> None:
        assert kind != "counter" or name.endswith("_total"), name
        self.lines.append(Described(name, kind, labels, meaning))

    def _family(self, metric: PromT, labels: tuple[str, ...]) -> Family[PromT]:
        family = Family(metric, labels, lambda: self._common_values)
        self._families.append(family)
        return family


class BoundedLabels:
    """Values of one label: at most so many at a time, each kept while it is used.

    A new value beyond the limit takes the place of the one that was used longest ago if that is idle or the new one is
    `important`; otherwise it is counted as `_other`.
    """

    def __init__(
        self,
        max_labels: int = MAX_LABELS,
        *,
        forget: Callable[[str], None] = lambda _: None,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_labels = max_labels
        self._forget = forget
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._used_at: OrderedDict[str, float] = OrderedDict()

    def of(self, name: str, *, important: bool = False) -> str:
        """Return the label value of a name, which counts as used now."""
        if name not in self._used_at and not self._has_room(important=important):
            return OTHER
        self._used_at[name] = self._clock()
        self._used_at.move_to_end(name)
        return name

    def drop(self, name: str) -> None:
        """Forget a value that will not come again; the next new one takes its place."""
        if self._used_at.pop(name, None) is not None:
            self._forget(name)

    def _has_room(self, *, important: bool) -> bool:
        if len(self._used_at) < self._max_labels:
            return True
        oldest, used_at = next(iter(self._used_at.items()))
        if not important and self._clock() - used_at < self._idle_seconds:
            return False
        del self._used_at[oldest]
        self._forget(oldest)
        return True
