"""How many pods a base should have, by the sequences that they run and that wait there. Pure.

More pods are asked for at once, fewer only when fewer have been enough for `scaleDownAfterSeconds` without a break. A pod
that does not say what it has is taken to have as much as it should: it is no reason for more pods, and none for fewer.
"""

from dataclasses import dataclass
from typing import Final

from lorafleet_contract.autoscaling import AutoscalingSpec, AutoscalingStatus
from lorafleet_contract.reasons import Reason

TOLERANCE: Final = 0.1
"""Part of the target that pods may have above it before there is one more."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the pods of a base have to do at one moment."""

    num_sequences: int
    """Running and waiting, on the pods that say so."""
    num_silent: int = 0
    """Ready pods that do not say."""


Peaks = tuple[tuple[float, int], ...]
"""(when, pods that would have been enough) of the last window: only those that no later one reaches, oldest first."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What keeps the number of pods from following the load."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A decision."""

    desired: int
    peaks: Peaks
    reason: Reason | None = None
    """Why it is another number than before; None: it is not."""
    message: str = ""
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class Scaled:
    """What autoscaling asks for."""

    status: AutoscalingStatus
    limit: Limit | None = None


def first_peaks(current: int, now: float) -> Peaks:
    """Return what is known of a base whose pods were not looked at before: as many as it has may be needed."""
    return ((now, current),)


def bounded(spec: AutoscalingSpec, number: int) -> int:
    """Return the number within the bounds that is nearest."""
    return min(max(number, spec.min_replicas), spec.max_replicas)


def decide(spec: AutoscalingSpec, current: int, load: Load, peaks: Peaks, now: float) -> Scale:
    """Return how many pods there should be.

    Args:
        spec: bounds and target.
        current: how many were asked for until now.
        load: what there is to do.
        peaks: of the last decision.
        now: seconds on any clock that does not jump.
    """
    needed = num_needed(spec.target_sequences, current, load.num_sequences)
    peaks = _with(peaks, max(needed, min(current, needed + load.num_silent)), now, spec.scale_down_after_seconds)
    desired = bounded(spec, needed if needed > current else min(current, peaks[0][1]))
    reason, message = _why(spec, current, desired, load)
    return Scale(desired, peaks, reason, message, _limit(spec, peaks[0][1]))


def num_needed(target: int, current: int, num_sequences: int) -> int:
    """Return how many pods have no more than their target; as many as there are where those have hardly more."""
    needed = -(-num_sequences // target)
    is_hardly_more = current > 0 and needed > current and num_sequences <= current * target * (1 + TOLERANCE)
    return current if is_hardly_more else needed


def _with(peaks: Peaks, number: int, now: float, window_seconds: float) -> Peaks:
    """Return the peaks of the window that ends now, with one more; as many as there are different numbers at most."""
    kept = tuple(peak for peak in peaks if peak[0] > now - window_seconds and peak[1] > number)
    return (*kept, (now, number))


def _why(spec: AutoscalingSpec, current: int, desired: int, load: Load) -> tuple[Reason | None, str]:
    if desired == current:
        return None, ""
    change = f"from {current} to {desired}"
    if current < spec.min_replicas or current > spec.max_replicas:
        return Reason.OUT_OF_BOUNDS, f"{change}: {spec.min_replicas} to {spec.max_replicas} are allowed"
    what = f"{load.num_sequences} sequences, and a pod should have {spec.target_sequences}"
    if desired > current:
        return Reason.LOAD_ABOVE_TARGET, f"{change}: {what}"
    return Reason.LOAD_BELOW_TARGET, f"{change}: fewer were enough for {spec.scale_down_after_seconds} s; {what}"


def _limit(spec: AutoscalingSpec, peak: int) -> Limit | None:
    if peak <= spec.max_replicas:
        return None
    return Limit(Reason.TOO_FEW_REPLICAS, f"the load asks for more pods than maxReplicas, which is {spec.max_replicas}")
