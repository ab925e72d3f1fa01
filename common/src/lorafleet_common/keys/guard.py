"""Who asks: finds the entry of a key, and holds a request to what the entry allows. No I/O."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lorafleet_common.keys.errors import ModelForbidden, Unauthorized
from lorafleet_common.keys.metrics import KeyMetrics
from lorafleet_common.keys.quota import Quota
from lorafleet_contract.keys import HASH_PREFIX, KeyEntry, KeyList

KEY_PREFIX: Final = "lf-"
MAX_KEY_CHARS: Final = 512
CHALLENGE: Final = 'Bearer realm="lorafleet"'
WRONG_KEY: Final = f'{CHALLENGE}, error="invalid_token"'
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def new_key() -> str:
    """Return a key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return what the file keeps of a key."""
    return HASH_PREFIX + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Grant:
    """One request that a key was enough for, until it ends."""

    def __init__(self, quota: Quota | None, metrics: KeyMetrics, clock: Callable[[], float]) -> None:
        self._quota = quota
        self._metrics = metrics
        self._clock = clock
        self._num_reserved = 0
        self._num_spent = 0

    @property
    def counts_tokens(self) -> bool:
        """Whether anybody wants to know how many tokens are used."""
        return self._quota is not None

    def reserve(self, num_tokens: int) -> None:
        """Hold back tokens, by estimate, until the end of the request.

        Raises:
            RateLimited: the key does not have so many now.
        """
        if self._quota is not None:
            with self._metrics.limited(self._quota.name):
                self._quota.reserve(num_tokens, self._clock())
            self._num_reserved += num_tokens

    def spend(self, num_tokens: int) -> None:
        """Say how many tokens were used; nothing is held back for them any longer."""
        self._num_spent += num_tokens

    def settle(self) -> None:
        """Replace what was held back by what was used."""
        if self._quota is not None:
            self._quota.take(self._num_spent - self._num_reserved, self._clock())
            self._metrics.spent(self._quota.name, self._num_spent)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request; `entry` is None where no keys are asked for."""

    entry: KeyEntry | None
    _quota: Quota | None
    _metrics: KeyMetrics
    _clock: Callable[[], float]

    @property
    def name(self) -> str:
        """Of the key; empty where none is asked for."""
        return self.entry.name if self.entry is not None else ""

    def may_use(self, model: str) -> bool:
        """Whether it may name a model."""
        return self.entry is None or self.entry.may_use(model)

    def check_model(self, model: str) -> None:
        """Check that it may name a model, before anybody looks whether there is one.

        Raises:
            ModelForbidden: it may not.
        """
        if not self.may_use(model):
            raise ModelForbidden(f"the key {self.name} does not have access to the model {model!r}")

    @contextmanager
    def request(self) -> Iterator[Grant]:
        """Count a request as running until the context is left, whatever ends it.

        Raises:
            RateLimited: too many run, or came within a minute.
        """
        quota = self._quota
        grant = Grant(quota, self._metrics, self._clock)
        if quota is None:
            yield grant
            return
        with self._metrics.limited(quota.name):
            quota.enter(self._clock())
        self._metrics.running(quota.name, quota.num_running)
        try:
            yield grant
        finally:
            grant.settle()
            quota.leave()
            self._metrics.running(quota.name, quota.num_running)

    def limit_headers(self) -> Mapping[str, str]:
        """Return the headers of an answer that tell the limits and what is left of them now."""
        return self._quota.headers(self._clock()) if self._quota is not None else NO_HEADERS


class Guard:
    """Knows the keys of the moment. Without a list nobody is asked for one."""

    def __init__(
        self, keys: KeyList | None, metrics: KeyMetrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self.anybody = Caller(None, None, metrics, clock)
        """Whose requests are let through without a key."""
        self._entries: dict[str, KeyEntry] = {}
        """By hash: the time of a look-up tells something of hashes at most, and from a hash no key can be found."""
        self._quotas: dict[str, Quota] = {}
        self.asks = keys is not None
        """Whether requests need a key."""
        if keys is not None:
            self.replace(keys)

    def replace(self, keys: KeyList) -> None:
        """Take a new list. A name that stays keeps what it has used; requests of one that leaves go on to their end.

        What they use is still of that name, should it come back.
        """
        now = self._clock()
        names = {entry.name for entry in keys.keys}
        for entry in keys.keys:
            quota = self._quotas.get(entry.name)
            if quota is None:
                self._quotas[entry.name] = Quota(entry, now)
            else:
                quota.follow(entry, now)
        kept = self._quotas.items()
        self._quotas = {name: quota for name, quota in kept if name in names or quota.num_running}
        self._entries = {one: entry for entry in keys.keys for one in entry.hashes}
        self._metrics.loaded(names)

    def identify(self, authorization: str | None) -> Caller:
        """Return whose request has this header Authorization.

        Raises:
            Unauthorized: it has no key, or none that is known.
        """
        if not self.asks:
            return self.anybody
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            message = "this API needs a key, in the header Authorization: Bearer KEY"
            raise Unauthorized(message, challenge=CHALLENGE)
        given = hash_of(key[: MAX_KEY_CHARS + 1])
        entry = self._entries.get(given)
        if entry is None or not any(hmac.compare_digest(given, one) for one in entry.hashes):
            raise Unauthorized("the key of this request is not known", challenge=WRONG_KEY)
        return Caller(entry, self._quotas[entry.name], self._metrics, self._clock)

    def count(self, name: str, status: int) -> None:
        """Count a request that has ended, by the name of its key and the status that the client got."""
        self._metrics.request(name, status)
