"""Labels whose values users choose: bounded, kept by use, and gone when they are not used."""

from prometheus_client import generate_latest

from lorafleet_common.metrics import OTHER, BoundedLabels, MetricTable


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_labels_are_bounded() -> None:
    labels = BoundedLabels(max_labels=2)
    assert [labels.of(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]


def test_the_label_used_longest_ago_makes_room_once_it_is_idle() -> None:
    clock, gone = Clock(), list[str]()
    labels = BoundedLabels(max_labels=2, forget=gone.append, idle_seconds=10, clock=clock)
    labels.of("deleted"), labels.of("busy")
    clock.now = 9
    assert (labels.of("busy"), labels.of("new")) == ("busy", OTHER)
    clock.now = 11
    assert labels.of("new") == "new"
    assert gone == ["deleted"]
    assert labels.of("deleted") == OTHER, "busy and new are in use"


def test_an_important_label_gets_room_at_once() -> None:
    gone = list[str]()
    labels = BoundedLabels(max_labels=2, forget=gone.append)
    labels.of("a"), labels.of("b"), labels.of("a")
    assert labels.of("in-a-rollout", important=True) == "in-a-rollout"
    assert gone == ["b"]


def test_a_forgotten_label_leaves_no_series() -> None:
    table = MetricTable("base")
    table.bind("llama")
    requests = table.counter("requests_total", "Requests.", "adapter", "code")
    seconds = table.histogram("seconds", "Time.", "adapter", buckets=(1.0,))
    untouched = table.gauge("untouched", "Something else.", "code")
    for adapter in ("a", "b"):
        requests.of(adapter, "200").inc()
        requests.of(adapter, "500").inc()
        seconds.of(adapter).observe(0.5)
    untouched.of("a").set(1)
    table.forget("adapter", "a")
    text = generate_latest(table.registry).decode()
    assert 'adapter="a"' not in text
    assert text.count('adapter="b",base="llama"') + text.count('adapter="b"') > 2
    assert 'untouched{base="llama",code="a"} 1.0' in text
    requests.of("a", "200").inc()
    assert 'requests_total{adapter="a",base="llama",code="200"} 1.0' in generate_latest(table.registry).decode()


def test_the_table_says_what_the_registry_shows() -> None:
    table = MetricTable()
    table.counter("things_total", "Things.", "kind")
    table.read("level", "gauge", "How high.")
    assert table.markdown().splitlines()[2:] == [
        "| `things_total` | counter | `kind` | Things. |",
        "| `level` | gauge |  | How high. |",
    ]
