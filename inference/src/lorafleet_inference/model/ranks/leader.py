"""The first rank: has the others compute each step with it, and load each adapter with it or not at all."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import torch

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.engine.messages import AdapterKey, Backend
from lorafleet_inference.engine.plan import InFlight, SamplingState, StepPlan, StepResult
from lorafleet_inference.engine.steps import StepFailed
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.host_adapter import HostAdapter
from lorafleet_inference.model.input_batch import ChosenToken
from lorafleet_inference.model.ranks.messages import (
    Abandon,
    Answer,
    Failed,
    Install,
    Load,
    Partial,
    Pipes,
    Remove,
    Settle,
    Step,
    Whole,
)
from lorafleet_inference.model.runner import ModelRunner

LOAD_SECONDS = 120.0
"""A rank that takes longer than this for its part of an adapter fails it."""
VERDICT_SECONDS = 5.0
"""So long a step that failed waits to hear which rank ended: its pipe may close after the connection between the ranks."""


class Others(Protocol):
    """The other ranks."""

    pipes: Sequence[Pipes]
    """Of the ranks from 1 on."""

    def lend(self, plan: AdapterPlan) -> AbstractContextManager[Sequence[AdapterPlan]]:
        """Have an adapter's files where each of these ranks is; gives the plan as it is there, by rank. Raises AdapterError."""

    def why_lost(self, timeout_seconds: float) -> str | None:
        """Return which rank ended and why, after waiting for that at most so long; None: none did."""


@dataclass(frozen=True, slots=True)
class RankedAdapter:
    """An adapter in host memory: its part for this rank; the others keep theirs by `number`."""

    own: HostAdapter
    number: int


class RankedRunner:
    """Runs the model on all ranks. To the engine it is a runner like that of one."""

    def __init__(
        self, runner: ModelRunner, others: Others, *, num_hosts: int = 1, load_seconds: float = LOAD_SECONDS
    ) -> None:
        """`runner`: of this rank."""
        self._runner, self._others = runner, others
        self._loads = _Loads(others, load_seconds)
        self._chosen: list[ChosenToken] = []
        """Tokens that the others do not know yet."""
        self.ahead = False
        self.facts = runner.facts
        size = 1 + len(others.pipes)
        self._size, self._num_hosts = size, num_hosts
        budgets = runner.budgets
        self.budgets = msgspec.structs.replace(budgets, kv_cache_bytes=size * budgets.kv_cache_bytes)

    @property
    def backend(self) -> Backend:
        """How steps are computed."""
        return msgspec.structs.replace(self._runner.backend, num_ranks=self._size)

    @property
    def num_replayed_steps(self) -> int:
        """Steps so far that were computed by a graph."""
        return self._runner.num_replayed_steps

    def prepare(self) -> None:
        """Do once what the first steps would have to do."""
        self._runner.prepare()

    def submit(self, plan: StepPlan) -> InFlight:
        """Have a step computed on all ranks.

        Raises:
            StepFailed: a rank failed. The ranks are not at the same point then, so nothing can be computed any more.
        """
        message = Step(plan, tuple(self._chosen))
        self._chosen.clear()
        with self._lost_where_it_fails():
            for pipes in self._others.pipes:
                pipes.steps.send(message)
            return _Flight(self._runner.submit(plan), plan, self._chosen)

    def is_lost(self, error: Exception) -> bool:
        """Whether an error of a step leaves a device unusable."""
        return self._runner.is_lost(error)

    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        """Compare what an adapter repeats of the base with it, on each rank what it holds; raises AdapterError."""
        if not plan.base_copies:
            return self._runner.settle(plan)
        with (
            self._others.lend(plan) as plans,
            self._loads.asking(lambda number: [Settle(number, one) for one in plans]),
        ):
            return self._runner.settle(plan)

    def load_slab(self, plan: AdapterPlan) -> RankedAdapter:
        """Read a settled adapter from disk, each rank its part, or none; raises AdapterError, which names the rank."""
        with self._others.lend(plan) as plans:

            def load(number: int) -> list[Load]:
                dropped = self._loads.take_dropped()
                return [Load(number, one, dropped) for one in plans]

            own: HostAdapter | None = None
            try:
                with self._loads.asking(load) as asked:
                    own = self._runner.load_slab(plan, asked.total)
            except BaseException:
                if own is not None:
                    self._runner.drop_slab(own)
                raise
        return RankedAdapter(own, asked.number)

    def drop_slab(self, slab: RankedAdapter) -> None:
        """Have the memory of an adapter on the host used again, by the other ranks from the next load on."""
        self._loads.drop(slab.number)
        self._runner.drop_slab(slab.own)

    def num_pages(self, plan: AdapterPlan) -> int:
        """Rank pages that an adapter takes, on each rank."""
        return self._runner.num_pages(plan)

    def slab_bytes(self, plan: AdapterPlan) -> int:
        """Size of an adapter in the memory of a host, of its ranks together."""
        return self._size // self._num_hosts * self._runner.slab_bytes(plan)

    def install(self, key: AdapterKey, pages: tuple[int, ...], slab: RankedAdapter) -> None:
        """Copy an adapter to the device of each rank, or of none; raises AdapterError, which names the rank."""
        try:
            with self._loads.asking(lambda number: Install(number, key, tuple(pages), slab.number)):
                self._runner.install(key, pages, slab.own)
        except BaseException:
            self._runner.remove(key)
            raise

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter of all devices. The others have when this returns: its pages and its key may be used again."""
        with self._lost_where_it_fails():
            for pipes in self._others.pipes:
                pipes.steps.send(Remove(key))
            for pipes in self._others.pipes:
                pipes.steps.recv()
        self._runner.remove(key)

    @contextmanager
    def _lost_where_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            why = self._others.why_lost(VERDICT_SECONDS)
            own = f"rank 0: {type(error).__name__}: {error}"
            raise StepFailed(f"the ranks cannot go on: {why or own}") from error


class _Flight(InFlight):
    """A step in flight whose tokens the other ranks have to hear of."""

    def __init__(self, inner: InFlight, plan: StepPlan, chosen: list[ChosenToken]) -> None:
        self._inner, self._plan, self._chosen = inner, plan, chosen

    def choose(self, state: SamplingState) -> None:
        self._inner.choose(state)

    def collect(self) -> StepResult:
        result = self._inner.collect()
        for item in self._plan.items:
            sampled = result.sampled.get(item.request_id)
            chosen = () if sampled is None else (sampled, *result.further.get(item.request_id, ()))
            first = item.end - len(item.draft_token_ids)
            self._chosen += [(item.request_id, first + at, one.token_id) for at, one in enumerate(chosen)]
        return result


@dataclass(slots=True)
class _Asked:
    """A question that all ranks are at."""

    number: int
    loads: "_Loads"
    deadline: float
    answers: dict[int, Answer] = field(default_factory=dict)
    """By rank: Done or Failed."""

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum of what each rank has."""
        whole = partial.clone()
        for rank in self.loads.ranks:
            answer = self.loads.answer(self, rank)
            if not isinstance(answer, Partial):
                self.answers[rank] = answer
                self.raise_failed()
                raise AdapterError(Reason.LOAD_FAILED, f"rank {rank} does not take part in a sum")
            whole += torch.from_numpy(answer.values)
        self.loads.tell(Whole(self.number, whole.numpy()))
        return whole

    def raise_failed(self) -> None:
        """Raise AdapterError where a rank has failed."""
        for rank, answer in sorted(self.answers.items()):
            if isinstance(answer, Failed):
                raise AdapterError(answer.reason, f"rank {rank}: {answer.message}")


_Question = Callable[[int], object]
"""Makes of its number what is asked of all, or a list of what is asked of each."""


class _Loads:
    """Asks the other ranks about adapters, one question at a time."""

    def __init__(self, others: Others, limit_seconds: float) -> None:
        self._others, self._limit_seconds = others, limit_seconds
        self._asking = threading.Lock()
        self._number = 0
        self._dropped: deque[int] = deque()

    @property
    def ranks(self) -> range:
        """The other ranks."""
        return range(1, 1 + len(self._others.pipes))

    @contextmanager
    def asking(self, question: _Question) -> Iterator[_Asked]:
        """Ask all ranks; inside, this rank does its own part. When it ends, all have done theirs.

        Raises:
            AdapterError: one has not; names the rank, unless it is this one.
        """
        with self._asking:
            self._number += 1
            asked = _Asked(self._number, self, time.monotonic() + self._limit_seconds)
            try:
                self.tell(question(asked.number))
                yield asked
                for rank in self.ranks:
                    if rank not in asked.answers:
                        asked.answers[rank] = self.answer(asked, rank)
                asked.raise_failed()
            except BaseException:
                with suppress(AdapterError):
                    self.tell(Abandon(asked.number))
                raise

    def answer(self, asked: _Asked, rank: int) -> Answer:
        """Return what a rank says next to a question; what it still says to earlier ones is passed over."""
        loads = self._others.pipes[rank - 1].loads
        try:
            while loads.poll(max(0.0, asked.deadline - time.monotonic())):
                answer: Answer = loads.recv()
                if answer.number == asked.number:
                    return answer
        except (EOFError, OSError) as error:
            raise AdapterError(Reason.LOAD_FAILED, f"rank {rank} ended") from error
        raise AdapterError(Reason.LOAD_FAILED, f"rank {rank} did not do its part in {self._limit_seconds:g} seconds")

    def tell(self, message: object) -> None:
        """Say something to all ranks; a list has what is for each."""
        each = message if isinstance(message, list) else [message] * len(self._others.pipes)
        for rank, pipes, one in zip(self.ranks, self._others.pipes, each, strict=True):
            try:
                pipes.loads.send(one)
            except OSError as error:
                raise AdapterError(Reason.LOAD_FAILED, f"rank {rank} ended") from error

    def drop(self, number: int) -> None:
        """Note that nobody needs what was loaded under a number; the ranks hear of it with the next load. From any thread."""
        self._dropped.append(number)

    def take_dropped(self) -> tuple[int, ...]:
        """Return and forget what was noted."""
        found = []
        while self._dropped:
            found.append(self._dropped.popleft())
        return tuple(found)
