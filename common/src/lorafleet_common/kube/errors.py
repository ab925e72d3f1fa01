"""Errors of the Kubernetes client.

KubeError                   the API server did not do it
├── KubeExpired             410: too old to go on from; list again
├── KubeRefused             401, 403, 404…: RBAC or a missing definition
└── KubeUnavailable         429, 5xx, no connection, timeout
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


class KubeExpired(KubeError):
    """410: the resourceVersion is too old."""


class KubeRefused(KubeError):
    """It will be refused again until somebody changes rights or definitions."""


class KubeUnavailable(KubeError):
    """Nothing is known; trying again may help."""

    retryable = True
