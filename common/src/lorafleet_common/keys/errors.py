"""Why a key is not enough for a request. Gateway and pod answer them in the shapes of their APIs.

KeyRefusal
├── Unauthorized     401    no key, or none that is known
├── ModelForbidden   403    the key may not name this model; said before anybody looks whether there is one
└── RateLimited      429    the key has used what it may use
"""


class KeyRefusal(Exception):
    """Root of the tree."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Unauthorized(KeyRefusal):
    """No key, or none that is known; `challenge` is the header WWW-Authenticate."""

    def __init__(self, message: str, *, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


class ModelForbidden(KeyRefusal):
    """The key may not name this model."""


class RateLimited(KeyRefusal):
    """The key has used what it may use; `limit` says of what."""

    def __init__(self, message: str, *, limit: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds
