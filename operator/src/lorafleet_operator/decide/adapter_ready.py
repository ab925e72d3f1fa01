"""Whether an adapter is Ready: a chain of checks over what is wanted of it and what its pods showed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Residency
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, ArtifactStatus
from lorafleet_contract.rollout import RolloutPhase, RolloutStatus
from lorafleet_operator.decide.catalogue import AdapterRevisions
from lorafleet_operator.decide.checks import Chain, Check, first_found
from lorafleet_operator.decide.diff import RETRYABLE_ON_NEWER_POD
from lorafleet_operator.decide.progress import num_serving, obstacles
from lorafleet_operator.decide.views import ObservedPod


@dataclass(frozen=True, slots=True)
class Finding:
    """Status, reason and message of Ready."""

    reason: Reason | str
    message: str
    is_ready: bool | None = False
    """None is Unknown."""
    is_stalled: bool = False
    """Nothing will change by itself."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An adapter, the revision that status names, and its pods."""

    lineup: AdapterRevisions
    published: str | None
    pods: Sequence[ObservedPod]
    is_overdue: bool = False
    """The desired revision has made no progress for longer than its deadline."""
    rollout: RolloutStatus | None = None
    """Of the desired revision, as status tells it from now on."""
    is_asleep: bool = False
    """No pod of the base is expected to be ready: autoscaling asks for none, or the first is on its way."""
    serving: list[ObservedPod] = field(init=False)
    """Ready pods that say what they have."""
    num_answering: int = field(init=False)
    """Pods that serve the desired revision."""

    def __post_init__(self) -> None:
        serving = [pod for pod in self.pods if pod.is_serving]
        name, desired = self.lineup.name, self.lineup.intent.desired
        object.__setattr__(self, "serving", serving)
        number = num_serving(name, desired.revision, serving) if desired is not None else 0
        object.__setattr__(self, "num_answering", number)

    @property
    def desired(self) -> ArtifactStatus:
        """The revision that spec asks for; a check before has found it."""
        assert self.lineup.intent.desired is not None
        return self.lineup.intent.desired

    @property
    def ready(self) -> list[ObservedPod]:
        """Pods that Services send requests to."""
        return [pod for pod in self.pods if pod.pod.is_ready and not pod.pod.is_leaving]

    @property
    def is_served(self) -> bool:
        """Whether requests are answered with the desired revision."""
        return self.published == self.desired.revision and self.num_answering > 0

    @property
    def failure(self) -> tuple[str, ObservedAdapter] | None:
        """A pod on which the desired revision has failed, and how; one that will not mend itself comes first."""
        name, revision = self.lineup.name, self.desired.revision
        entries = [(pod.pod.name, pod.own(name, revision)) for pod in self.serving]
        failed = [(pod, entry) for pod, entry in entries if entry is not None and entry.state is AdapterState.FAILED]
        return min(failed, key=lambda pair: (pair[1].reason in RETRYABLE_ON_NEWER_POD, pair[0]), default=None)


def readiness_of(standing: Standing) -> Finding:
    """Return what Ready says."""
    found = first_found(READINESS, standing)
    if found is not None:
        return found[1]
    failure = standing.failure
    but = f"; not on {failure[0]}: {failure[1].reason}" if failure is not None else ""
    return Finding(Reason.SERVING, f"revision {standing.desired.revision} answers{but}", is_ready=True)


def held_back(adapter: AdapterResource, desired: ArtifactStatus | None) -> list[str]:
    """Return the fields of spec that a suspended adapter does not follow."""
    spec = adapter.spec
    differ = {
        "source": desired is None or desired.source != spec.source,
        "digest": desired is not None and spec.digest not in (None, desired.digest),
        "placement": adapter.placement != spec.placement,
    }
    return [field for field, does in differ.items() if does]


def _is_deleted(given: Standing) -> Finding | None:
    return Finding(Reason.DRAINING, "being unloaded") if given.lineup.intent.is_deleted else None


def _is_refused(given: Standing) -> Finding | None:
    refusal = given.lineup.intent.refusal
    if refusal is None:
        return None
    return Finding(refusal.reason, refusal.message, is_stalled=not refusal.retryable)


def _is_held_back(given: Standing) -> Finding | None:
    """Suspension keeps something from happening."""
    adapter, desired = given.lineup.intent.adapter, given.lineup.intent.desired
    if not adapter.spec.suspend:
        return None
    held = held_back(adapter, desired)
    if not held and desired is not None and desired.revision == given.published:
        return None
    waiting = f": {', '.join(held)}" if held else ""
    return Finding(Reason.SUSPENDED, f"suspended: changes are not acted on{waiting}")


def _is_unresolved(given: Standing) -> Finding | None:
    intent = given.lineup.intent
    if intent.desired is not None:
        return None
    if intent.failure is not None:
        reason = intent.failure.reason or Reason.LOAD_FAILED
        return Finding(reason, intent.failure.message, is_stalled=not intent.failure.retryable)
    if not any(pod.is_writable for pod in given.pods):
        return Finding(Reason.NO_READY_PODS, "the base has no pod yet that could resolve the source")
    return Finding(Reason.RESOLVING, "a pod is resolving the source")


def _has_no_pod(given: Standing) -> Finding | None:
    if given.serving:
        return None
    if given.is_asleep and given.published == given.desired.revision:
        message = f"no pod runs: a request for revision {given.published} starts one, and waits for it"
        return Finding(Reason.SCALED_TO_ZERO, message, is_ready=True)
    if given.is_asleep and _is_taking_steps(given) is not None:
        return None
    if any(pod.state is None for pod in given.ready):
        return Finding(Reason.NO_READY_PODS, "pods are ready and do not answer the operator", is_ready=None)
    return Finding(Reason.NO_READY_PODS, "the base has no ready pod")


def _is_taking_steps(given: Standing) -> Finding | None:
    """A rollout by steps that gives the revision a part of the requests, or has given it up."""
    rollout = given.rollout
    if rollout is None or rollout.phase in (None, RolloutPhase.LOADING, RolloutPhase.PROMOTING):
        return None
    reason, message = rollout.reason or Reason.CANARY_STEP, rollout.message or ""
    is_waiting = rollout.phase is RolloutPhase.PROGRESSING or reason == Reason.CANARY_PAUSED
    return Finding(reason, message, is_stalled=not is_waiting)


def _is_unverified(given: Standing) -> Finding | None:
    """The revision does not answer as it must, or has not been asked yet by whoever has it."""
    verdict = given.lineup.intent.verdict
    if given.is_served or verdict is None or verdict.is_passed:
        return None
    message = f"revision {given.desired.revision}: {verdict.words}"
    if verdict.is_passed is False:
        return Finding(Reason.VERIFY_FAILED, message, is_stalled=True)
    if given.num_answering == 0:
        return None
    reason = Reason.VERIFY_UNAVAILABLE if verdict.message else Reason.VERIFYING
    return Finding(reason, message, is_stalled=given.is_overdue)


def _has_no_room(given: Standing) -> Finding | None:
    """Everywhere it is known, it could be loaded only in the place of what is pinned."""
    if given.is_served:
        return None
    name, revision = given.lineup.name, given.desired.revision
    known = [(pod, entry) for pod in given.serving if (entry := pod.own(name, revision)) is not None]
    if not known or any(not _waits_for_room(entry) or pod.has_room_for(entry) for pod, entry in known):
        return None
    pod = known[0][0]
    message = f"no pod has room for revision {revision}: pinned adapters hold {pod.pinned_words} of {pod.pod.name}"
    return Finding(Reason.INSUFFICIENT_SLOTS, message, is_stalled=True)


def _waits_for_room(entry: ObservedAdapter) -> bool:
    if entry.state is AdapterState.FAILED:
        return entry.reason == Reason.OUT_OF_MEMORY
    return entry.state is AdapterState.READY


def _is_overdue(given: Standing) -> Finding | None:
    """What will not mend itself is said as what it is, also then."""
    if given.is_served or not given.is_overdue or _is_nowhere_placed(given) is not None:
        return None
    failed = _has_failed(given)
    if failed is not None and failed.is_stalled:
        return None
    seconds = given.lineup.intent.adapter.spec.rollout.progress_deadline_seconds
    pods = obstacles(given.lineup.name, given.desired.revision, given.pods)
    message = (
        f"revision {given.desired.revision} has made no progress for {seconds} s and is ready on "
        f"{given.num_answering} of {len(given.serving)} pods; {pods}"
    )
    return Finding(Reason.PROGRESS_DEADLINE_EXCEEDED, message, is_stalled=True)


def _has_failed(given: Standing) -> Finding | None:
    if given.is_served or given.failure is None:
        return None
    pod, entry = given.failure
    is_stalled = entry.reason not in RETRYABLE_ON_NEWER_POD
    return Finding(entry.reason or Reason.LOAD_FAILED, f"{pod}: {entry.message}", is_stalled=is_stalled)


def _is_nowhere_placed(given: Standing) -> Finding | None:
    if given.is_served or not given.lineup.is_on_demand_refused:
        return None
    name, revision = given.lineup.name, given.desired.revision
    entries = [pod.own(name, revision) for pod in given.serving]
    if any(entry is None or entry.residency is not Residency.ON_DEMAND for entry in entries):
        return None
    message = f"no pod has room for revision {revision}, and loadOnDemand is Disabled"
    return Finding(Reason.INSUFFICIENT_SLOTS, message, is_stalled=True)


def _is_loading(given: Standing) -> Finding | None:
    if given.is_served:
        return None
    ready = f"{given.num_answering} of {len(given.serving)} pods"
    return Finding(Reason.LOADING, f"revision {given.desired.revision} is ready on {ready}")


READINESS: Final[Chain[Standing, Finding]] = (
    Check(
        "The adapter is not being deleted.",
        (Reason.DRAINING,),
        "Wait: requests that run end first, for up to `unload.drainTimeoutSeconds`.",
        _is_deleted,
    ),
    Check(
        "The adapter is accepted.",
        (),
        "See the checks of acceptance.",
        _is_refused,
    ),
    Check(
        "No change waits for `suspend` to be taken back.",
        (Reason.SUSPENDED,),
        "Set `suspend: false`.",
        _is_held_back,
    ),
    Check(
        "The source is resolved to a revision.",
        (Reason.NO_READY_PODS, Reason.RESOLVING),
        "Wait, or mend what the reason names; another reason is that of the pod that resolves it.",
        _is_unresolved,
    ),
    Check(
        "The base has a ready pod that answers the operator, or does without pods while nothing is asked.",
        (Reason.NO_READY_PODS, Reason.SCALED_TO_ZERO),
        "Look at `Ready` of the base: its message names a pod that does not come up, and why.",
        _has_no_pod,
    ),
    Check(
        "No rollout by steps is under way, or has ended with a return to the stable revision.",
        (
            Reason.CANARY_STEP,
            Reason.CANARY_PAUSED,
            Reason.ANALYSIS_FAILED,
            Reason.ABORTED,
            Reason.VERIFY_FAILED,
            Reason.PROGRESS_DEADLINE_EXCEEDED,
        ),
        "Wait, or see `kubectl lorafleet rollout status`. What was rolled back is tried again with another source, or when "
        "`lorafleet.io/retry` is annotated with a new value.",
        _is_taking_steps,
    ),
    Check(
        "The revision answers the questions of `spec.verify` as it must, or is served already.",
        (Reason.VERIFYING, Reason.VERIFY_UNAVAILABLE, Reason.VERIFY_FAILED),
        "Wait, or look at the check that the message names. The same revision is asked again when a question of `spec.verify` is "
        "another one, or `lorafleet.io/retry` is annotated with a new value.",
        _is_unverified,
    ),
    Check(
        "Some pod has room for the revision beside what is pinned there.",
        (Reason.INSUFFICIENT_SLOTS,),
        "Pin fewer adapters, raise `lora.maxResidentAdapters`, or add replicas.",
        _has_no_room,
    ),
    Check(
        "The revision is served, or made progress within `rollout.progressDeadlineSeconds`.",
        (Reason.PROGRESS_DEADLINE_EXCEEDED,),
        "Look at the pods that the message names. Nothing is rolled back: the operator goes on, and what served serves. "
        "Put the old source back to give the revision up.",
        _is_overdue,
    ),
    Check(
        "The revision is served, or no pod failed to load it.",
        (),
        "Mend what the reason names: it is that of the pod.",
        _has_failed,
    ),
    Check(
        "With `loadOnDemand: Disabled`, some pod has room for the revision.",
        (Reason.INSUFFICIENT_SLOTS,),
        "Raise `lora.maxResidentAdapters`, add replicas, or place fewer adapters.",
        _is_nowhere_placed,
    ),
    Check(
        "Some ready pod has loaded the revision, and all ready pods answer the bare name with it.",
        (Reason.LOADING,),
        "Wait.",
        _is_loading,
    ),
)
"""In this order; the first that finds something decides."""
