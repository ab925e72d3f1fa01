"""What one key has used of its limits. Pure: whoever calls gives the time."""

import math
from typing import Final

from lorafleet_common.keys.bucket import Bucket
from lorafleet_common.keys.errors import RateLimited
from lorafleet_contract.keys import KeyEntry

CONCURRENT_RETRY_SECONDS: Final = 1.0
"""When a request ends nobody knows."""
LIMIT_HEADERS: Final = tuple(
    f"x-ratelimit-{part}-{what}" for what in ("requests", "tokens") for part in ("limit", "remaining", "reset")
)
"""What tells the limits of a key, in OpenAI's form."""


class Quota:
    """The limits of one key, by its name, and what of them is used; follows changes of its entry."""

    def __init__(self, entry: KeyEntry, now: float) -> None:
        self.name = entry.name
        self.num_running = 0
        self._max_running: int | None = None
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.follow(entry, now)

    def follow(self, entry: KeyEntry, now: float) -> None:
        """Hold the limits of a changed entry from now on; what was used stays used."""
        self._max_running = entry.max_concurrent_requests
        self._requests = _resized(self._requests, entry.requests_per_minute, now)
        self._tokens = _resized(self._tokens, entry.tokens_per_minute, now)

    def enter(self, now: float) -> None:
        """Count a request as running.

        Raises:
            RateLimited: too many run, or came within a minute.
        """
        if self._max_running is not None and self.num_running >= self._max_running:
            message = f"the key {self.name} has {self._max_running} requests running, which is all it may have"
            raise RateLimited(message, limit="concurrency", retry_after_seconds=CONCURRENT_RETRY_SECONDS)
        self._need(self._requests, 1, now, "requests")
        if self._requests is not None:
            self._requests.take(1, now)
        self.num_running += 1

    def leave(self) -> None:
        """Count a request as ended."""
        self.num_running -= 1
        assert self.num_running >= 0, "more requests left than entered"

    def reserve(self, num_tokens: int, now: float) -> None:
        """Hold back tokens for a request until it is known how many it used.

        Raises:
            RateLimited: so many are not there. One that asks for more than a minute has needs a full minute.
        """
        self._need(self._tokens, max(1, num_tokens), now, "tokens")
        self.take(num_tokens, now)

    def take(self, num_tokens: int, now: float) -> None:
        """Take tokens, also into debt; a negative number is given back."""
        if self._tokens is not None:
            self._tokens.take(num_tokens, now)

    def headers(self, now: float) -> dict[str, str]:
        """Return the limits as headers in OpenAI's form, those that there are."""
        found: dict[str, str] = {}
        for names, bucket in ((LIMIT_HEADERS[:3], self._requests), (LIMIT_HEADERS[3:], self._tokens)):
            if bucket is not None:
                left = max(0, math.floor(bucket.level(now)))
                values = str(bucket.per_minute), str(left), duration(bucket.full_in_seconds(now))
                found |= zip(names, values, strict=True)
        return found

    def _need(self, bucket: Bucket | None, amount: int, now: float, what: str) -> None:
        seconds = bucket.wait_seconds(amount, now) if bucket is not None else 0.0
        if bucket is None or not seconds:
            return
        left = max(0, math.floor(bucket.level(now)))
        message = (
            f"the key {self.name} may use {bucket.per_minute} {what} a minute and has {left} left where {amount} "
            f"{'is' if amount == 1 else 'are'} needed; try again in {duration(seconds)}"
        )
        raise RateLimited(message, limit=what, retry_after_seconds=seconds)


def duration(seconds: float) -> str:
    """Return a time in OpenAI's form, rounded up: `250ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(math.ceil(milliseconds / 1000), 60)
    return f"{minutes}m{rest}s"


def _resized(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now)
    bucket.resize(per_minute, now)
    return bucket
