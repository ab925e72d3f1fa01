"""What is said of the InferencePool of a base. Pure."""

from dataclasses import dataclass
from typing import Final

from lorafleet_common.kube.errors import KubeError, KubeNotFound, KubeRefused
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import BaseModelResource
from lorafleet_contract.routing import AppliedObject
from lorafleet_operator.decide.conditions import INFERENCE_POOL, Verdict, condition_of, said

API: Final = "inference.networking.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What became of the InferencePool of a base."""

    applied: AppliedObject | None = None
    """The one that there is."""
    reason: Reason | None = None
    """Why it is as it is; None: none is wanted, and none is left."""
    message: str = ""


def refused(error: KubeError, applied: AppliedObject | None) -> PoolFacts:
    """Return what it means that the API server did not do what it was asked."""
    if isinstance(error, KubeNotFound):
        message = f"the cluster does not serve {API}: install the CRDs of the Gateway API Inference Extension"
        return PoolFacts(None, Reason.API_NOT_FOUND, message)
    if isinstance(error, KubeRefused):
        message = (
            f"the operator has no rights on inferencepools (operator.inferencePools of the chart): {error.message}"
        )
        return PoolFacts(applied, Reason.FORBIDDEN, message)
    return PoolFacts(applied, Reason.APPLY_FAILED, error.message)


def pool_verdicts(base: BaseModelResource, facts: PoolFacts | None) -> list[Verdict]:
    """Return the condition of the pool, where there is something to say; without facts what was said before stands."""
    if facts is None:
        before = condition_of(base.status.conditions, INFERENCE_POOL)
        return [Verdict(before.type, before.status, before.reason, before.message)] if before is not None else []
    if facts.reason is None:
        return []
    return [said(INFERENCE_POOL, facts.reason is Reason.APPLIED, facts.reason, facts.message)]
