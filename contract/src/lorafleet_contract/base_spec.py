"""The spec of a BaseModelDeployment: the model, how its pods run, and what they set aside for adapters."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lorafleet_contract.admin import ServedName
from lorafleet_contract.autoscaling import AutoscalingSpec
from lorafleet_contract.base import Observed
from lorafleet_contract.guests import Guests
from lorafleet_contract.rollout import RolloutDefaults
from lorafleet_contract.routing import RoutingSpec
from lorafleet_contract.sources import AdapterSource, HubRepo, SecretRef, VolumePlace, check_relative


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
