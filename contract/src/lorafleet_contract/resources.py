"""The two custom resources as Python reads them. `crds/` is the source of truth for what the API server admits."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from lorafleet_contract.admin import ServedName
from lorafleet_contract.autoscaling import AutoscalingSpec, AutoscalingStatus
from lorafleet_contract.base import Observed
from lorafleet_contract.guests import Guests
from lorafleet_contract.names import revision_of
from lorafleet_contract.rollout import RolloutDefaults, RolloutResult, RolloutSpec, RolloutStatus, TrafficShare
from lorafleet_contract.routing import AppliedObject, RoutingSpec
from lorafleet_contract.sources import (
    AdapterFacts,
    AdapterSource,
    Digest,
    HubRepo,
    ResolvedSource,
    SecretRef,
    SourceFile,
    SourceRef,
    VolumePlace,
    check_relative,
)
from lorafleet_contract.verify import VerifySpec, VerifyStatus


class ModelFromHub(Observed):
    """A base model on a hub."""

    repo: HubRepo
    revision: str | None = None
    endpoint: str | None = None
    credentials_secret_ref: SecretRef | None = None


class ModelFromBucket(Observed):
    """A base model in a bucket: config, tokenizer and weights lie right below the prefix."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    credentials_secret_ref: SecretRef | None = None


class CacheClaim(Observed):
    """A PersistentVolumeClaim that exists."""

    claim_name: str
    read_only: bool = False
    """Pods take from it what others have put there, and write nothing."""


class CacheFolder(Observed):
    """A folder of each node, that exists."""

    path: str


class ModelCache(Observed):
    """Where downloaded models are kept for the next start: exactly one of the two."""

    persistent_volume_claim: CacheClaim | None = None
    host_path: CacheFolder | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.persistent_volume_claim is None) == (self.host_path is None):
            raise ValueError("model.cache needs exactly one of persistentVolumeClaim, hostPath")
        return self


class ModelSource(Observed):
    """Where the base model comes from: exactly one place."""

    hugging_face: ModelFromHub | None = None
    s3: ModelFromBucket | None = None
    volume: VolumePlace | None = None
    cache: ModelCache | None = None
    """Of models that are downloaded; None: each pod downloads its own."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.hugging_face, self.s3, self.volume)) != 1:
            raise ValueError("model needs exactly one of huggingFace, s3, volume")
        if self.cache is not None and self.volume is not None:
            raise ValueError("model.cache goes with huggingFace or s3")
        if self.s3 is not None:
            check_relative(self.s3.prefix.strip("/") or None)
        if self.volume is not None:
            check_relative(self.volume.path or None)
        return self


class Speculation(Observed):
    """How tokens of answers are drafted."""

    tokens: Annotated[int, Field(ge=1, le=64)]
    """Of an answer in a step, at most."""
    model: str | None = None
    """That proposes them: as `--speculative-model`; None: they are looked up."""


class EngineSpec(Observed):
    """How the engine of a pod runs."""

    image: str | None = None
    """Default: the image that the operator was installed with."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    device: Literal["Auto", "Cuda", "Cpu"] = "Auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["int8", "int4", "fp8", "nf4"] | None = None
    """To what a base in 16 or 32 bit is quantised when a pod reads it; None: it is served as it is."""
    max_model_len: int | None = None
    max_batch_tokens: int | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """How keys and values are kept; auto: in the dtype of the model."""
    kv_cache_memory: str | None = None
    """Quantity; of each rank."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that the model is split among."""
    hosts: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods of a replica, which share its GPUs out evenly."""
    speculation: Speculation | None = None
    unknown_fields: Literal["Refuse", "Ignore"] = "Refuse"
    """Of requests."""
    args: list[str] = []
    env: list[dict[str, Any]] = []

    @property
    def ranks_per_host(self) -> int:
        """GPUs of each pod."""
        return self.tensor_parallel_size // self.hosts


class LoraBudget(Observed):
    """What a pod sets aside for adapters."""

    max_resident_adapters: Annotated[int, Field(ge=1, le=4096)] = 32
    max_rank: Annotated[int, Field(ge=1, le=256)] = 64
    adapter_memory: str | None = None
    """Quantity."""
    host_cache: str = "4Gi"
    disk_cache: str = "20Gi"
    load_on_demand: Literal["Enabled", "Disabled"] = "Enabled"
    ad_hoc: Literal["Forbidden", "Sources"] = "Forbidden"
    """Whether requests may name adapters that no LoraAdapter declares, in the declared sources."""
    unknown_config_fields: Literal["Refuse", "Ignore"] = "Refuse"
    """Of an adapter's config: those, not empty, that no PEFT of today knows."""
    guests: Guests = Guests()
    rollout: RolloutDefaults = RolloutDefaults()


class DrainSpec(Observed):
    """How long a pod that goes away may finish what it runs."""

    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60


class BaseRollout(Observed):
    """How a change of the pod template replaces pods, as in a Deployment."""

    max_surge: int | str = 1
    max_unavailable: int | str = 0


class BaseModelSpec(Observed):
    """Spec of a BaseModelDeployment."""

    served_name: ServedName | None = None
    model: ModelSource
    adapter_sources: list[AdapterSource] = []
    engine: EngineSpec = EngineSpec()
    lora: LoraBudget = LoraBudget()
    replicas: Annotated[int, Field(ge=0)] = 1
    """Without `autoscaling`."""
    autoscaling: AutoscalingSpec | None = None
    pod_template: dict[str, Any] = {}
    """Strategic merge over the operator's pod template; its container is `engine`."""
    drain: DrainSpec = DrainSpec()
    rollout: BaseRollout = BaseRollout()
    routing: RoutingSpec = RoutingSpec()
    allowed_namespaces: list[str] = []
    """Namespaces other than its own whose LoraAdapters may name this base; `*` is all."""
    suspend: bool = False
    """While true, Deployment, Services and budget stay as they are; adapters go on being managed."""


class PlacementMode(StrEnum):
    """On how many pods an adapter is resident."""

    ALL = "All"
    FIXED = "Fixed"
    ON_DEMAND = "OnDemand"
    AUTO = "Auto"
    """As many as its part of the tokens asks for."""


class PlacementSpec(Observed):
    """Where an adapter is resident."""

    mode: PlacementMode = PlacementMode.FIXED
    replicas: Annotated[int, Field(ge=1)] = 1
    """With mode Fixed."""
    min_replicas: Annotated[int, Field(ge=0)] | None = None
    """With mode Auto; None: 1; 0: on demand while it is quiet."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """With mode Auto; None: all pods."""
    pin: bool = False
    priority: int = 0
    """Higher comes first where not all fit."""

    @property
    def least(self) -> int:
        """With mode Auto: pods that keep it at least."""
        return 1 if self.min_replicas is None else self.min_replicas


class UnloadSpec(Observed):
    """How an adapter leaves a pod."""

    drain_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    force_after_seconds: Annotated[int, Field(ge=1)] = 900
    """After its deletion, and never before the drain: then it goes though a pod that does not answer may hold it."""


class BaseModelRef(Observed):
    """A BaseModelDeployment; another namespace needs its `allowedNamespaces`."""

    name: str
    namespace: str | None = None


class AdapterSpec(Observed):
    """Spec of a LoraAdapter."""

    base_model_ref: BaseModelRef
    served_name: ServedName | None = None
    source: SourceRef
    digest: Digest | None = None
    placement: PlacementSpec = PlacementSpec()
    unload: UnloadSpec = UnloadSpec()
    rollout: RolloutSpec = RolloutSpec()
    verify: VerifySpec | None = None
    """What a new revision has to answer before any request reaches it."""
    suspend: bool = False
    """Changes of source, digest and placement are not acted on while true; what serves goes on serving."""


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


def quantity_bytes(quantity: str) -> int:
    """Return a Kubernetes quantity in bytes, e.g. `4Gi` -> 4294967296.

    Raises:
        ValueError: not a quantity.
    """
    units = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    number = quantity.rstrip("kKMGTi")
    try:
        return int(float(number) * units[quantity[len(number) :]])
    except (KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"not a quantity of bytes: {quantity!r}") from error
