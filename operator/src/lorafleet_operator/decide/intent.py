"""What is wanted of each adapter: which revisions it has, and whether they may serve. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final

from lorafleet_contract.admin import AdapterState
from lorafleet_contract.names import ANNOTATION_RETRY
from lorafleet_contract.resources import AdapterResource, ArtifactStatus
from lorafleet_contract.rollout import RolloutPhase
from lorafleet_contract.sources import SourceRef
from lorafleet_operator.decide.accept import Refusal, refusal_of
from lorafleet_operator.decide.canary import RolloutPlan, current, rollout_plan
from lorafleet_operator.decide.verify import Verdict, VerifyKey, verdict_of
from lorafleet_operator.decide.views import ObservedPod, Snapshot


@dataclass(frozen=True, slots=True)
class ResolveKey:
    """What a resolution is an answer to."""

    adapter_uid: str
    source: SourceRef
    digest: str | None
    retry: str = ""
    """Value of the adapter's annotation that asks for another try."""


@dataclass(frozen=True, slots=True)
class ResolveFailure:
    """A source that could not be resolved."""

    reason: str
    message: str
    retryable: bool
    """Whether trying again may help without a change of anything."""


@dataclass(frozen=True, slots=True)
class RevisionKey:
    """A revision that pods have, and of which status does not say what it is made of: a pod that has it is asked."""

    adapter_uid: str
    name: str
    revision: str


Question = ResolveKey | RevisionKey
"""What only pods can answer."""
Resolutions = Mapping[Question, ArtifactStatus | ResolveFailure]
NO_VERDICTS: Final[Mapping[VerifyKey, Verdict]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Intent:
    """One adapter: what it is and what is wanted of it."""

    adapter: AdapterResource
    refusal: Refusal | None
    desired: ArtifactStatus | None
    """What spec asks for; None until it is resolved."""
    published: str | None
    """The revision that answers: as status says, else as pods show."""
    stable: ArtifactStatus | None
    """What the published revision is made of; None when there is none, or until a pod says what status has lost."""
    failure: ResolveFailure | None
    """Why the desired one is not resolved."""
    owns_name: bool
    published_at: datetime | None = None
    """Since when the API server is known to say which revisions answer; later than the time that status tells."""
    lost: RevisionKey | None = None
    """The published revision, where status does not say what it is made of."""
    rollout: RolloutPlan | None = None
    """By which steps the desired revision takes the place of the published one; None: at once."""
    verdict: Verdict | None = None
    """Whether the desired revision answers as it must; None where nothing is asked of it."""
    artifacts: tuple[ArtifactStatus, ...] = field(init=False, repr=False, compare=False)
    """The revisions that pods should know, the desired one first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "artifacts", self._artifacts())

    @property
    def name(self) -> str:
        """The served name."""
        return self.adapter.served_name

    @property
    def is_deleted(self) -> bool:
        """Whether the adapter is to go."""
        return self.adapter.metadata.deletion_timestamp is not None

    @property
    def is_served(self) -> bool:
        """Whether pods should know any revision of it."""
        may = self.refusal is None or self.refusal.keeps_serving
        return self.owns_name and may and not self.is_deleted

    def _artifacts(self) -> tuple[ArtifactStatus, ...]:
        if not self.is_served:
            return ()
        desired = self.desired if self.refusal is None else None
        if self.is_given_up and self.stable is not None:
            desired = None
        both = (desired, self.stable)
        if desired is not None and self.stable is not None and desired.revision == self.stable.revision:
            both = (desired, None)
        return tuple(artifact for artifact in both if artifact is not None)

    @property
    def is_given_up(self) -> bool:
        """Whether the desired revision is not to take the place of the published one, as it was found bad."""
        return self.phase is RolloutPhase.ROLLED_BACK or (self.verdict is not None and self.verdict.is_passed is False)

    @property
    def is_verified(self) -> bool:
        """Whether nothing is asked of the desired revision that it has not answered as it must."""
        return self.verdict is None or self.verdict.is_passed is True

    @property
    def phase(self) -> RolloutPhase | None:
        """Where the rollout by steps of the desired revision stands, as status has it; None where there is none."""
        if self.rollout is None or self.desired is None or self.desired.revision == self.published:
            return None
        status = current(self.rollout, self.desired.revision, self.adapter.status.rollout)
        return status.phase if status is not None else None

    @property
    def needs_resolving(self) -> bool:
        """Whether it matters what the source is now: until status says it, the answer of a pod is all there is."""
        if not self.is_served or self.refusal is not None or self.adapter.spec.suspend:
            return False
        return self.desired is None or self.desired != self.adapter.status.artifact


def resolve_key(adapter: AdapterResource) -> ResolveKey:
    """Return what a resolution of the adapter as it stands answers."""
    retry = adapter.metadata.annotations.get(ANNOTATION_RETRY, "")
    return ResolveKey(adapter.metadata.uid, adapter.spec.source, adapter.spec.digest, retry)


def intents_of(
    snapshot: Snapshot,
    pods: Iterable[ObservedPod],
    resolutions: Resolutions,
    verdicts: Mapping[VerifyKey, Verdict] = NO_VERDICTS,
) -> tuple[Intent, ...]:
    """Return what is wanted of each adapter of a base."""
    observed = tuple(pods)
    return tuple(intent_of(adapter, snapshot, observed, resolutions, verdicts) for adapter in snapshot.adapters)


def intent_of(
    adapter: AdapterResource,
    snapshot: Snapshot,
    pods: tuple[ObservedPod, ...],
    resolutions: Resolutions,
    verdicts: Mapping[VerifyKey, Verdict] = NO_VERDICTS,
) -> Intent:
    """Return what is wanted of one adapter."""
    claim = snapshot.claims.get(adapter.served_name)
    owns_name = claim is None or claim.uid == adapter.metadata.uid
    desired = _desired(adapter, resolutions)
    answer = resolutions.get(resolve_key(adapter))
    published = _published(adapter, snapshot, pods, desired)
    if published is None and owns_name:
        published = _adopted(adapter.served_name, pods)
    stable, lost = _artifact_of(adapter, published, desired), None
    if published is not None and stable is None:
        lost = RevisionKey(adapter.metadata.uid, adapter.served_name, published)
        found = resolutions.get(lost)
        stable = found if isinstance(found, ArtifactStatus) else None
    return Intent(
        adapter=adapter,
        refusal=refusal_of(adapter, snapshot),
        desired=desired,
        published=published,
        stable=stable,
        failure=answer if desired is None and isinstance(answer, ResolveFailure) else None,
        owns_name=owns_name,
        published_at=snapshot.published_at.get(adapter.metadata.uid),
        lost=lost,
        rollout=rollout_plan(adapter, snapshot.base),
        verdict=verdict_of(adapter, desired, published, verdicts),
    )


def _desired(adapter: AdapterResource, resolutions: Resolutions) -> ArtifactStatus | None:
    known = adapter.status.artifact
    if adapter.spec.suspend:
        return known
    if known is not None and known.source == adapter.spec.source and adapter.spec.digest in (None, known.digest):
        return known
    answer = resolutions.get(resolve_key(adapter))
    return answer if isinstance(answer, ArtifactStatus) else None


def _artifact_of(
    adapter: AdapterResource, revision: str | None, desired: ArtifactStatus | None
) -> ArtifactStatus | None:
    candidates = (desired, adapter.status.stable_artifact, adapter.status.artifact)
    return next((a for a in candidates if a is not None and a.revision == revision), None)


def _published(
    adapter: AdapterResource, snapshot: Snapshot, pods: tuple[ObservedPod, ...], desired: ArtifactStatus | None
) -> str | None:
    """Return the revision that status names, unless nobody knows any more what it is made of, and no pod has it."""
    name, revision = adapter.served_name, adapter.status.stable_revision
    if revision is None or _artifact_of(adapter, revision, desired) is not None or snapshot.are_pods_hidden:
        return revision
    staying = [pod for pod in pods if not pod.pod.is_leaving and not pod.is_lost]
    is_gone = all(pod.state is not None and pod.own(name, revision) is None for pod in staying)
    return None if staying and is_gone else revision


def _adopted(name: str, pods: tuple[ObservedPod, ...]) -> str | None:
    """A status that was lost: what pods answer with is what is stable."""
    answering = {
        entry.revision
        for pod in pods
        for entry in pod.entries_of(name)
        if entry.stable and entry.state is AdapterState.READY
    }
    return min(answering) if answering else None
