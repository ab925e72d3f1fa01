"""The next status of a rollout by steps. Pure, and total: whatever status says and the world shows, there is an answer.

A status that is lost, or of another revision or other steps, begins anew at the first step: that is always safe.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, BaseModelResource
from lorafleet_contract.rollout import (
    Analysis,
    Judgement,
    OnFailure,
    RolloutDefaults,
    RolloutEvidence,
    RolloutPhase,
    RolloutStatus,
    Step,
    TrafficShare,
)
from lorafleet_operator.decide.verify import try_of

HASH_LENGTH: Final = 12
WHOLE: Final = 100
"""What weights sum to."""
MAX_MESSAGE: Final = 1024
SHARING: Final = frozenset({RolloutPhase.PROGRESSING, RolloutPhase.PAUSED, RolloutPhase.PROMOTING})
"""Phases in which the new revision may have a part of the requests."""
UNDER_WAY: Final = SHARING | {RolloutPhase.LOADING}
"""Phases of a rollout that has not come to its end."""
HOLDING: Final = frozenset({Reason.SUSPENDED, Reason.NO_READY_PODS})
"""Why a rollout is paused that goes on by itself."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """By which steps a new revision becomes the stable one."""

    steps: tuple[Step, ...]
    analysis: Analysis | None = None
    on_failure: OnFailure = OnFailure.ROLLBACK
    progress_deadline_seconds: int = 600
    retry: str = ""
    """What makes another try of the same revision: an annotation, and what it has to answer."""

    @property
    def hash(self) -> str:
        """Of all that makes it another rollout, and of the try; not of how long it may take.

        What is as by default is left out, so that a field which a later version adds begins no rollout anew.
        """
        analysis = self.analysis.model_dump_json(exclude_defaults=True) if self.analysis is not None else ""
        steps = (step.model_dump_json(exclude_defaults=True) for step in self.steps)
        return f"{_digest(*steps, analysis, self.on_failure.value)}-{_digest(self.retry)}"


def rollout_plan(adapter: AdapterResource, base: BaseModelResource | None) -> RolloutPlan | None:
    """Return by which steps the revisions of an adapter are rolled out; None: at once."""
    own, default = adapter.spec.rollout, base.spec.lora.rollout if base is not None else RolloutDefaults()
    steps = default.steps if own.steps is None else own.steps
    if not steps:
        return None
    return RolloutPlan(
        tuple(steps),
        analysis=own.analysis or default.analysis,
        on_failure=own.on_failure or default.on_failure,
        progress_deadline_seconds=own.progress_deadline_seconds,
        retry=try_of(adapter),
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:HASH_LENGTH]


def _try_of(steps_hash: str | None) -> str:
    return (steps_hash or "").partition("-")[2]


@dataclass(frozen=True, slots=True)
class Given:
    """What a decision is made from."""

    plan: RolloutPlan
    revision: str
    """The one that is rolled out."""
    before: RolloutStatus | None
    """As status has it; of whatever revision."""
    now: datetime
    num_ready: int = 0
    """Pods that serve the revision."""
    obstacle: str | None = None
    """Why requests for the revision cannot be answered wherever they arrive; None where they can."""
    window: RolloutEvidence | None = None
    """What came of a window that is over now."""
    promote: str = ""
    abort: str = ""
    """What a person asks for: values of annotations."""
    is_suspended: bool = False
    unverified: str | None = None
    """How the revision fails the questions of its owner; None where it does not, or is asked none."""
    is_idle: bool = False
    """The base has no pod."""


def advance(given: Given) -> RolloutStatus:
    """Return the status that follows."""
    it = current(given.plan, given.revision, given.before) or _begun(given)
    if it.spent_promotion is not None and it.spent_promotion != given.promote:
        it = _with(it, spent_promotion=None)
    if given.abort == given.revision:
        return _given_up(given, it, Reason.ABORTED, "a person gave it up")
    if given.is_suspended:
        return _held(it, Reason.SUSPENDED, "suspended: no step is taken")
    if given.unverified is not None:
        return _given_up(given, it, Reason.VERIFY_FAILED, given.unverified)
    if _is_asked(given, it, given.revision):
        return _promoting(given, it, "a person promoted it")
    if given.is_idle:
        return _held(it, Reason.NO_READY_PODS, "the base has no pod: the step begins anew when it has one")
    if given.num_ready > it.ready_pods and it.phase is not RolloutPhase.ROLLED_BACK:
        it = _with(it, ready_pods=given.num_ready, last_progress_time=given.now)
    match it.phase:
        case RolloutPhase.LOADING:
            return it if given.obstacle is not None else _entered(given, it, 0)
        case RolloutPhase.PROGRESSING:
            return _stepped(given, it)
        case RolloutPhase.PAUSED:
            return _waited(given, it)
        case _:  # promotion ends when all pods have moved, and what was given up stays so
            return it


def current(plan: RolloutPlan, revision: str, status: RolloutStatus | None) -> RolloutStatus | None:
    """Return the status if it is of this revision and these steps.

    What was given up stays so with other steps too: those of hundreds of adapters may come from their base, and nobody who
    changes them there asks for all that was judged bad once more.
    """
    if status is None or status.phase is None or status.revision != revision:
        return None
    if status.steps_hash == plan.hash:
        return status
    if status.phase is RolloutPhase.ROLLED_BACK and _try_of(status.steps_hash) == _try_of(plan.hash):
        return _with(status, steps_hash=plan.hash, num_steps=len(plan.steps))
    return None


def weight_of(plan: RolloutPlan, status: RolloutStatus | None) -> int:
    """Return what percentage of requests the new revision gets: the last weight that was set."""
    if status is None or status.phase not in SHARING or status.step_start_time is None:
        return 0
    taken = plan.steps[: max(0, status.step_index or 0) + 1]
    return next((step.set_weight for step in reversed(taken) if step.set_weight is not None), 0)


def traffic_of(plan: RolloutPlan, stable: str, status: RolloutStatus | None) -> list[TrafficShare]:
    """Return the shares, the stable revision's first."""
    weight = weight_of(plan, status) if status is not None and status.revision != stable else 0
    shares = [TrafficShare(revision=stable, weight=WHOLE - weight)]
    if status is not None and weight:
        shares.append(TrafficShare(revision=status.revision, weight=weight))
    return shares


def revisions_of(traffic: Sequence[TrafficShare] | None) -> frozenset[str]:
    """Return the revisions that requests for the bare name go to."""
    return frozenset(share.revision for share in traffic or () if share.weight)


def is_judged(plan: RolloutPlan, status: RolloutStatus | None) -> bool:
    """Whether what gateways count matters now: while there is something to count, also while a step waits for a person."""
    if status is None or plan.analysis is None or not weight_of(plan, status):
        return False
    is_waiting = status.phase is RolloutPhase.PAUSED and status.reason == Reason.CANARY_PAUSED
    return status.phase is RolloutPhase.PROGRESSING or is_waiting


def is_step(before: RolloutStatus | None, after: RolloutStatus | None) -> bool:
    """Whether a rollout by steps has come to another step, phase or reason."""
    if after is None or after.phase is None:
        return False
    return before is None or _place(before) != _place(after)


def _place(status: RolloutStatus) -> tuple[object, ...]:
    return status.revision, status.steps_hash, status.phase, status.reason, status.step_index


def look_again_at(plan: RolloutPlan, status: RolloutStatus, now: datetime) -> datetime | None:
    """Return when the status may change though nothing happens but time; windows apart."""
    if status.phase is not RolloutPhase.PROGRESSING or status.step_start_time is None:
        return None
    ends = _ends_at(plan, status, status.step_start_time)
    times = (ends, ends + timedelta(seconds=plan.progress_deadline_seconds))
    return next((time for time in times if time > now), None)


def _with(it: RolloutStatus, **update: Any) -> RolloutStatus:
    return it.model_copy(update=update)


def _is_asked(given: Given, it: RolloutStatus, value: str) -> bool:
    """Whether a person promotes, with this value, the rollout that is under way."""
    return given.promote == value and it.spent_promotion != value


def _step(plan: RolloutPlan, status: RolloutStatus) -> Step | None:
    index = status.step_index or 0
    return plan.steps[index] if 0 <= index < len(plan.steps) else None


def _ends_at(plan: RolloutPlan, status: RolloutStatus, start: datetime) -> datetime:
    """When a step is over that takes no longer than it has to."""
    step = _step(plan, status)
    if step is not None and step.pause is not None:
        return start + timedelta(seconds=step.pause.duration_seconds or 0)
    return start + timedelta(seconds=plan.analysis.window_seconds if plan.analysis is not None else 0)


def _begun(given: Given) -> RolloutStatus:
    return RolloutStatus(
        revision=given.revision,
        start_time=given.now,
        last_progress_time=given.now,
        ready_pods=given.num_ready,
        phase=RolloutPhase.LOADING,
        reason=Reason.LOADING,
        message=f"pods are loading revision {given.revision}",
        step_index=0,
        num_steps=len(given.plan.steps),
        steps_hash=given.plan.hash,
        spent_promotion=given.promote if given.promote.partition(":")[0] == given.revision else None,
        failures=0,
    )


def _entered(given: Given, it: RolloutStatus, index: int) -> RolloutStatus:
    """Return the status at the beginning of a step, or of one behind it that takes time; behind the last: promotion."""
    steps = given.plan.steps
    while index < len(steps) and _is_over_at_once(given, it, index):
        index += 1
    if index >= len(steps):
        return _promoting(given, _with(it, step_index=len(steps)), "all steps are done")
    at = _with(
        it,
        phase=RolloutPhase.PROGRESSING,
        reason=Reason.CANARY_STEP,
        step_index=index,
        step_start_time=given.now,
        last_progress_time=given.now,
    )
    weight = weight_of(given.plan, at)
    message = f"step {index + 1} of {len(steps)}: {weight} % of requests go to revision {given.revision}"
    pause = steps[index].pause
    if pause is None:
        return _with(at, message=f"{message} until it is judged good")
    if pause.duration_seconds is not None:
        return _with(at, message=f"{message} for {pause.duration_seconds} s")
    stale = "; what the annotation says is of an earlier try" if it.spent_promotion is not None else ""
    message = f"{message} until a person promotes {given.revision}:{index}{stale}"
    return _with(at, phase=RolloutPhase.PAUSED, reason=Reason.CANARY_PAUSED, message=message)


def _is_over_at_once(given: Given, it: RolloutStatus, index: int) -> bool:
    """Whether a step takes no time: a weight that nothing judges, or a pause that a person is past already."""
    step = given.plan.steps[index]
    if step.pause is None:
        return given.plan.analysis is None
    return step.pause.duration_seconds is None and _is_asked(given, it, f"{given.revision}:{index}")


def _promoting(given: Given, it: RolloutStatus, why: str) -> RolloutStatus:
    if it.phase is RolloutPhase.PROMOTING:
        return it
    if it.phase is RolloutPhase.ROLLED_BACK:  # no pod has it now: its share comes back with the switch, not before
        it = _with(it, step_start_time=None, end_time=None, failures=0)
    return _with(
        it,
        phase=RolloutPhase.PROMOTING,
        reason=Reason.LOADING,
        message=f"{why}: the name moves to revision {given.revision} on all pods",
        last_progress_time=given.now,
    )


def _given_up(given: Given, it: RolloutStatus, reason: Reason, why: str) -> RolloutStatus:
    if it.phase is RolloutPhase.ROLLED_BACK:
        return it
    message = f"revision {given.revision} was rolled back: {why}"[:MAX_MESSAGE]
    return _with(it, phase=RolloutPhase.ROLLED_BACK, reason=reason, message=message, end_time=given.now)


def _held(it: RolloutStatus, reason: Reason, message: str) -> RolloutStatus:
    """What is under way stays as it is; a step begins anew when it goes on."""
    is_step = it.phase is RolloutPhase.PAUSED and it.reason in (Reason.CANARY_PAUSED, *HOLDING)
    if it.phase is not RolloutPhase.PROGRESSING and not is_step:
        return it
    return _with(it, phase=RolloutPhase.PAUSED, reason=reason, message=message)


def _waited(given: Given, it: RolloutStatus) -> RolloutStatus:
    index = max(0, it.step_index or 0)
    if it.reason in HOLDING:
        return _entered(given, it, index)
    if _is_asked(given, it, f"{given.revision}:{index}"):  # a person's word ends the step, also one that has failed
        return _entered(given, _with(it, failures=0), index + 1)
    if it.reason == Reason.CANARY_PAUSED:
        it, has_failed = _judged(given, it)
        return _failed(given, it, Reason.ANALYSIS_FAILED, _words(it)) if has_failed else it
    return it


def _stepped(given: Given, it: RolloutStatus) -> RolloutStatus:
    step = _step(given.plan, it)
    if step is None or it.step_start_time is None:  # nobody of us writes this
        return _begun(given)
    it, has_failed = _judged(given, it)
    if has_failed:
        return _failed(given, it, Reason.ANALYSIS_FAILED, _words(it))
    assert it.step_start_time is not None
    ends = _ends_at(given.plan, it, it.step_start_time)
    is_good = given.window is not None and given.window.judgement is Judgement.GOOD
    is_done = given.now >= ends if step.pause is not None else given.plan.analysis is None or is_good
    index = max(0, it.step_index or 0)
    if is_done and given.obstacle is None:
        return _entered(given, it, index + 1)
    seconds = given.plan.progress_deadline_seconds
    if given.now >= ends + timedelta(seconds=seconds):
        why = given.obstacle or _words(it) or "no window was judged"
        message = f"step {index + 1} was not done within {seconds} s of its own time: {why}"
        return _failed(given, it, Reason.PROGRESS_DEADLINE_EXCEEDED, message)
    if is_done:
        waiting = f"step {index + 1} of {len(given.plan.steps)} is done, and waits: {given.obstacle}"
        return _with(it, message=waiting[:MAX_MESSAGE])
    return it


def _judged(given: Given, it: RolloutStatus) -> tuple[RolloutStatus, bool]:
    """Return the status with the window that is over, and whether too many were bad."""
    analysis = given.plan.analysis
    if given.window is None or analysis is None or given.window == it.evidence:
        return it, False
    failures = (it.failures or 0) + (given.window.judgement is Judgement.BAD)
    return _with(it, evidence=given.window, failures=failures), failures > analysis.failure_limit


def _failed(given: Given, it: RolloutStatus, reason: Reason, why: str) -> RolloutStatus:
    if given.plan.on_failure is OnFailure.ROLLBACK:
        return _given_up(given, it, reason, why)
    index = max(0, it.step_index or 0)
    promoted = f"until a person promotes {given.revision}:{index} or gives it up"
    message = f"revision {given.revision} keeps its part of the requests {promoted}: {why}"[:MAX_MESSAGE]
    return _with(it, phase=RolloutPhase.PAUSED, reason=reason, message=message)


def _words(it: RolloutStatus) -> str:
    return it.evidence.message if it.evidence is not None else ""
