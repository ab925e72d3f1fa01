"""The only things that cross between API process and engine process: typed messages, msgpack on a Unix socket.

API -> engine: Submit, Cancel, RegisterAdapter, ReleaseAdapter, Shutdown.
Engine -> API: Loading, EngineReady, Tokens, AdapterStatus, EngineStats, EngineFailed.

Every Submit is answered by TokenEvents of which exactly one is terminal (`finish` is set), whatever the cause.
Token ids are ints of the base model's vocabulary; times are seconds; sizes are bytes.
"""

from enum import StrEnum

import msgspec

from lorafleet_contract.names import revision_of
from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.merging import Merge
from lorafleet_inference.engine.token_events import TokenEvent


class AdapterKey(msgspec.Struct, frozen=True, array_like=True, cache_hash=True):
    """Identity of an adapter: its served name and the digest of its content."""

    name: str
    digest: str

    @property
    def revision(self) -> str:
        """Short form of the digest, as in headers and status."""
        return revision_of(self.digest)


MAX_LOGPROBS = 20
"""Most likely tokens that are told of a position, at most."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens of one request are chosen. `temperature` 0 is greedy."""

    max_tokens: int
    """0: only the prompt is computed, and scored where that is asked for."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    """Tokens less likely than this part of the most likely one are left out."""
    typical_p: float = 1.0
    """Tokens whose surprise is nearest to the expected one are kept, up to this probability."""
    repetition_penalty: float = 1.0
    """Logits of tokens of prompt and answer are divided by it, negative ones multiplied."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens of the answer."""
    frequency_penalty: float = 0.0
    """Likewise, for each time that the token occurs."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)."""
    allowed_token_ids: tuple[int, ...] = ()
    """If there are any, nothing else is chosen."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token ids of each: its last one is not chosen where the answer ends with those before it."""
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    """Beside the model's own end tokens."""
    eos_token_ids: tuple[int, ...] = ()
    """End tokens of the adapter, beside the model's own."""
    grammar: str | None = None
    """What the answer has to match, as llguidance writes grammars."""
    ignore_eos: bool = False
    """Neither the model's nor the adapter's end tokens end the answer."""
    min_tokens: int = 0
    """Before that many tokens of the answer, nothing that would end it is chosen."""
    show_end: bool = False
    """Whether an end token that stops the answer is told as its last token."""
    num_logprobs: int | None = None
    """None: no log-probabilities. N >= 0: of the chosen token and of the N most likely ones."""
    prompt_logprobs: int | None = None
    """Likewise, of the prompt's tokens. Then nothing is taken from the prefix cache."""
    max_draft_tokens: int | None = None
    """Draft tokens of the answer in a step, at most; None: as many as the engine makes, and never more than these."""

    @property
    def penalises(self) -> bool:
        """Whether tokens that occurred are less likely to be chosen."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def uses_history(self) -> bool:
        """Whether earlier tokens change how the next one is chosen."""
        return self.penalises or any(len(word) > 1 for word in self.bad_words)


class PoolingKind(StrEnum):
    """Which hidden states of a prompt make its embedding."""

    LAST = "last"
    """That of its last token."""
    MEAN = "mean"
    """The mean of all."""
    CLS = "cls"
    """That of its first token."""


class Pooling(msgspec.Struct, frozen=True):
    """How the embedding of a prompt is made of the hidden states after the model's last norm."""

    kind: PoolingKind = PoolingKind.LAST
    normalize: bool = True
    """Whether it has the length 1."""
    dimensions: int | None = None
    """Only so many numbers, the first ones, are told; None: all."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Run one sequence. An adapter must have been registered before."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    adapter: AdapterKey | None
    sampling: SamplingParams
    priority: int = 0
    """Among requests of the same adapter the lower goes first; between adapters it means nothing."""
    cache_salt: str = ""
    """Only requests of the same salt share the prefix cache."""
    pooling: Pooling | None = None
    """The embedding of the prompt is wanted, and no answer: `max_tokens` is 0."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop a request: no more tokens are wanted. It still gets its terminal event. Unknown ids are ignored."""

    request_id: str


class RegisterAdapter(msgspec.Struct, frozen=True, tag=True):
    """Make an adapter known; its files lie validated in `directory`, which stays until ReleaseAdapter was confirmed.

    `resident`: load into device memory now and answer with AdapterStatus. Otherwise it is loaded when a request names it.
    `pinned`: on-demand loads never evict it. Sent again with other flags, it changes them.
    """

    key: AdapterKey
    directory: str
    resident: bool
    pinned: bool = False
    merge: Merge | None = None
    """Then it is made of the adapters in these folders, which stay likewise; `directory` is none."""


class ReleaseAdapter(msgspec.Struct, frozen=True, tag=True):
    """Forget an adapter: refuse new requests for it, let running ones end, free it, confirm with AdapterStatus(tier=None)."""

    key: AdapterKey


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Asks for Pong after the step that runs."""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End every request as cancelled and exit."""


ToEngine = Submit | Cancel | RegisterAdapter | ReleaseAdapter | Ping | Shutdown


class ModuleKind(StrEnum):
    """What an adaptable module is."""

    LINEAR = "linear"
    """Weight [out, in]."""
    CONV1D = "conv1d"
    """transformers' Conv1D: weight [in, out]."""
    EMBEDDING = "embedding"
    ROUTER = "router"
    """Chooses experts: weight [experts, in]."""


class ModuleFacts(msgspec.Struct, frozen=True):
    """One module that an adapter may change; `name` as in `model.named_modules()`."""

    name: str
    kind: ModuleKind
    in_features: int
    out_features: int


class WholeFacts(msgspec.Struct, frozen=True, array_like=True):
    """A module whose parameters an adapter may replace by its own; it maps each token by itself."""

    name: str
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    """(name, shape): `weight`, and `bias` where it has one."""


class ExpertsFacts(msgspec.Struct, frozen=True, array_like=True):
    """Fused experts of one layer, whose stacked weights an adapter may change."""

    name: str
    num_experts: int
    parameters: tuple[tuple[str, int, int], ...]
    """(name, in, out) of each stacked weight, in the order in which the module declares them."""


class RopeKind(StrEnum):
    """How rotary frequencies depend on the length of a sequence, by transformers' names."""

    LONGROPE = "longrope"
    """Beyond the limit all tokens of a sequence have other ones, so it is computed again when it grows beyond."""
    DYNAMIC = "dynamic"
    """Beyond the limit each length has its own; a token keeps those of the length at which it is first computed."""


class LengthRope(msgspec.Struct, frozen=True):
    """Rotary frequencies that depend on the length of a sequence beyond `limit` tokens."""

    kind: RopeKind
    limit: int


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What validation and the API need to know of a base model, without its weights."""

    architecture: str
    model_type: str
    num_layers: int
    vocab_size: int
    max_model_len: int
    dtype: str
    device: str
    eos_token_ids: tuple[int, ...]
    modules: tuple[ModuleFacts, ...]
    """Linear layers that every token passes: what LoRA usually adapts."""
    side_modules: tuple[ModuleFacts, ...] = ()
    """The input embedding, the output head, which sees sampled positions only, and routers of experts."""
    whole_modules: tuple[WholeFacts, ...] = ()
    tied_head: bool = False
    """Whether embedding and head have one weight."""
    experts: tuple[ExpertsFacts, ...] = ()
    embedding_size: int = 0
    """Numbers of an embedding."""
    pooling: Pooling = Pooling()
    """How the model's own files say that embeddings are made."""
    length_rope: LengthRope | None = None
    """None where rotary frequencies are the same at every length within `max_model_len`."""


class EngineBudgets(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine set aside.

    An adapter takes the pages that `RowLayout` says; more if it holds anything beside A and B of linear layers (head, embedding,
    saved modules, experts, DoRA's norms).
    """

    num_kv_blocks: int
    kv_block_tokens: int
    kv_cache_bytes: int
    kv_cache_dtype: str
    """The model's dtype, or fp8."""
    max_resident_adapters: int
    max_rank: int
    total_rank_pages: int
    host_cache_bytes: int
    held: ModelFacts | None = None
    """Of the part of the model that each rank holds, where it is on several: by its widths the pages are laid out."""


class Kernels(StrEnum):
    """What computes LoRA and attention."""

    TRITON = "triton"
    CPU = "cpu"
    """This project's own, built when they are first needed."""
    TORCH = "torch"
    """Plain operations, which are right everywhere and slow on a GPU."""


class Backend(msgspec.Struct, frozen=True):
    """How steps are computed."""

    kernels: Kernels
    num_captured_steps: int | None = None
    """Sizes of steps that are replayed as CUDA graphs; None where none are to be captured."""
    num_ranks: int = 1
    """That the model is split among."""


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Before EngineReady: how much of the weights has been read, in whole per cents of their bytes."""

    percent: int


class EngineReady(msgspec.Struct, frozen=True, tag=True):
    """The base is loaded and warmed up."""

    facts: ModelFacts
    budgets: EngineBudgets
    backend: Backend


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """All events of one step."""

    events: tuple[TokenEvent, ...]


class DeviceTier(StrEnum):
    """Where the engine holds an adapter."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


class AdapterStatus(msgspec.Struct, frozen=True, tag=True):
    """An adapter changed its tier, or loading it failed. Sent on every change and as the answer to register and release."""

    key: AdapterKey
    tier: DeviceTier | None
    """None: released (or never accepted)."""
    reason: Reason | None = None
    """Set when a load failed."""
    message: str = ""
    rank_pages: int = 0
    host_bytes: int = 0
    load_seconds: float | None = None
    """Duration of the load that this reports."""
    loaded_from: DeviceTier | None = None


class EngineStats(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Counters since start and gauges; sent at most twice a second while anything changes."""

    num_running: int
    num_waiting: int
    num_kv_blocks_used: int
    num_preemptions: int
    num_steps: int
    num_late_steps: int
    """Steps that took longer than the target although they were kept short."""
    max_step_tokens: int
    """Tokens that the last step could have had: as many as the batch may, or as take the target where steps are kept short."""
    num_prefill_tokens: int
    num_decode_tokens: int
    num_prefix_queried_tokens: int
    num_prefix_hit_tokens: int
    num_adapter_evictions: int
    used_rank_pages: int
    host_used_bytes: int
    step_seconds: float
    """Sum of step durations since start."""
    num_replayed_steps: int = 0
    """Steps that were computed by a graph."""
    num_failed_steps: int = 0
    """Steps that raised and were computed again item by item."""
    num_grammars: int = 0
    """Grammars that were compiled."""
    grammar_seconds: float = 0.0
    """Sum of the durations of that."""
    running_adapters: tuple[str, ...]
    waiting_adapters: tuple[str, ...]


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The engine takes messages."""


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on; the process exits after this."""

    message: str
    option: str = ""
    """The option that made the start impossible, where one did; trying again is in vain."""


FromEngine = Loading | EngineReady | Tokens | AdapterStatus | EngineStats | Pong | EngineFailed
