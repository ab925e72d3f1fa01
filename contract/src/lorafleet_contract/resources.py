"""The two custom resources as Python reads them, with their statuses. `crds/` is the source of truth for what the API server admits."""

from datetime import datetime
from typing import Final, Literal, Self

from pydantic import model_validator

from lorafleet_contract.adapter_spec import AdapterSpec, PlacementSpec
from lorafleet_contract.autoscaling import AutoscalingStatus
from lorafleet_contract.base import Observed
from lorafleet_contract.base_spec import BaseModelSpec
from lorafleet_contract.names import revision_of
from lorafleet_contract.rollout import RolloutResult, RolloutStatus, TrafficShare
from lorafleet_contract.routing import AppliedObject
from lorafleet_contract.sources import AdapterFacts, Digest, ResolvedSource, SourceFile, SourceRef
from lorafleet_contract.verify import VerifyStatus


class Condition(Observed):
    """metav1.Condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    observed_generation: int | None = None
    last_transition_time: datetime


class ArtifactStatus(Observed):
    """What a revision is made of: with it alone a pod can be told to load the revision, without asking the source again."""

    source: SourceRef
    """The reference in spec that was resolved; another one in spec means another artifact."""
    digest: Digest
    revision: str
    size_bytes: int
    rank: int
    target_modules: list[str] = []
    memory_pages: int | None = None
    """Pages of adapter memory that it takes; None where no pod has said."""
    invocation_tokens: list[int] | None = None
    resolved_revision: str | None = None
    """A hub's commit, or the digest of a registry's manifest."""
    files: list[SourceFile] = []

    @classmethod
    def of(cls, source: SourceRef, resolved: ResolvedSource) -> Self:
        """Return what status keeps of a resolved reference."""
        return cls(
            source=source,
            digest=resolved.digest,
            revision=revision_of(resolved.digest),
            size_bytes=resolved.facts.size_bytes,
            rank=resolved.facts.rank,
            target_modules=resolved.facts.target_modules,
            memory_pages=resolved.facts.memory_pages,
            invocation_tokens=resolved.facts.invocation_tokens,
            resolved_revision=resolved.ref.revision,
            files=resolved.files,
        )

    @property
    def resolved(self) -> ResolvedSource:
        """What catalogues carry."""
        return ResolvedSource(
            ref=self.source.model_copy(update={"revision": self.resolved_revision}),
            digest=self.digest,
            files=self.files,
            facts=AdapterFacts(
                rank=self.rank,
                size_bytes=self.size_bytes,
                target_modules=self.target_modules,
                invocation_tokens=self.invocation_tokens,
                memory_pages=self.memory_pages,
            ),
        )


class PlacementStatus(Observed):
    """One adapter revision on one pod."""

    pod: str
    pod_uid: str
    revision: str
    state: str
    """An AdapterState, or Unknown while the pod does not say."""
    tier: str | None = None
    reason: str | None = None
    message: str | None = None

    @model_validator(mode="after")
    def _without_a_set_of_its_own(self) -> Self:
        # there are adapters x pods of them: which fields were given nobody asks, and it would be most of what each takes
        object.__setattr__(self, "__pydantic_fields_set__", _PLACEMENT_FIELDS)
        return self


_PLACEMENT_FIELDS: Final = set(PlacementStatus.model_fields)


class HistoryEntry(Observed):
    """A revision that was stable, or was rolled out by steps and given up; newest first."""

    revision: str
    digest: Digest
    since: datetime
    """When it began to answer for the name; of one that never did, when it was given up."""
    result: RolloutResult | None = None
    """Of a rollout by steps; None: the name moved to it at once."""
    reason: str | None = None
    """A Reason, of one that was given up."""
    source: SourceRef | None = None
    """What spec asked for then; None: an older operator wrote it."""
    resolved_revision: str | None = None
    """The hub commit, where the source has commits."""

    @property
    def was_stable(self) -> bool:
        """Whether it ever answered for the bare name."""
        return self.result in (None, RolloutResult.PROMOTED)


class AdapterReplicas(Observed):
    """Pods that should and do hold the adapter."""

    desired: int = 0
    resident: int = 0


class AdapterStatus(Observed):
    """Status of a LoraAdapter."""

    observed_generation: int | None = None
    served_name: str | None = None
    desired_revision: str | None = None
    stable_revision: str | None = None
    artifact: ArtifactStatus | None = None
    stable_artifact: ArtifactStatus | None = None
    """As `artifact`, of the stable revision, while it is another one."""
    placements: list[PlacementStatus] = []
    placements_truncated: int | None = None
    replicas: AdapterReplicas = AdapterReplicas()
    history: list[HistoryEntry] = []
    last_used: datetime | None = None
    """The hour of the last request that a pod has told of."""
    placement: PlacementSpec | None = None
    """The placement that is acted on: spec's, or the one before `suspend` was set."""
    rollout: RolloutStatus | None = None
    traffic: list[TrafficShare] | None = None
    """Of the bare name, the stable revision first; sums to 100. None: all goes to the stable one."""
    verify: VerifyStatus | None = None
    """Of the desired revision."""
    conditions: list[Condition] = []


class BaseCapacity(Observed):
    """Sums over pods that answer."""

    adapter_slots: int = 0
    assigned_adapter_slots: int = 0
    rank_pages: int = 0
    """Pages of adapter memory, as each pod counts them."""
    assigned_rank_pages: int = 0
    catalogue_bytes: int = 0
    """Size of all adapters of the base together."""


class AdapterCounts(Observed):
    """LoraAdapters that name a base."""

    desired: int = 0
    ready: int = 0
    failed: int = 0


class ReservedName(Observed):
    """A served name that only LoraAdapters of one namespace may have for a while, because one of them served under it."""

    name: str
    namespace: str
    until: datetime


class BaseModelStatus(Observed):
    """Status of a BaseModelDeployment."""

    observed_generation: int | None = None
    operator: str | None = None
    """`namespace/Lease` of the operator that works on it; empty when that one serves the namespace no more."""
    served_name: str | None = None
    """None when another resource has the name."""
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    selector: str | None = None
    url: str | None = None
    autoscaling: AutoscalingStatus | None = None
    inference_pool: AppliedObject | None = None
    model_rewrite: AppliedObject | None = None
    capacity: BaseCapacity = BaseCapacity()
    adapters: AdapterCounts = AdapterCounts()
    reserved_names: list[ReservedName] = []
    conditions: list[Condition] = []


class ObjectMeta(Observed):
    """What we read of metadata."""

    name: str
    namespace: str
    uid: str
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: list[str] = []
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class BaseModelResource(Observed):
    """A BaseModelDeployment."""

    metadata: ObjectMeta
    spec: BaseModelSpec
    status: BaseModelStatus = BaseModelStatus()

    @property
    def served_name(self) -> str:
        """The model name that requests for the base itself use."""
        return self.spec.served_name or self.metadata.name

    @property
    def wanted_replicas(self) -> int:
        """Pods that there should be, as far as the resource says."""
        scaled = self.status.autoscaling if self.spec.autoscaling is not None else None
        return self.spec.replicas if scaled is None else scaled.desired_replicas

    def with_replicas(self, number: int) -> Self:
        """Return it as if its spec asked for that many pods."""
        return self.model_copy(update={"spec": self.spec.model_copy(update={"replicas": number})})


class AdapterResource(Observed):
    """A LoraAdapter."""

    metadata: ObjectMeta
    spec: AdapterSpec
    status: AdapterStatus = AdapterStatus()

    @property
    def served_name(self) -> str:
        """The model name that requests use."""
        return self.spec.served_name or self.metadata.name

    @property
    def placement(self) -> PlacementSpec:
        """The placement that is acted on: spec's, or while it is suspended the one before."""
        return (self.status.placement if self.spec.suspend else None) or self.spec.placement
