"""Errors of the operator; options raise lorafleet_common.errors.ConfigError.

OperatorError
├── LeaseLost                   another operator leads; the process ends
├── WatchEnded                  kopf gave up, or an essential task ended; the process ends
├── WatchSilent                 a watch does not run; all are begun again
├── KubeError                   the API server did not do it            retryable
│   ├── KubeNotFound            404                                     no
│   ├── KubeConflict            409                                     yes, after looking again
│   ├── KubeInvalid             400, 422 and 500 of an apply            no: the object has to change
│   ├── NotLeading              nothing was sent: the Lease is not held yes
│   └── KubeUnavailable         410, 429, 5xx, no connection, timeout   yes
├── NotOurs                     an object of that name belongs to somebody else
├── InvalidSpec                 a spec passed the API server and means nothing
└── AdminError                  a pod did not do it
    ├── PodUnreachable          no connection, timeout, 5xx without a body: nothing is known
    └── PodRefused              the pod answered with a reason; carries whether trying again may help
"""


class OperatorError(Exception):
    """The root of the operator's own errors."""

    retryable = False


class LeaseLost(OperatorError):
    """The Lease could not be renewed in time, or somebody else holds it."""


class WatchEnded(OperatorError):
    """Something without which nothing converges has ended."""


class WatchSilent(OperatorError):
    """A watch was not heard to begin in time."""


class KubeError(OperatorError):
    """The API server did not do what it was asked."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        """HTTP code; 0 without an answer."""
        self.reason = reason
        self.message = message


class KubeNotFound(KubeError):
    """404."""


class KubeConflict(KubeError):
    """409: the object is another one by now, or exists already."""

    retryable = True


class KubeInvalid(KubeError):
    """The object itself is refused."""


class KubeUnavailable(KubeError):
    """Nothing is known; trying again may help."""

    retryable = True


class NotLeading(KubeError):
    """The Lease was not renewed in time: whoever leads may have written since."""

    retryable = True


class NotOurs(OperatorError):
    """An object that the operator would apply exists and belongs to somebody else."""


class InvalidSpec(OperatorError):
    """A spec passed the API server and cannot be carried out."""


class AdminError(OperatorError):
    """A pod did not do what it was asked."""


class PodUnreachable(AdminError):
    """No answer: nothing is known."""

    retryable = True


class PodRefused(AdminError):
    """The pod answered with a reason."""

    def __init__(self, status: int, reason: str, message: str, *, retryable: bool) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retryable = retryable
