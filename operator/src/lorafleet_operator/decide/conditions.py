"""Conditions as the API conventions and kstatus want them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import Condition

Status = Literal["True", "False", "Unknown"]
READY: Final = "Ready"
AVAILABLE: Final = "Available"
ACCEPTED: Final = "Accepted"
RESIDENT: Final = "Resident"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
SUSPENDED: Final = "Suspended"
SCALING_LIMITED: Final = "ScalingLimited"
INFERENCE_POOL: Final = "InferencePoolApplied"
MODEL_REWRITE: Final = "ModelRewriteApplied"
MAX_MESSAGE: Final = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition before it has a time."""

    type: str
    status: Status
    reason: str
    message: str


def said(kind: str, status: bool | None, reason: Reason | str, message: str) -> Verdict:
    """Return a verdict; None is Unknown."""
    words: Status = "Unknown" if status is None else ("True" if status else "False")
    return Verdict(kind, words, str(reason), message)


def progress_of(ready: Verdict, *, is_stalled: bool, is_waiting: bool) -> list[Verdict]:
    """Return Stalled or Reconciling with the words of Ready, where one of them is true."""
    if ready.status == "True":
        return []
    if is_stalled:
        return [Verdict(STALLED, "True", ready.reason, ready.message)]
    return [Verdict(RECONCILING, "True", ready.reason, ready.message)] if is_waiting else []


def with_times(
    verdicts: Sequence[Verdict], before: Sequence[Condition], *, generation: int, now: datetime
) -> list[Condition]:
    """Return conditions sorted by type; the time of one moves only when its status does."""
    old = {condition.type: condition for condition in before}
    conditions = []
    for verdict in sorted(verdicts, key=lambda verdict: verdict.type):
        last = old.get(verdict.type)
        moved = last is None or last.status != verdict.status
        condition = Condition(
            type=verdict.type,
            status=verdict.status,
            reason=verdict.reason,
            message=verdict.message[:MAX_MESSAGE],
            observed_generation=generation,
            last_transition_time=now if last is None or moved else last.last_transition_time,
        )
        conditions.append(condition)
    return conditions


def condition_of(conditions: Sequence[Condition], kind: str) -> Condition | None:
    """Return the condition of a type."""
    return next((condition for condition in conditions if condition.type == kind), None)
