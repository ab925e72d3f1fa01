"""How many pods a base should have, by the sequences that they run and that wait there. Pure.

More pods are asked for at once, fewer only when fewer have been enough for `scaleDownAfterSeconds` without a break. A pod
that does not say what it has is taken to have as much as it should: it is no reason for more pods, and none for fewer.

With `minReplicas` 0 the last pod goes when nothing was asked for `idleSeconds`, and only while every gateway would tell of a
request that comes then. The first comes back at once for a request, or for adapters that only a pod can load.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from lorafleet_contract.autoscaling import AutoscalingSpec, AutoscalingStatus
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterStatus
from lorafleet_operator.decide.conditions import READY, STALLED, condition_of

FOR_PODS: Final = frozenset({Reason.PENDING, Reason.NO_READY_PODS, Reason.RESOLVING, Reason.LOADING, Reason.VERIFYING})
"""Why adapters are not Ready that a pod would bring further."""
TOLERANCE: Final = 0.1
"""Part of the target that pods may have above it before there is one more."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the pods of a base have to do at one moment."""

    num_sequences: int
    """Running and waiting on the pods that say so, and held by gateways."""
    num_silent: int = 0
    """Ready pods that do not say."""
    wanted: str = ""
    """What needs a pod now, or has since the last look, for people; empty: nothing."""
    is_blind: str = ""
    """Why a request could come unnoticed while there is no pod; empty where it could not."""


Peaks = tuple[tuple[float, int], ...]
"""(when, pods that would have been enough) of the last window: only those that no later one reaches, oldest first."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision hands to the next."""

    peaks: Peaks
    wanted_at: float
    """When something needed a pod last."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What keeps the number of pods from following the load."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A decision."""

    desired: int
    memory: Memory
    reason: Reason | None = None
    """Why it is another number than before; None: it is not."""
    message: str = ""
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class Scaled:
    """What autoscaling asks for."""

    status: AutoscalingStatus
    limit: Limit | None = None
    awake_until: datetime | None = None
    """Until when a base that was without pods may take to have one; None where it was not, or has had one since."""

    def is_asleep(self, now: datetime) -> bool:
        """Whether no pod is expected to be ready: none is asked for, or the first is on its way."""
        return self.status.desired_replicas == 0 or (self.awake_until is not None and now < self.awake_until)


def begin(current: int, now: float) -> Memory:
    """Return what is known of a base whose pods were not looked at before: as many as it has may be needed."""
    return Memory(((now, current),), now)


def bounded(spec: AutoscalingSpec, number: int) -> int:
    """Return the number within the bounds that is nearest."""
    return min(max(number, spec.min_replicas), spec.max_replicas)


def decide(spec: AutoscalingSpec, current: int, load: Load, memory: Memory, now: float) -> Scale:
    """Return how many pods there should be.

    Args:
        spec: bounds and target.
        current: how many were asked for until now.
        load: what there is to do.
        memory: of the last decision.
        now: seconds on any clock that does not jump.
    """
    needed = num_needed(spec.target_sequences, current, load.num_sequences)
    number = max(needed, min(current, needed + load.num_silent))
    peaks = _with(memory.peaks, number, now, spec.scale_down_after_seconds)
    # one that does not say while none is asked for is on its way out
    is_wanted = bool(load.wanted or load.num_sequences or (load.num_silent and current > 0))
    memory = Memory(peaks, now if is_wanted else memory.wanted_at)
    idle_seconds = now - memory.wanted_at
    is_idle = spec.zero is not None and idle_seconds >= spec.zero.idle_seconds
    floor = max(spec.min_replicas, 0 if _may_have_none(current, load, is_idle=is_idle, is_wanted=is_wanted) else 1)
    if needed > current or floor > current:
        desired = max(needed, floor)
    elif floor == 0 and peaks[0][1] <= 1:
        desired = 0  # one was enough all the time, and nothing needed that one for long
    else:
        desired = max(floor, min(current, peaks[0][1]))
    desired = min(desired, spec.max_replicas)
    reason, message = _why(spec, current, desired, load, idle_seconds)
    return Scale(desired, memory, reason, message, _limit(spec, peaks[0][1], load, is_idle=is_idle and desired > 0))


def needs_pod(status: AdapterStatus) -> bool:
    """Whether an adapter waits for nothing but a pod: to be resolved, loaded or asked what it answers.

    What failed does not, nor what takes its steps by requests: neither is worth a pod that runs for nothing else.
    """
    ready = condition_of(status.conditions, READY)
    is_stalled = condition_of(status.conditions, STALLED) is not None
    return ready is not None and ready.status != "True" and not is_stalled and ready.reason in FOR_PODS


def num_needed(target: int, current: int, num_sequences: int) -> int:
    """Return how many pods have no more than their target; as many as there are where those have hardly more."""
    needed = -(-num_sequences // target)
    is_hardly_more = current > 0 and needed > current and num_sequences <= current * target * (1 + TOLERANCE)
    return current if is_hardly_more else needed


def _may_have_none(current: int, load: Load, *, is_idle: bool, is_wanted: bool) -> bool:
    """Whether no pod is right, where the bounds allow it: the last one goes with care, and without a need none comes."""
    return not is_wanted if current == 0 else is_idle and not load.is_blind


def _with(peaks: Peaks, number: int, now: float, window_seconds: float) -> Peaks:
    """Return the peaks of the window that ends now, with one more; as many as there are different numbers at most."""
    kept = tuple(peak for peak in peaks if peak[0] > now - window_seconds and peak[1] > number)
    return (*kept, (now, number))


def _why(
    spec: AutoscalingSpec, current: int, desired: int, load: Load, idle_seconds: float
) -> tuple[Reason | None, str]:
    if desired == current:
        return None, ""
    change = f"from {current} to {desired}"
    if current < spec.min_replicas or current > spec.max_replicas:
        return Reason.OUT_OF_BOUNDS, f"{change}: {spec.min_replicas} to {spec.max_replicas} are allowed"
    if desired == 0:
        return Reason.SCALED_TO_ZERO, f"{change}: nothing was asked for {idle_seconds:.0f} s"
    if current == 0:
        return Reason.WOKEN, f"{change}: {load.wanted or 'pods have something to do'}"
    what = f"{load.num_sequences} sequences, and a pod should have {spec.target_sequences}"
    if desired > current:
        return Reason.LOAD_ABOVE_TARGET, f"{change}: {what}"
    return Reason.LOAD_BELOW_TARGET, f"{change}: fewer were enough for {spec.scale_down_after_seconds} s; {what}"


def _limit(spec: AutoscalingSpec, peak: int, load: Load, *, is_idle: bool) -> Limit | None:
    if peak > spec.max_replicas:
        message = f"the load asks for more pods than maxReplicas, which is {spec.max_replicas}"
        return Limit(Reason.TOO_FEW_REPLICAS, message)
    if is_idle and load.is_blind:
        return Limit(Reason.GATEWAYS_SILENT, f"the last pod stays, or a request would go unnoticed: {load.is_blind}")
    return None
