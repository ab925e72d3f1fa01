"""What comes of offering a request to a pod, other than an answer."""

from dataclasses import dataclass
from enum import StrEnum
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


class Result(StrEnum):
    """How a request ended: the label `outcome` of metrics, and the base of evidence."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    ERROR = "error"
    """5xx, also as an event within a stream that began with 200."""
    CUT = "cut"
    """The pod was lost within its answer."""
    CLIENT_LEFT = "client_left"


def result_of(status: int) -> Result:
    """Return what came of a request that was answered whole."""
    if status < 400:
        return Result.OK
    return Result.CLIENT_ERROR if status < 500 else Result.ERROR


class ErrorEvents:
    """Finds the event by which a pod ends a stream that has failed; text of a model cannot look like it."""

    _MARK: Final = b"\nevent: error\n"

    def __init__(self) -> None:
        self._tail = b"\n"
        self.found = False

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the stream."""
        self.found = self.found or self._MARK in self._tail + chunk
        self._tail = (self._tail + chunk)[-len(self._MARK) :]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer by which a pod says that it did not begin with the request."""

    code: ErrorCode
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
