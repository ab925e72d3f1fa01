"""Whether a request that a pod did not take is offered to another one, and what the client is told if not. Pure.

A pod that cannot be reached, or says by its error code that it did not begin, has executed nothing: another one is asked.
A connection that breaks before the answer may have been the pod's death in the middle of the work. A completion changes
nothing anywhere, so it is offered once more, but only once: a request that kills pods meets two of them, not all. A pod
that was silent for too long may still be at work; its request is given up. What has begun to reach the client is never
offered again.
"""

from dataclasses import dataclass, field
from typing import Final

from lorafleet_contract.openai import ErrorCode
from lorafleet_gateway.errors import AdapterLoading, NoReadyPod, PodLost, PodSilent, RequestError
from lorafleet_gateway.fleet.routing import Why
from lorafleet_gateway.front.outcomes import Broken, NotTaken, Refusal, Silent, Unreachable

MAX_BROKEN: Final = 2
"""Pods that may break under one request."""
NOT_THERE: Final = frozenset({ErrorCode.MODEL_NOT_FOUND, ErrorCode.REVISION_NOT_FOUND})
"""From a pod: it has not heard of what LoraAdapter says, or not any more."""

LACKING: Final = NOT_THERE | {ErrorCode.ADAPTER_FAILED, ErrorCode.ADAPTER_LOADING}
"""From a pod: it cannot answer with the revision asked for, whatever becomes of others."""
GOING: Final = frozenset({ErrorCode.DRAINING, ErrorCode.NOT_READY})
"""From a pod: it answers nothing any more, or not yet."""


@dataclass(slots=True)
class Offers:
    """The offers of one request."""

    max_attempts: int
    retry_seconds: float
    tried: set[str] = field(default_factory=set)
    """Uids of pods that did not take it."""
    num_made: int = 0
    num_broken: int = 0
    last: Refusal | NotTaken | None = None

    def made(self, uid: str) -> None:
        """Take note of an offer."""
        self.tried.add(uid)
        self.num_made += 1

    def failed(self, outcome: Refusal | NotTaken) -> None:
        """Take note that the last offer was not taken."""
        self.last = outcome
        self.num_broken += isinstance(outcome, Broken)

    def begin_again(self) -> None:
        """The request is another one from now on: every pod may be offered it, and once at least."""
        self.tried.clear()
        self.num_made = min(self.num_made, self.max_attempts - 1)

    def start_over(self) -> None:
        """Another revision is asked for: every pod may be offered the request, and as many as if it had just arrived."""
        self.tried.clear()
        self.max_attempts += self.num_made

    def may_go_on(self, elapsed_seconds: float) -> bool:
        """Whether another pod may be asked."""
        if isinstance(self.last, Silent) or self.num_broken >= MAX_BROKEN:
            return False
        return self.num_made < self.max_attempts and elapsed_seconds < self.retry_seconds

    def lacks_pod(self, why: Why, *, is_at_zero: bool) -> bool:
        """Whether no pod was asked because none is there, or the last that seemed to be is leaving.

        `is_at_zero`: no pod is asked for, so that one that cannot be reached is gone.
        """
        if why in (Why.NO_PODS, Why.NONE_READY):
            return True
        is_leaving = isinstance(self.last, Refusal) and self.last.code in GOING
        return why is Why.ALL_TRIED and (is_leaving or (is_at_zero and isinstance(self.last, Unreachable)))

    def error(self, name: str, why: Why, *, is_pinned: bool) -> RequestError | None:
        """Return what the client is told; None: what the last pod said.

        Args:
            name: the model.
            why: why no pod was asked, if none was.
            is_pinned: whether the client insists on a revision.
        """
        match self.last:
            case None:
                reason = "has no pod" if why is Why.NO_PODS else "has no ready pod now"
                return NoReadyPod(f"the base of {name!r} {reason}")
            case Refusal(code=code) if code in NOT_THERE and not is_pinned:
                return AdapterLoading(f"pods do not know the current revision of {name!r} yet")
            case Refusal():
                return None
            case Silent():
                return PodSilent("the pod that took the request sent nothing for too long")
            case Broken():
                return PodLost("the pod that took the request was lost")
            case _:
                return NoReadyPod(f"no pod of {name!r} can be reached")
