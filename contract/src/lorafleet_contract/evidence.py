"""What a gateway counts of each revision of an adapter: `GET /v1/evidence` on its metrics port."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from lorafleet_contract.admin import ServedName
from lorafleet_contract.base import Observed
from lorafleet_contract.sources import Revision


class ErrorClass(StrEnum):
    """What went wrong with a request. A reader meets classes of newer gateways too."""

    CLIENT_ERROR = "client_error"
    """4xx, other than the two below: the request's own fault."""
    OVERLOADED = "overloaded"
    """429 of a pod."""
    ADAPTER_FAILED = "adapter_failed"
    """424: the revision was refused, or its numbers overflow on this request."""
    UNAVAILABLE = "unavailable"
    """503: no pod was ready, or none had the revision loaded in time."""
    SERVER_ERROR = "server_error"
    """Any other 5xx."""
    POD_LOST = "pod_lost"
    """502 and 504: the pod that took the request was lost before its answer, or silent for too long."""
    STREAM_ERROR = "stream_error"
    """A stream that began with 200 ended with the event `error`."""
    STREAM_BROKEN = "stream_broken"
    """The pod was lost within its answer."""
    CLIENT_LEFT = "client_left"
    """The client left before the end; nothing is known of the answer."""


NO_FAULT: Final = frozenset({ErrorClass.CLIENT_ERROR, ErrorClass.OVERLOADED, ErrorClass.CLIENT_LEFT})
"""Classes that say nothing against a revision."""


class Latency(Observed):
    """A histogram of the answers that ended without an error."""

    sum_seconds: float
    buckets: list[int]
    """Answers of at most each of the document's `boundsSeconds`, and more than the one before; last, those beyond all."""

    @property
    def count(self) -> int:
        """All answers together."""
        return sum(self.buckets)


class RevisionEvidence(Observed):
    """Counters of one revision of one adapter. They only grow, for as long as boot id and `began` stay the same."""

    namespace: str
    base: str
    """Name of the BaseModelDeployment."""
    adapter: ServedName
    revision: Revision
    began: int
    """The sequence number of its first request; another one: the counters began anew."""
    num_requests: int
    """Requests that have ended, also those with an error."""
    num_fallbacks: int = 0
    """Requests meant for it, as one that shares the traffic, that pods refused and the stable revision was offered instead.
    They are in no other number of its own, except that those refused as `adapter_failed` are requests with that error."""
    errors: dict[str, int] = {}
    """ErrorClass -> requests; what is zero is left out."""
    first_byte: Latency
    """From the arrival of the request to the first byte of the pod's answer."""
    whole: Latency
    """From the arrival of the request to the end of the answer."""

    @property
    def num_faults(self) -> int:
        """Requests whose errors speak against the revision or its pods; a class that is not known does."""
        return sum(number for name, number in self.errors.items() if name not in NO_FAULT)


class HeldRequests(Observed):
    """Requests for a base without a ready pod, which `spec.autoscaling` lets go to zero."""

    namespace: str
    base: str
    """Name of the BaseModelDeployment."""
    num_held: Annotated[int, Field(ge=0)]
    """That wait for a pod now."""
    num_arrived: Annotated[int, Field(ge=0)]
    """That have found no pod since the gateway started, those that were refused for want of room included."""


class Evidence(Observed):
    """`GET /v1/evidence[?after=N&boot_id=B&wait_seconds=S]`: returns at once, or when `sequence` exceeds N, or after S seconds."""

    boot_id: str
    """New with every start of the gateway: its counters begin at zero."""
    sequence: int
    """Grows when something has been counted since the last answer."""
    bounds_seconds: list[float]
    revisions: list[RevisionEvidence]
    """All; with `after` and this boot's id those that have changed since."""
    held: list[HeldRequests] | None = None
    """Of every base for which a request has found no pod since the start. None: a gateway of a version that holds none."""
    num_untracked: int = 0
    """Requests of revisions beyond the number that a gateway counts apart; they are in no row."""
