"""A device that computes numbers instead of a model, exactly, whatever is in its batch: for engines that are compared.

What lies at a position of the KV depends on all tokens before it, on whose weights and on which rotary frequencies each was
computed with. The logits of a token depend on all KV up to it, as it lies in the blocks at that time. So a token that was
computed from another token, block or adapter than its request's own is another token. Rows, sampling and what is read when are
the real runner's own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from support.adapter_files import base_facts

from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.engine.core import Runner
from lorafleet_inference.engine.messages import AdapterKey, Backend, EngineBudgets, Kernels, LengthRope
from lorafleet_inference.engine.plan import InFlight, SamplingState, StepItem, StepPlan, StepResult, Unconstrained
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.model.batch import FlatBatch
from lorafleet_inference.model.input_batch import InputBatch
from lorafleet_inference.model.results import Computing

VOCAB_SIZE = 24
RANK = 8
EOS, NAN, TRAP, LATE_TRAP = 1, 2, 3, 4
"""A token after which nothing is finite, one that raises when it is computed, and one whose result cannot be read."""
FIRST_PLAIN = 5
MAX_MODEL_LEN = 120
POISON = -1
CHECK = "engine-check"
"""What the engine computes to see whether anything can be computed."""
_MASK = (1 << 61) - 1


class TrapError(Exception):
    """A request that ends alone."""


def inspect(folder: Path) -> AdapterPlan:
    """Return the plan of an adapter that is no more than its name: activated ones say in it on which tokens."""
    _, _, tokens = folder.name.partition("-")
    facts = AdapterFacts(
        rank=RANK,
        size_bytes=1,
        target_modules=[],
        invocation_tokens=[int(one) for one in tokens.split("-") if one] or None,
    )
    return AdapterPlan(folder, (), (), facts, Vocabulary(VOCAB_SIZE, VOCAB_SIZE))


@dataclass
class _Faulty(InFlight):
    """A step that cannot be read, or whose tokens cannot be chosen."""

    inner: InFlight
    error: Exception
    when: str

    def choose(self, state: SamplingState) -> None:
        self.inner.choose(state)
        if self.when == "choosing":
            raise self.error

    def collect(self) -> StepResult:
        raise self.error


@dataclass
class TinyDevice(Runner):
    """`ahead`: whether a step may be submitted before the one before is collected."""

    num_blocks: int = 24
    max_requests: int = 8
    max_resident: int = 2
    ahead: bool = False
    length_rope: LengthRope | None = None
    repeats: bool = False
    """Whether answers mostly repeat themselves."""
    holds: set[AdapterKey] = field(default_factory=set)
    fails_next: str | None = None
    """The next step raises once: "before" it is computed, "after", while "choosing" tokens, or "late", when it is read."""

    def __post_init__(self) -> None:
        self.facts = base_facts(
            vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN, eos_token_ids=(EOS,), length_rope=self.length_rope
        )
        self.budgets = EngineBudgets(
            num_kv_blocks=self.num_blocks,
            kv_block_tokens=KV_BLOCK_TOKENS,
            kv_cache_bytes=1,
            kv_cache_dtype="float32",
            max_resident_adapters=self.max_resident,
            max_rank=RANK,
            total_rank_pages=self.max_resident,
            host_cache_bytes=1 << 20,
        )
        self.kv: dict[int, int] = {}
        """By slot."""
        self.rows = InputBatch(self.max_requests + 1, MAX_MODEL_LEN, torch.device("cpu"), ahead=self.ahead)

    @property
    def backend(self) -> Backend:
        return Backend(Kernels.TORCH)

    @property
    def num_replayed_steps(self) -> int:
        return 0

    def is_lost(self, error: Exception) -> bool:
        return False

    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        return plan

    def load_slab(self, plan: AdapterPlan) -> int:
        return 1

    def drop_slab(self, slab: int) -> None: ...

    def num_pages(self, plan: AdapterPlan) -> int:
        return 1

    def slab_bytes(self, plan: AdapterPlan) -> int:
        return 1

    def install(self, key: AdapterKey, pages: tuple[int, ...], slab: int) -> None:
        self.holds.add(key)

    def remove(self, key: AdapterKey) -> None:
        self.holds.discard(key)

    def compute(self, plan: StepPlan) -> StepResult:
        """As a draft model does."""
        computing = self.submit(plan)
        computing.choose(Unconstrained())
        return computing.collect()

    def know(self, chosen: Iterable[tuple[str, int, int]]) -> None:
        for request_id, position, token_id in chosen:
            self.rows.know(request_id, position, token_id)

    def submit(self, plan: StepPlan) -> InFlight:
        fails = None
        if plan.items[0].request_id != CHECK:
            fails, self.fails_next = self.fails_next, None
        if fails == "before":
            raise RuntimeError(fails)
        self.rows.apply(plan)
        host = self.rows.gather(plan.items)
        batch = self.rows.to_device(host)
        computing = Computing(host.items, self._logits(batch, plan.items), self.rows, self.facts.eos_token_ids)
        if fails == "after":
            raise RuntimeError(fails)
        if fails is not None:
            return _Faulty(computing, RuntimeError(fails), fails)
        if LATE_TRAP in batch.input_ids:
            return _Faulty(computing, TrapError("late"), "late")
        return computing

    def _logits(self, batch: FlatBatch, planned: Sequence[StepItem]) -> torch.Tensor:
        """In the order of the plan: who shares what another one computes comes after it. Returns [rows, vocabulary]."""
        ids = batch.input_ids[0].tolist()
        adapters: list[AdapterKey | None] = [None] * len(ids)
        for segment in batch.host.segments:
            assert segment.adapter in self.holds, "an adapter that is not on the device is computed"
            adapters[segment.begin : segment.end] = [segment.adapter] * (segment.end - segment.begin)
        rows: dict[str, list[torch.Tensor]] = {}
        places = {item.request_id: index for index, item in enumerate(batch.host.items)}
        for item in planned:
            place = places[item.request_id]
            span = batch.host.span(place)
            slots = [int(block) * KV_BLOCK_TOKENS + at for block in span.blocks for at in range(KV_BLOCK_TOKENS)]
            rope = int(batch.host.rope_lengths[place])
            known = [self.kv.get(slot, 0) for slot in slots[: span.start]]
            of_item = []
            for at in range(span.begin, span.end):
                assert 0 <= ids[at] < VOCAB_SIZE, "a token that no model has"
                if ids[at] == TRAP:
                    raise TrapError("trap")
                known.append(_value(known, ids[at], adapters[at], rope))
                self.kv[slots[len(known) - 1]] = known[-1]
                if at - span.begin < item.num_rows or at == span.end - 1:
                    of_item.append(_row(known, self.repeats, ids[at]))
            if item.num_rows == item.num_tokens:
                of_item.append(of_item[-1])
            rows[item.request_id] = of_item
        return torch.stack([row for item in batch.host.items for row in rows[item.request_id]])


def logits_after(token_ids: Sequence[int]) -> torch.Tensor:
    """Return what the base makes of a text where nothing `repeats`: [vocabulary] float32."""
    known: list[int] = []
    for token_id in token_ids:
        known.append(_value(known, token_id, None, 0))
    return _row(known, False, token_ids[-1])


def _value(known: Sequence[int], token_id: int, adapter: AdapterKey | None, rope_length: int) -> int:
    previous = known[-1] if known else 0
    if previous == POISON or token_id == NAN:
        return POISON
    weights = 0 if adapter is None else int(adapter.digest.removeprefix("sha256:"), 16)
    return hash((previous, token_id, weights, rope_length)) & _MASK


def _row(known: Sequence[int], repeats: bool, token_id: int) -> torch.Tensor:
    """[vocabulary] float32; the tokens that stand for faults are never likely, and of one that `repeats` mostly the same ones follow."""
    if POISON in known:
        return torch.full((VOCAB_SIZE,), torch.nan)
    number = hash(tuple(known)) & _MASK
    values = [(hash((number, token)) & 0xFFFF) / 4096 for token in range(VOCAB_SIZE)]
    if repeats and number % 4:
        values[FIRST_PLAIN + (token_id * 5 + 1) % (VOCAB_SIZE - FIRST_PLAIN)] += 16.0
    for token in (0, NAN, TRAP, LATE_TRAP):
        values[token] = -30.0
    return torch.tensor(values)


def ticking(seconds: float = 0.0) -> tuple[Callable[[], float], Callable[[float], None]]:
    """Return a clock, and what moves it on."""
    at = [seconds]

    def move(by: float) -> None:
        at[0] += by

    return lambda: at[0], move
