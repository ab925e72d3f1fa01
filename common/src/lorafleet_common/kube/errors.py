"""Errors of the Kubernetes client.

KubeError                   the API server did not do it            retryable
├── KubeRefused             401, 403, 405 and other 4xx             no, until rights or definitions change
├── KubeNotFound            404                                     no
├── KubeConflict            409                                     yes, after looking again
├── KubeInvalid             400, 422 and 500 of an apply            no: the object has to change
└── KubeUnavailable         429, 5xx, no connection, timeout        yes
    └── KubeExpired         410: too old to go on from              yes, from the beginning
"""

from typing import ClassVar


class KubeError(Exception):
    """The API server did not do what it was asked."""

    retryable: ClassVar[bool] = False

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else f"{reason}: {message}")
        self.status = status
        """HTTP code; 0 without an answer."""
        self.reason = reason
        self.message = message


class KubeRefused(KubeError):
    """It will be refused again until somebody changes rights or definitions."""


class KubeNotFound(KubeError):
    """404: there is no such object, or no such kind."""


class KubeConflict(KubeError):
    """409: the object is another one by now, or exists already."""

    retryable = True


class KubeInvalid(KubeError):
    """The object itself is refused."""


class KubeUnavailable(KubeError):
    """Nothing is known; trying again may help."""

    retryable = True


class KubeExpired(KubeUnavailable):
    """410: the resourceVersion or the continue token is too old."""
