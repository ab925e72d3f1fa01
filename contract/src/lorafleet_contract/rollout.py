"""How an adapter comes from one revision to the next: what its spec says of it, and what its status."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from lorafleet_contract.base import Observed
from lorafleet_contract.sources import Revision

Percent = Annotated[int, Field(ge=0, le=100)]


class Pause(Observed):
    """A step that waits."""

    duration_seconds: Annotated[int, Field(ge=1)] | None = None
    """None: until a person promotes."""


class Step(Observed):
    """One item of `steps`: exactly one of its fields is given."""

    set_weight: Annotated[int, Field(ge=1, le=99)] | None = None
    """Percent of the requests for the bare name that the new revision gets from here on."""
    pause: Pause | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.set_weight is None) == (self.pause is None):
            raise ValueError("a step needs exactly one of setWeight, pause")
        return self


class ThresholdRange(Observed):
    """What a number may be; at least one of the two is given."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a range needs at least one of min, max")
        return self


class PrometheusQuery(Observed):
    """A query whose answer, one number, has to be within a range."""

    name: str
    query: str
    """With `$(revision)`, `$(stable)`, `$(adapter)`, `$(base)`, `$(namespace)` and `$(window)`."""
    threshold_range: ThresholdRange


class Analysis(Observed):
    """By what a new revision is judged, window after window, from what gateways count."""

    window_seconds: Annotated[int, Field(ge=1)] = 120
    min_requests: Annotated[int, Field(ge=1)] = 50
    """Of each revision that is compared; with fewer a window goes on."""
    max_error_percent: Percent | None = None
    max_error_percent_over_stable: Percent | None = None
    """Percentage points above the stable revision's."""
    max_latency_percent_over_stable: Annotated[int, Field(ge=0)] | None = None
    """By how much the 95th percentile of the time to the first byte may exceed the stable revision's."""
    prometheus: list[PrometheusQuery] = []
    """Asked of the operator's Prometheus when a window is over."""
    failure_limit: Annotated[int, Field(ge=0)] = 0
    """Windows that may be judged bad before the revision fails."""


class OnFailure(StrEnum):
    """What follows when a new revision is judged bad, or makes no progress while it has requests."""

    ROLLBACK = "Rollback"
    PAUSE = "Pause"


class RolloutDefaults(Observed):
    """`spec.lora.rollout` of a base: of its adapters that do not say so themselves."""

    steps: list[Step] = []
    analysis: Analysis | None = None
    """None: steps are taken by time and people alone."""
    on_failure: OnFailure = OnFailure.ROLLBACK


class RolloutSpec(Observed):
    """`spec.rollout` of a LoraAdapter."""

    steps: list[Step] | None = None
    """None: those of the base; empty: none, the name moves at once."""
    analysis: Analysis | None = None
    """None: as the base says."""
    on_failure: OnFailure | None = None
    """None: as the base says."""
    progress_deadline_seconds: Annotated[int, Field(ge=1)] = 600
    """A new revision that makes no progress for so long is reported, and one that has a part of the requests has failed."""


class TrafficShare(Observed):
    """One item of `status.traffic`: what part of the requests for the bare name a revision gets."""

    revision: Revision
    weight: Percent


class RolloutPhase(StrEnum):
    """Where a rollout by steps stands."""

    LOADING = "Loading"
    """Pods are loading the revision; no request goes to it yet."""
    PROGRESSING = "Progressing"
    """Steps are taken, each as its time and the analysis allow."""
    PAUSED = "Paused"
    """It waits for a person, with the weight that it has."""
    PROMOTING = "Promoting"
    """All steps are done: the bare name is moving to the revision on all pods."""
    ROLLED_BACK = "RolledBack"
    """It is given up: no request goes to it, and it is not tried again until source, content or `lorafleet.io/retry` changes."""


class Judgement(StrEnum):
    """What an analysis came to."""

    GOOD = "Good"
    BAD = "Bad"
    INCONCLUSIVE = "Inconclusive"
    """Too few requests, or a gateway did not answer: never good."""


class RevisionCounts(Observed):
    """Requests of one revision within a window, summed over all gateways."""

    requests: int = 0
    """Those that say something of the revision: without what was the client's fault, refused for load, or left."""
    faults: int = 0
    """Errors of the revision itself."""
    lost: int = 0
    """Requests that were lost with their pod, or found none."""
    p95_milliseconds: int | None = None
    """To the first byte, of answers that ended well."""


class RolloutEvidence(Observed):
    """What the last judgement was made from."""

    since: datetime
    until: datetime
    canary: RevisionCounts
    stable: RevisionCounts
    gateways: int = 0
    """Gateways that were to be heard."""
    silent_gateways: int = 0
    """Those that did not answer."""
    judgement: Judgement
    message: str = ""
    """Why, in words."""


class RolloutStatus(Observed):
    """`status.rollout`: the desired revision while it is not the stable one and the base has pods that could load it.

    The fields from `phase` on are there only where the rollout is by steps.
    """

    revision: str
    start_time: datetime
    last_progress_time: datetime
    """When one more pod than ever before was ready with the revision, or a step was taken; at first the start."""
    ready_pods: int = 0
    """The most pods that were ready with it at the same time."""
    phase: RolloutPhase | None = None
    reason: str | None = None
    """A Reason, of the phase."""
    message: str | None = None
    step_index: int | None = None
    """Of `spec.rollout.steps`, from 0: the step that is being taken; their number once all are done."""
    num_steps: int | None = None
    step_start_time: datetime | None = None
    steps_hash: str | None = None
    """Of the steps and the analysis that it follows, and of the try: with other ones it begins anew."""
    spent_promotion: str | None = None
    """What `lorafleet.io/promote` said when this try began: an answer to an earlier one, which does not count here."""
    failures: int | None = None
    """Windows that were judged bad."""
    end_time: datetime | None = None
    """When it was given up."""
    evidence: RolloutEvidence | None = None


class RolloutResult(StrEnum):
    """What became of a revision that was rolled out by steps."""

    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"
    SUPERSEDED = "Superseded"
    """Another revision was asked for, or the stable one again, before it was done."""
