"""A token bucket that may be in debt. Pure: whoever calls gives the time."""

from typing import Final

MINUTE_SECONDS: Final = 60.0


class Bucket:
    """Holds at most `per_minute` and is refilled with as much within a minute.

    Between any two moments `t` seconds apart at most `per_minute * (1 + t / 60)` can be taken by whoever waits as told.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """Return what is left; less than nothing where more was taken."""
        elapsed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._level = min(self.per_minute, self._level + elapsed * self._rate)
        return self._level

    def resize(self, per_minute: int, now: float) -> None:
        """Hold another number from now on; what was taken stays taken."""
        taken = self.per_minute - self.level(now)
        self.per_minute = per_minute
        self._level = per_minute - taken

    def take(self, amount: float, now: float) -> None:
        """Take an amount, also into debt; a negative one is given back."""
        self._level = min(self.per_minute, self.level(now) - amount)

    def wait_seconds(self, amount: float, now: float) -> float:
        """Return how long it is until an amount is there. A full bucket is enough for any amount."""
        missing = min(amount, self.per_minute) - self.level(now)
        return max(0.0, missing / self._rate)

    def full_in_seconds(self, now: float) -> float:
        """Return how long it is until the bucket is full, if nothing is taken."""
        return (self.per_minute - self.level(now)) / self._rate

    @property
    def _rate(self) -> float:
        return self.per_minute / MINUTE_SECONDS
