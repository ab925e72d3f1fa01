"""The admin API of a pod (port 8001, bearer token)."""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from lorafleet_contract.base import Observed, Wire
from lorafleet_contract.names import MAX_SERVED_NAME, SERVED_NAME
from lorafleet_contract.sources import Digest, ResolvedSource, Revision, SourceRef

ServedName = Annotated[str, StringConstraints(pattern=SERVED_NAME, max_length=MAX_SERVED_NAME)]

MAX_ASK_CHARS: Final = 8192
MAX_ASK_MESSAGES: Final = 16
MAX_ASK_TOKENS: Final = 256
"""Of an answer to `ask`: no test of a revision keeps a place in the batch for long."""

MAX_ENTRIES: Final = 100_000
"""Of a pod's document, and of what differences make of one: each is short, and without a bound they would add up for ever."""

Fence = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""Of a leadership: twice what a Lease can count, and no more, whoever says it."""


class Residency(StrEnum):
    """Where an adapter should be."""

    RESIDENT = "Resident"
    """Kept in device memory."""
    ON_DEMAND = "OnDemand"
    """Known and prefetched to disk; loaded when a request names it."""


class AdapterState(StrEnum):
    """How far a pod is with one revision of an adapter."""

    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    READY = "Ready"
    """It can be answered: resident, or loaded on demand."""
    DRAINING = "Draining"
    FAILED = "Failed"


class Tier(StrEnum):
    """The fastest place that holds it now."""

    DEVICE = "Device"
    HOST = "Host"
    DISK = "Disk"
    SOURCE = "Source"


class Owner(StrEnum):
    """Who put an entry into the catalogue; the operator never touches local ones."""

    OPERATOR = "operator"
    LOCAL = "local"


class CatalogueEntry(Observed):
    """One revision of one adapter that a pod should know."""

    name: ServedName
    source: ResolvedSource
    residency: Residency = Residency.RESIDENT
    pinned: bool = False
    """Never evicted by on-demand loads."""
    stable: bool = True
    """The revision that the bare name means; at most one a name."""

    @property
    def digest(self) -> str:
        """Content identity."""
        return self.source.digest


class RevisionRef(Observed):
    """One revision of one adapter by its identity."""

    name: ServedName
    revision: Revision


class CatalogueWrite(Observed):
    """`PUT /admin/v1/adapters`: the operator's entries. Absence changes nothing; only `removed` removes, after draining.

    A (fence, generation) lower than the last accepted one is answered 409; an equal one is a repetition and answered 200.
    An entry that has failed for a retryable reason is tried again at once when it is written again.
    """

    fence: Fence
    """Grows with every change of the leading operator."""
    generation: Annotated[int, Field(ge=0)]
    """Grows with every write under one fence."""
    adapters: list[CatalogueEntry] = []
    removed: list[RevisionRef] = []
    drain_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0


class ObservedAdapter(Observed):
    """One revision of one adapter as a pod has it."""

    name: ServedName
    revision: Revision
    digest: Digest
    owner: Owner
    residency: Residency
    pinned: bool = False
    stable: bool
    state: AdapterState
    tier: Tier
    reason: str = ""
    """CamelCase, of `lorafleet_contract.reasons`, when state is Failed."""
    message: str = ""
    num_in_flight: int = 0
    rank: int | None = None
    rank_pages: int | None = None
    """That it takes now on a pod that counts rank pages."""
    memory_pages: int | None = None
    """Pages of adapter memory that it takes: now, where it is on the device, else as its files say."""
    size_bytes: int | None = None
    last_used: float | None = None
    """Unix seconds of the last request; None when never used since boot."""
    num_tokens: int | None = None
    """Tokens of prompts and answers since the pod knows the revision; it may begin anew. None: the pod does not count them."""


class LocalFailure(Observed):
    """An adapter of `serve --adapter` that has no digest because it could not be resolved."""

    name: str
    reason: str
    message: str


class Budgets(Observed):
    """What a pod can hold and what is taken."""

    max_resident_adapters: int
    max_rank: int
    rank_page: int
    """Ranks in a rank page: an adapter of rank r on all linear layers takes ceil(r / rank_page) of these."""
    total_rank_pages: int
    used_rank_pages: int
    memory_pages: int | None = None
    """Pages of adapter memory, of which an adapter takes as many as its `memory_pages` say. None of a pod that counts rank pages."""
    used_memory_pages: int | None = None
    host_cache_bytes: int
    host_used_bytes: int
    disk_cache_bytes: int
    disk_used_bytes: int


class BaseFacts(Observed):
    """The base model that a pod serves."""

    served_name: str
    max_model_len: int
    dtype: str
    device: str


class PodState(Observed):
    """`GET /admin/v1/state[?after=N&wait_seconds=S[&boot_id=B]]`: returns at once, or when `generation` exceeds N, or after S seconds.

    With the boot id too the answer is 304 without a body while generation N of boot B is still true: only counters can be
    others. With `since=N&boot_id=B`, here as at `PUT /admin/v1/adapters`, it is a `PodDifference` where the pod knows one.
    """

    boot_id: str
    """New with every start of the process: what was known of another boot is void."""
    generation: int
    """Grows with every change of this document except counters."""
    fence: Fence
    catalogue_generation: Annotated[int, Field(ge=0, le=2**62)]
    """The last accepted write's; 0 with fence 0 before the first."""
    ready: bool
    draining: bool
    base: BaseFacts
    budgets: Budgets
    adapters: list[ObservedAdapter]
    """Their order says nothing."""
    local_failures: list[LocalFailure] = []


class PodLoad(Observed):
    """`GET /admin/v1/load`: what the pod has to do; a few bytes, however many adapters it knows."""

    boot_id: str
    """`num_requests` begins at zero with each."""
    num_running: Annotated[int, Field(ge=0)]
    """Sequences in the running batch."""
    num_waiting: Annotated[int, Field(ge=0)]
    """Sequences that wait in the engine."""
    num_requests: Annotated[int, Field(ge=0)]
    """Requests since the start of the process, those that run included."""

    @property
    def num_sequences(self) -> int:
        """Running and waiting."""
        return self.num_running + self.num_waiting


class PodDifference(PodState):
    """What has become of generation `since` of the same boot: all is as it is now, but of `adapters` only what is another.

    An entry of which nothing but counters has changed since is left out; they are told by whole documents only.
    """

    since: int
    removed: list[RevisionRef] = []
    """Entries of then that are gone."""

    def applied_to(self, known: PodState) -> PodState:
        """Return the whole document that this and an earlier one come to; counters of what stayed are the earlier one's.

        Raises:
            ValueError: it is no difference to that one.
        """
        entries = {(entry.name, entry.revision): entry for entry in known.adapters}
        return self.applied_to_entries(known, entries)

    def applied_to_entries(self, known: PodState, entries: "dict[tuple[str, str], ObservedAdapter]") -> PodState:
        """As `applied_to`, with the entries of `known` by name and revision, which become those of the document returned.

        Raises:
            ValueError: it is no difference to that one, or too large together with it; the entries are as they were.
        """
        if (self.boot_id, self.since) != (known.boot_id, known.generation):
            raise ValueError(
                f"a difference to generation {self.since} of boot {self.boot_id}, where generation {known.generation} "
                f"of boot {known.boot_id} is known"
            )
        if len(entries) + len(self.adapters) > MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES} entries in all")
        for ref in self.removed:
            entries.pop((ref.name, ref.revision), None)
        entries.update(((entry.name, entry.revision), entry) for entry in self.adapters)
        fields = {name: getattr(self, name) for name in PodState.model_fields}
        return PodState.model_construct(**{**fields, "adapters": list(entries.values())})


class ResolveRequest(Observed):
    """`POST /admin/v1/resolve`: pin a reference to content and validate it against the base."""

    source: SourceRef
    expected_digest: Digest | None = None


class ResolveAnswer(Observed):
    """200 of resolve."""

    resolved: ResolvedSource


class StartStep(StrEnum):
    """What a pod does before it has an engine."""

    DOWNLOADING = "Downloading"
    """The files of the base come from a hub or a bucket, by this pod or another that shares its cache."""
    LOADING = "Loading"
    """Its engine reads the weights of the base."""


class StartProgress(Observed):
    """How far a pod is with its start."""

    step: StartStep
    percent: Annotated[int, Field(ge=0, le=100)]
    """Of the bytes of the files, or of the weights; of several ranks, of the slowest one's."""

    @property
    def words(self) -> str:
        """As people are told it."""
        return f"{self.step} {self.percent} %"


class HostReady(Observed):
    """Answer of `/ready` on the port of a pod that is one of several of a replica and not the first."""

    status: str
    """In words."""
    start: StartProgress | None = None
    """While its base model is on its way and it is known how far; pods of earlier versions do not say."""


class AdminError(Observed):
    """Body of every admin answer that is not 2xx."""

    reason: str
    """CamelCase, of `lorafleet_contract.reasons`."""
    message: str
    retryable: bool = False
    start: StartProgress | None = None
    """Of a pod whose base model is not loaded yet; pods of earlier versions do not say."""


class AskMessage(Observed):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_ASK_CHARS)]


class AskRequest(Observed):
    """`POST /admin/v1/ask`: what a revision answers, also one that no public name leads to; the likeliest token each time."""

    name: ServedName
    revision: Revision
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_ASK_CHARS)] | None = None
    """A text that goes on; exactly one of this and `messages`."""
    messages: Annotated[list[AskMessage], Field(min_length=1, max_length=MAX_ASK_MESSAGES)] | None = None
    """A conversation, by the model's template."""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_ASK_TOKENS)]

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt, messages")
        return self


class AskAnswer(Observed):
    """200 of ask."""

    text: str
    """Of the answer alone, without what a model thinks before it."""
    finish_reason: str
    """`stop`, or `length` where the answer was cut after `maxTokens`."""
    num_tokens: int


class AdapterPut(Wire):
    """`PUT /admin/v1/adapters/{name}`: for people and scripts; makes a local entry of a declared source."""

    source: SourceRef
    pinned: bool = False


class AdapterAnswer(Observed):
    """200 of `GET /admin/v1/adapters/{name}`."""

    revisions: list[ObservedAdapter]
    sources: list[ResolvedSource] = []
    """What the operator's revisions are made of, as it wrote them; earlier pods do not say."""
    local_failure: LocalFailure | None = None


class DrainRequest(Observed):
    """`POST /admin/v1/drain`: stop accepting, finish what runs."""

    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0


class DrainAnswer(Observed):
    """200 of drain: what was still running when the time was over."""

    num_in_flight: int
