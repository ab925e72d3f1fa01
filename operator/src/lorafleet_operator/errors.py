"""Errors of the operator; options raise lorafleet_common.errors.ConfigError.

OperatorError
├── LeaseLost                   another operator leads; the process ends
├── WatchEnded                  kopf gave up, or an essential task ended; the process ends
├── WatchSilent                 a watch does not run; all are begun again
├── NotOurs                     an object of that name belongs to somebody else
├── InvalidSpec                 a spec passed the API server and means nothing
├── GatewaySilent               a gateway did not say what it counted: nothing is known
└── AdminError                  a pod did not do it
    ├── PodUnreachable          no connection, timeout, 5xx without a body: nothing is known
    └── PodRefused              the pod answered with a reason; carries whether trying again may help

KubeError                       of lorafleet_common.kube.errors: the API server did not do it
└── NotLeading                  nothing was sent: the Lease is not held; retryable
"""

from lorafleet_common.kube.errors import KubeError
from lorafleet_contract.admin import StartProgress


class OperatorError(Exception):
    """The root of the operator's own errors."""

    retryable = False


class LeaseLost(OperatorError):
    """The Lease could not be renewed in time, or somebody else holds it."""


class WatchEnded(OperatorError):
    """Something without which nothing converges has ended."""


class WatchSilent(OperatorError):
    """A watch was not heard to begin in time."""


class NotLeading(KubeError):
    """The Lease was not renewed in time: another leader may have written since."""

    retryable = True


class NotOurs(OperatorError):
    """An object that the operator would apply exists and belongs to somebody else."""


class InvalidSpec(OperatorError):
    """A spec passed the API server and cannot be carried out."""


class GatewaySilent(OperatorError):
    """A gateway did not answer, or not with what makes sense."""

    retryable = True


class AdminError(OperatorError):
    """A pod did not do what it was asked."""


class PodUnreachable(AdminError):
    """No answer: nothing is known."""

    retryable = True


class PodRefused(AdminError):
    """The pod answered with a reason."""

    def __init__(
        self, status: int, reason: str, message: str, *, retryable: bool, start: StartProgress | None = None
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retryable = retryable
        self.start = start
        """How far it is, where its base model is not loaded yet."""
