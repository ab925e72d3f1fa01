"""Metrics of keys, in the table of each program that asks for them. Labels are names of keys, never keys."""

from collections.abc import Iterator, Set
from contextlib import contextmanager

from lorafleet_common.keys.errors import RateLimited
from lorafleet_common.metrics import OTHER, BoundedLabels, MetricTable


class KeyMetrics:
    """What is counted of keys; `prefix` begins the names."""

    def __init__(self, table: MetricTable, prefix: str) -> None:
        self._labels = BoundedLabels(forget=lambda name: table.forget("key", name))
        self._known: frozenset[str] = frozenset()
        self._requests = table.counter(
            f"{prefix}key_requests_total",
            "Requests where keys are asked for, by the name of the key (empty: none that is known; beyond 100, and of a key "
            "that was removed while its request ran, `_other`) and the status that the client got (499 if it left first).",
            "key",
            "code",
        )
        self._tokens = table.counter(
            f"{prefix}key_tokens_total", "Tokens of prompts and answers that were counted for a key.", "key"
        )
        self._limited = table.counter(
            f"{prefix}key_limited_total", "Requests answered 429 for a limit of their key: requests, tokens, concurrency.",
            "key", "limit",
        )  # fmt: skip
        self._running = table.gauge(
            f"{prefix}key_requests_running", "Requests of a key that are being answered.", "key"
        )
        self._loaded = table.gauge(f"{prefix}keys", "Keys that are known.").of
        self._stale = table.gauge(
            f"{prefix}keys_stale",
            "1 while the file of keys cannot be read or is not valid, and the keys before are known.",
        ).of
        self._reloads = table.counter(
            f"{prefix}keys_reloads_total", "Changes of the file of keys, by result: taken, refused.", "result"
        )

    def request(self, name: str, status: int) -> None:
        """Count a request that has ended."""
        self._requests.of(self._label(name), str(status)).inc()

    def spent(self, name: str, num_tokens: int) -> None:
        """Count tokens."""
        if num_tokens:
            self._tokens.of(self._label(name)).inc(num_tokens)

    @contextmanager
    def limited(self, name: str) -> Iterator[None]:
        """Count what is refused within the context for a limit."""
        try:
            yield
        except RateLimited as refusal:
            self._limited.of(self._label(name), refusal.limit).inc()
            raise

    def running(self, name: str, number: int) -> None:
        """Set how many requests of a key run; those beyond the bound are not shown."""
        label = self._label(name)
        if label == name:
            self._running.of(label).set(number)

    def loaded(self, names: Set[str]) -> None:
        """Take note of the keys that are known, and drop the series of the others."""
        for name in self._known - names:
            self._labels.drop(name)
        self._known = frozenset(names)
        self._loaded().set(len(names))

    def reloaded(self, *, taken: bool) -> None:
        """Count a change of the file."""
        self._reloads.of("taken" if taken else "refused").inc()
        self.stale(is_stale=not taken)

    def stale(self, *, is_stale: bool) -> None:
        """Set whether the keys are those of an earlier file."""
        self._stale().set(is_stale)

    def _label(self, name: str) -> str:
        if name and name not in self._known:
            return OTHER
        return self._labels.of(name) if name else ""
