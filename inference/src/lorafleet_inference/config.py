"""One frozen config object for the pod. The CLI parses, this checks; nothing changes it after the start."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lorafleet_common.errors import ConfigError
from lorafleet_contract.names import ADMIN_PORT, CACHE_DIR, CREDENTIALS_DIR, PUBLIC_PORT, RANKS_PORT, VOLUMES_DIR
from lorafleet_contract.sources import AdapterSource

DeviceChoice = Literal["auto", "cpu", "cuda"]
DtypeChoice = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4", "fp8", "nf4"]
KvCacheDtype = Literal["auto", "fp8"]
DecoderChoice = Literal["auto", "transformers", "own"]
AdHocAdapters = Literal["forbidden", "sources"]
UnknownFields = Literal["refuse", "ignore"]
ToolCallParser = Literal["auto", "hermes", "mistral", "llama", "none"]
ReasoningParser = Literal["auto", "none"]
GIB = 1 << 30
MAX_RANK = 256
"""The largest rank that any option may allow."""
MAX_DRAFT_TOKENS = 64
"""The most draft tokens that the option may allow."""
KV_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the engine process is started with."""

    model: str
    """A folder with config.json and safetensors weights; a hub id is downloaded to the cache before the engine starts."""
    device: DeviceChoice = "auto"
    dtype: DtypeChoice = "auto"
    quantization: Quantization | None = None
    """To what the linear layers of a base in 16 or 32 bit are quantised when it is read."""
    tensor_parallel_size: int = 1
    """Ranks that the model is split among, each a process with a GPU, or with a share of the CPU threads."""
    hosts: int = 1
    """Among which the ranks are divided evenly; the first ones are of the host with the engine."""
    ranks_host: str = "0.0.0.0"
    """Address on which the engine awaits the other hosts."""
    ranks_port: int = RANKS_PORT
    ranks_secret: str = field(default="", repr=False)
    """Who is a host of this model knows it. Empty where there is one host."""
    join_timeout_seconds: float = 1800.0
    """A host that is not there after so long does not come."""
    decoder: DecoderChoice = "auto"
    """Whose code computes the layers; "auto": our own where it is there and was measured to be faster."""
    max_model_len: int | None = None
    """Tokens of prompt and answer; None: what the model's config says."""
    max_batch_tokens: int = 2048
    """Most tokens of a step."""
    target_step_ms: float = 300.0
    """Steps have fewer tokens where the engine has learned that so many would take longer."""
    max_batch_requests: int = 256
    max_resident_adapters: int = 32
    max_rank: int = 64
    kv_cache_dtype: KvCacheDtype = "auto"
    """How keys and values are kept: in the dtype of the model, or in 8 bits."""
    kv_cache_memory_bytes: int | None = None
    """None: on CPU 1 GiB; on CUDA what is free after weights and adapters, less a reserve."""
    adapter_memory_bytes: int | None = None
    """Of the device; None: what `max_resident_adapters` of `max_rank` take, on CUDA at most a quarter of what weights leave."""
    host_cache_bytes: int = 4 * GIB
    prefix_caching: bool = True
    load_on_demand: bool = True
    unknown_config_fields: UnknownFields = "refuse"
    """What is done with an adapter whose config has a field, not empty, that no PEFT of today knows."""
    num_threads: int | None = None
    """CPU threads of torch; None: the cores this process may use."""
    cpu_kernels: bool = True
    """Whether what torch has no fast operation for on CPUs is compiled at the start."""
    gpu_kernels: bool = True
    """Whether the Triton kernels are used on CUDA."""
    cuda_graphs: bool = True
    """Whether steps are captured there."""
    dependent_launch: bool = False
    """Whether some of these kernels begin before the launch ahead of them is done, on GPUs that have it."""
    kernel_cache: str | None = None
    """Folder that keeps the compiled code; None: where Numba and Triton keep it by themselves."""
    speculative_tokens: int = 0
    """Draft tokens of an answer in a step, at most. 0: none are made."""
    speculative_model: str | None = None
    """Folder of the model that proposes them; None: they are looked up."""
    max_step_seconds: float = 300.0
    """An engine that gives no sign of life for so long hangs in a step and is ended."""

    def __post_init__(self) -> None:
        checks = {
            "--tensor-parallel-size": self.tensor_parallel_size >= 1,
            "--hosts": self.hosts >= 1,
            "--ranks-port": 0 <= self.ranks_port <= 65535,
            "--join-timeout-seconds": self.join_timeout_seconds > 0,
            "--max-model-len": self.max_model_len is None or self.max_model_len >= 1,
            "--max-batch-tokens": self.max_batch_tokens >= 1,
            "--target-step-ms": self.target_step_ms > 0,
            "--max-batch-requests": self.max_batch_requests >= 1,
            "--max-resident-adapters": self.max_resident_adapters >= 1,
            "--max-rank": 1 <= self.max_rank <= MAX_RANK,
            "--kv-cache-memory": self.kv_cache_memory_bytes is None or self.kv_cache_memory_bytes > 0,
            "--adapter-memory": self.adapter_memory_bytes is None or self.adapter_memory_bytes > 0,
            "--host-cache": self.host_cache_bytes > 0,
            "--speculative-tokens": 0 <= self.speculative_tokens <= MAX_DRAFT_TOKENS,
            "--num-threads": self.num_threads is None or self.num_threads >= 1,
            "--max-step-seconds": self.max_step_seconds > 0,
        }
        for option, legal in checks.items():
            if not legal:
                raise ConfigError(option, "out of range")
        if self.tensor_parallel_size % self.hosts:
            raise ConfigError(
                "--hosts", f"{self.tensor_parallel_size} ranks cannot be divided evenly among {self.hosts} hosts"
            )
        if self.hosts > 1 and not self.ranks_secret:
            raise ConfigError("--ranks-secret", "is required where a model spans several hosts")
        if self.speculative_model is not None and not self.speculative_tokens:
            raise ConfigError("--speculative-model", "proposes nothing without --speculative-tokens")

    @property
    def ranks_per_host(self) -> int:
        """Ranks on each host."""
        return self.tensor_parallel_size // self.hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What `lorafleet-inference serve` runs with."""

    engine: EngineConfig
    served_name: str
    adapters: tuple[tuple[str, str], ...] = ()
    """(name, source) of `--adapter NAME=SOURCE`: a folder, `hf:REPO[@REVISION]`, `s3://BUCKET/PREFIX` or `oci://HOST/REPO[:TAG|@DIGEST]`."""
    adapter_sources: tuple[AdapterSource, ...] = ()
    """Declared sources: the allow-list of the admin API."""
    host: str = "0.0.0.0"
    port: int = PUBLIC_PORT
    admin_host: str = "0.0.0.0"
    admin_port: int = ADMIN_PORT
    admin_token_file: Path | None = None
    """The bearer token itself, for pods that nobody operates."""
    admin_token_sha256: str | None = None
    """Its SHA-256 in hex. Without this and without a file the admin API listens on loopback only, without a token."""
    keys_file: Path | None = None
    """Whose keys are asked for on the public port; None: nobody is asked."""
    pod_name: str = "local"
    cache_dir: Path = field(default_factory=lambda: Path(CACHE_DIR))
    disk_cache_bytes: int = 20 * GIB
    volumes_dir: Path = field(default_factory=lambda: Path(VOLUMES_DIR))
    credentials_dir: Path = field(default_factory=lambda: Path(CREDENTIALS_DIR))
    max_waiting_requests: int = 1024
    """More are answered 429."""
    max_merged_adapters: int = 32
    """Merges of adapters that are kept; the least recently used one leaves. 0: none are made."""
    ad_hoc_adapters: AdHocAdapters = "forbidden"
    """Whether requests of LoRAX's API may name adapters that no catalogue has: "sources" where they lie in declared ones."""
    max_ad_hoc_adapters: int = 64
    """Of these, how many are kept; the least recently used one leaves."""
    adapter_hold_seconds: float = 30.0
    """How long a request waits for its adapter before 503."""
    drain_timeout_seconds: float = 60.0
    drain_grace_seconds: float = 3.0
    """After SIGTERM the pod is not ready at once but answers new requests for this long, until routers have heard."""
    ready_timeout_seconds: float = 120.0
    """After this, a pod whose first catalogue has not become resident is ready all the same."""
    wait_for_catalogue: bool = False
    """True under the operator: not ready before the first catalogue came (or the timeout)."""
    unknown_fields: UnknownFields = "refuse"
    """What is done with fields of requests that nobody knows."""
    request_chat_templates: bool = False
    """Whether requests may bring their own chat template."""
    tool_call_parser: ToolCallParser = "auto"
    """How models write calls of tools; "auto" looks into their chat template."""
    reasoning_parser: ReasoningParser = "auto"
    """Whether reasoning is told from the answer; "auto" looks into the chat template for its tags."""
    vllm_lora_routes: bool = False
    """Whether /v1/load_lora_adapter and /v1/unload_lora_adapter exist on the admin port."""
    max_body_bytes: int = 32 << 20
    """Larger requests are answered 413."""
    answer_memory_bytes: int = GIB
    """Of all answers, about, until they are sent; beyond that the request that has most of it is ended."""
    max_connections: int = 4096
    """Of each port; beyond that the one that has waited for its client the longest is closed."""
    client_timeout_seconds: float = 60.0
    """For a whole head; for the next piece of a body; for taking the next piece of an answer."""

    def __post_init__(self) -> None:
        checks = {
            "--port": 0 <= self.port <= 65535,
            "--admin-port": 0 <= self.admin_port <= 65535,
            "--disk-cache": self.disk_cache_bytes > 0,
            "--max-waiting-requests": self.max_waiting_requests >= 1,
            "--max-merged-adapters": self.max_merged_adapters >= 0,
            "--max-ad-hoc-adapters": self.max_ad_hoc_adapters >= 1,
            "--adapter-hold-seconds": self.adapter_hold_seconds >= 0,
            "--drain-timeout-seconds": self.drain_timeout_seconds >= 0,
            "--drain-grace-seconds": self.drain_grace_seconds >= 0,
            "--ready-timeout-seconds": self.ready_timeout_seconds >= 0,
            "--max-body": self.max_body_bytes >= 1,
            "--answer-memory": self.answer_memory_bytes >= 1,
            "--max-connections": self.max_connections >= 1,
            "--client-timeout-seconds": self.client_timeout_seconds > 0,
        }
        for option, legal in checks.items():
            if not legal:
                raise ConfigError(option, "out of range")
