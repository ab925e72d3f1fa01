"""What comes of offering a request to a pod, other than an answer."""

from dataclasses import dataclass
from typing import Final

from multidict import CIMultiDictProxy

from lorafleet_contract.openai import ErrorCode
from lorafleet_gateway.errors import GatewayError

REFUSAL_STATUSES: Final = frozenset({404, 424, 429, 503})
REFUSALS: Final = frozenset(
    {
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.REVISION_NOT_FOUND,
        ErrorCode.ADAPTER_FAILED,
        ErrorCode.ADAPTER_LOADING,
        ErrorCode.OVERLOADED,
        ErrorCode.NOT_READY,
        ErrorCode.DRAINING,
    }
)
"""Error codes by which a pod says that it did not begin with the request: another pod may take it."""


class NotTaken(GatewayError):
    """A pod did not answer the request; `reason` is the label of metrics."""

    reason = ""


class Unreachable(NotTaken):
    """No connection: nothing was sent."""

    reason = "unreachable"


class Broken(NotTaken):
    """The connection broke after the request had been sent and before an answer: whether it was executed is unknown."""

    reason = "broken"


class Silent(NotTaken):
    """Nothing came for too long."""

    reason = "silent"


class Cut(GatewayError):
    """The connection broke within the answer."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer by which a pod says that it did not begin with the request."""

    code: ErrorCode
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
