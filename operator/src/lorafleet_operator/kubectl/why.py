"""Why an adapter is Ready, or is not: each check of acceptance and of readiness with its answer. Pure.

Acceptance is judged here by the operator's own checks, from the same resources. What readiness is judged by, pods tell the
operator only: there the answers are read off the status that it has written.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar

from lorafleet_contract.admin import AdapterState
from lorafleet_contract.base import Wire
from lorafleet_contract.reason_table import REFUSED
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, Condition
from lorafleet_contract.rollout import RolloutPhase
from lorafleet_operator.decide import adapter_ready
from lorafleet_operator.decide.accept import ACCEPTANCE, Candidate, Refusal
from lorafleet_operator.decide.checks import Chain, Check
from lorafleet_operator.decide.conditions import ACCEPTED, READY, condition_of
from lorafleet_operator.decide.views import Snapshot

READINESS: Final = adapter_ready.READINESS
I = TypeVar("I")  # noqa: E741
F = TypeVar("F")
NAME_IS_FREE: Final = next(check for check in ACCEPTANCE if Reason.NAME_CONFLICT in check.reasons)
DELETED_CHECK: Final = next(check for check in READINESS if Reason.DRAINING in check.reasons)
SUSPENDED_CHECK: Final = next(check for check in READINESS if Reason.SUSPENDED in check.reasons)
UNRESOLVED_CHECK: Final = next(check for check in READINESS if Reason.RESOLVING in check.reasons)
REFUSED_CHECK: Final = next(check for check in READINESS if not check.reasons)
"""Its reason is that of the check of acceptance."""
FAILED_CHECK: Final = [check for check in READINESS if not check.reasons][-1]
"""Its reason is that of a pod."""


class Outcome(StrEnum):
    """The answer of a check."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """The one who asks is not shown what it is judged by, or the operator has not judged it yet."""
    SKIPPED = "skipped"
    """One before has failed, without which it means nothing."""


class Answer(Wire):
    """A check and its answer."""

    expects: str
    """What has to be so."""
    outcome: Outcome
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    """What to do about it."""


class Verdict(Wire):
    """Everything that is judged of an adapter."""

    is_ready: bool
    """Ready is True, and said of the spec as it is now."""
    is_current: bool
    """The operator has judged the spec as it is now."""
    reason: str | None
    message: str | None
    acceptance: list[Answer]
    readiness: list[Answer]


def verdict_of(adapter: AdapterResource, snapshot: Snapshot, *, is_base_hidden: bool, is_whole: bool) -> Verdict:
    """Return what is judged of an adapter.

    Args:
        adapter: which one.
        snapshot: what the API server shows of its base.
        is_base_hidden: the base may be there, and is not shown.
        is_whole: the bases and adapters of all namespaces are shown, so that it is known who has which name.
    """
    ready = condition_of(adapter.status.conditions, READY)
    is_current = adapter.status.observed_generation == adapter.metadata.generation and ready is not None
    said = ready if is_current else None
    acceptance = _acceptance(adapter, snapshot, is_base_hidden=is_base_hidden, is_whole=is_whole)
    return Verdict(
        is_ready=said is not None and said.status == "True",
        is_current=is_current,
        reason=said.reason if said is not None else None,
        message=said.message if said is not None else None,
        acceptance=acceptance,
        readiness=_readiness(adapter, snapshot, acceptance, said),
    )


def _acceptance(adapter: AdapterResource, snapshot: Snapshot, *, is_base_hidden: bool, is_whole: bool) -> list[Answer]:
    refused = _refusal_said(adapter)
    if is_base_hidden:
        if refused is None and _is_judged(adapter):
            return [_answer(check, Outcome.OK) for check in ACCEPTANCE]
        deciding = next((c for c in ACCEPTANCE if refused is not None and refused.reason in c.reasons), None)
        return _walked(ACCEPTANCE, deciding, refused, remedy="")
    candidate = Candidate(adapter, snapshot)
    answers: list[Answer] = []
    for check in ACCEPTANCE:
        if answers and snapshot.base is None:
            answers.append(_answer(check, Outcome.SKIPPED))
            continue
        found = check.find(candidate)
        if found is not None:
            answers.append(_failed(check, str(found.reason), found.message))
        elif check is NAME_IS_FREE:
            answers.append(_name_answer(adapter, check, refused, is_whole=is_whole))
        else:
            answers.append(_answer(check, Outcome.OK))
    return answers


def _name_answer(
    adapter: AdapterResource, check: Check[Candidate, Refusal], refused: Condition | None, *, is_whole: bool
) -> Answer:
    """The operator knows more of names than the API server shows: those of deleted bases, those of other namespaces."""
    if refused is not None and refused.reason == Reason.NAME_CONFLICT:
        return _failed(check, refused.reason, refused.message)
    is_known = is_whole or (_is_judged(adapter) and refused is None)
    return _answer(check, Outcome.OK if is_known else Outcome.UNKNOWN)


def _is_judged(adapter: AdapterResource) -> bool:
    """Whether the operator has judged the spec as it is now."""
    return adapter.status.observed_generation == adapter.metadata.generation


def _refusal_said(adapter: AdapterResource) -> Condition | None:
    """Return what the operator says against accepting the spec as it is now; also what it says of an unusable artifact."""
    accepted = condition_of(adapter.status.conditions, ACCEPTED)
    return accepted if accepted is not None and accepted.status == "False" and _is_judged(adapter) else None


def _readiness(
    adapter: AdapterResource, snapshot: Snapshot, acceptance: Sequence[Answer], ready: Condition | None
) -> list[Answer]:
    if ready is None:
        return [_answer(check, Outcome.UNKNOWN) for check in READINESS]
    if ready.status == "True":
        return [_answer(check, Outcome.OK) for check in READINESS]
    refusal = next((answer.reason for answer in acceptance if answer.outcome is Outcome.FAILED), None)
    check = deciding_check(adapter, snapshot, ready, refusal)
    return _walked(READINESS, check, ready, remedy=_remedy(ready.reason, check))


def _remedy(reason: str, check: Check[Any, Any]) -> str:
    """Return what the page on reasons says to do about what pods say; empty where the check itself says what to do."""
    about = next((about for known, about in REFUSED.items() if known == reason), None)
    return about.remedy if about is not None and reason not in check.reasons and check is not REFUSED_CHECK else ""


def deciding_check(
    adapter: AdapterResource, snapshot: Snapshot, ready: Condition, refusal: str | None
) -> Check[adapter_ready.Standing, adapter_ready.Finding]:
    """Return the check of readiness that a condition Ready, which is not True, comes from.

    Args:
        adapter: with the status that the condition is of.
        snapshot: of its base.
        ready: the condition.
        refusal: the reason for which the adapter is not accepted; None where it is.
    """
    found = [check for check in READINESS if ready.reason in check.reasons]
    if ready.reason == refusal:
        return REFUSED_CHECK
    if adapter.status.desired_revision is None and not set(found) & {DELETED_CHECK, SUSPENDED_CHECK}:
        return UNRESOLVED_CHECK
    if not found:
        return FAILED_CHECK
    if ready.reason == Reason.PROGRESS_DEADLINE_EXCEEDED:
        rollout = adapter.status.rollout
        is_by_steps = rollout is not None and rollout.phase in (RolloutPhase.PAUSED, RolloutPhase.ROLLED_BACK)
        return found[0] if is_by_steps else found[-1]
    if ready.reason == Reason.INSUFFICIENT_SLOTS:
        return found[-1] if _is_placed_nowhere(adapter, snapshot) else found[0]
    return found[-1]


def _is_placed_nowhere(adapter: AdapterResource, snapshot: Snapshot) -> bool:
    """Whether the base loads nothing on demand, and no pod is known to keep the desired revision.

    Status does not tell whether what failed or drains was to be kept; either check's message is the operator's.
    """
    if snapshot.base is None or snapshot.base.spec.lora.load_on_demand != "Disabled":
        return False
    kept = [p for p in adapter.status.placements if p.state not in (AdapterState.FAILED, AdapterState.DRAINING)]
    return all(placement.revision != adapter.status.desired_revision for placement in kept)


def _walked(chain: Chain[I, F], deciding: Check[I, F] | None, said: Condition | None, *, remedy: str) -> list[Answer]:
    """Return the answers of a chain of which it is known which check decided."""
    if deciding is None or said is None:
        return [_answer(check, Outcome.UNKNOWN) for check in chain]
    number = chain.index(deciding)
    before = [_answer(check, Outcome.OK) for check in chain[:number]]
    after = [_answer(check, Outcome.SKIPPED) for check in chain[number + 1 :]]
    return [*before, _failed(deciding, said.reason, said.message, remedy=remedy), *after]


def _answer(check: Check[Any, Any], outcome: Outcome) -> Answer:
    return Answer(expects=check.expects, outcome=outcome)


def _failed(check: Check[Any, Any], reason: str, message: str, *, remedy: str = "") -> Answer:
    hint = remedy or check.hint
    return Answer(expects=check.expects, outcome=Outcome.FAILED, reason=reason, message=message, hint=hint)
