"""Has steps computed, so that what fails ends alone.

A step that raises is computed again item by item: each writes the same KV to the same blocks as before, from the same seeds,
so the items that do not raise go on as if nothing had happened. Only the others end. Nothing of a failed item is published.

A step that was submitted before that is known goes on from tokens that the failed one may not have chosen. So nothing is
submitted after a failed one until all in flight is collected, and what was is computed again too.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.plan import (
    Drafted,
    InFlight,
    NewRequest,
    SamplingState,
    StepItem,
    StepPlan,
    StepResult,
    Unconstrained,
)

logger = logging.getLogger(__name__)
MAX_FAILED_STEPS = 8
"""After so many steps in a row in which nothing could be computed, the engine computes a token of the base as a check."""
_CHECK = "engine-check"


class StepFailed(Exception):
    """The engine cannot go on: the device is lost, or not even a token of the base can be computed."""


class Executor(Protocol):
    """What computes: the model runner, seen from here."""

    ahead: bool
    """Whether a step may be submitted before the one before is collected: where a device works beside the CPU."""

    def submit(self, plan: StepPlan) -> InFlight:
        """Have a step computed, after those that were submitted before. What raises leaves nothing in flight."""

    def is_lost(self, error: Exception) -> bool:
        """Whether an error of a step leaves the device unusable, so that every later step would fail too."""


@dataclass(slots=True)
class _Flight:
    plan: StepPlan
    computing: InFlight | None = None
    """None if it has to be computed item by item."""
    error: Exception | None = None
    """Of all items together."""
    ended: set[str] = field(default_factory=set)
    """Requests that an earlier step has ended: their tokens may not be there."""


class Steps:
    """Has steps computed by a runner, in order: each is submitted, has its tokens chosen, and is collected."""

    def __init__(self, runner: Executor, blocks: BlockManager, state: SamplingState) -> None:
        self._runner = runner
        self._blocks = blocks
        self._state = state
        self._flights: deque[_Flight] = deque()
        self.num_failed = 0
        """Steps that raised, since start."""
        self._num_in_vain = 0
        """Steps in a row of which nothing could be computed."""

    @property
    def num_in_flight(self) -> int:
        """Steps that were submitted and not collected."""
        return len(self._flights)

    @property
    def may_go_on(self) -> bool:
        """Whether another step may be submitted before those in flight are collected."""
        return self._runner.ahead and all(flight.computing is not None for flight in self._flights)

    def submit(self, plan: StepPlan) -> None:
        """Have a step computed, after those in flight. Whether it can be, its result says.

        Raises:
            StepFailed: the engine has to end; none of the results in flight comes.
        """
        flight = _Flight(plan)
        self._flights.append(flight)
        with self._failing(flight):
            if not self._runner.ahead:  # what comes of earlier steps is known: get ready beside the computation
                self._state.begin(_choosing(plan))
            flight.computing = self._runner.submit(plan)

    def choose(self) -> None:
        """Have the tokens of the one step in flight chosen.

        Raises:
            StepFailed: the engine has to end; its result does not come.
        """
        (flight,) = self._flights
        if flight.computing is not None:
            with self._failing(flight):
                if self._runner.ahead:
                    self._state.begin(_choosing(flight.plan))
                flight.computing.choose(self._state)

    def collect(self) -> StepResult:
        """Return the result of the oldest step in flight. `failed` names the requests that raised also when computed alone.

        Items of requests whose blocks were taken since need have no result.

        Raises:
            StepFailed: the engine has to end; neither this result nor any other in flight comes.
        """
        flight = self._flights.popleft()
        result: StepResult | None = None
        if flight.computing is not None:
            with self._failing(flight):
                result = flight.computing.collect()
        if result is None:
            if flight.error is not None:
                self.num_failed += 1
                logger.error("a step of %d requests failed", len(flight.plan.items), exc_info=flight.error)
            result = self._each_alone(flight)
            for later in self._flights:
                later.computing = None
        for later in self._flights:
            later.ended.update(result.failed, result.not_finite)
        self._num_in_vain = self._num_in_vain + 1 if len(result.failed) == len(flight.plan.items) else 0
        if self._num_in_vain >= MAX_FAILED_STEPS:
            self._check()
        return result

    @contextmanager
    def _failing(self, flight: _Flight) -> Iterator[None]:
        """Note what raises as the step's own error, unless the device is lost."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  told by `collect`
            self._raise_if_lost(error)
            flight.computing, flight.error = None, error

    def _raise_if_lost(self, error: Exception) -> None:
        if isinstance(error, StepFailed):
            raise error
        if self._runner.is_lost(error):
            raise StepFailed(f"the device is lost: {_named(error)}") from error

    def _compute(self, plan: StepPlan) -> StepResult:
        self._state.begin(_choosing(plan))
        computing = self._runner.submit(plan)
        computing.choose(self._state)
        return computing.collect()

    def _each_alone(self, flight: _Flight) -> StepResult:
        result, items = StepResult(), flight.plan.items
        if flight.error is not None and len(items) == 1:
            return StepResult(failed={items[0].request_id: _message(flight.error)})
        gone = flight.ended.union(*(later.plan.gone for later in self._flights))
        for item in items:
            if item.request_id in gone:
                continue
            try:
                alone = self._compute(flight.plan.alone(item))
            except Exception as own:
                self._raise_if_lost(own)
                logger.exception("request %s fails alone too", item.request_id)
                alone = StepResult(failed={item.request_id: _message(own)})
            result = StepResult(
                result.sampled | alone.sampled,
                result.scored | alone.scored,
                result.pooled | alone.pooled,
                result.not_finite | alone.not_finite,
                result.failed | alone.failed,
                result.further | alone.further,
            )
        return result

    def _check(self) -> None:
        """Compute a token of the base on a block of its own: requests that fail one after the other end no engine."""
        taken = self._blocks.take(1)
        if taken is None:
            return  # others run on all blocks, and the next step says more
        asked = NewRequest(_CHECK, None, (0,), 1, SamplingParams(max_tokens=1, temperature=0), tuple(taken))
        plan = StepPlan((StepItem(_CHECK, 0, 1, samples=True),), gone=(_CHECK,), new=(asked,))
        try:
            computing = self._runner.submit(plan)
            computing.choose(Unconstrained())
            computing.collect()
        except Exception as error:
            message = f"{self._num_in_vain} steps in a row failed, and a token of the base too: {_named(error)}"
            raise StepFailed(message) from error
        finally:
            self._blocks.release(taken)
        self._num_in_vain = 0


def _choosing(plan: StepPlan) -> dict[str, Drafted]:
    return {item.request_id: item.draft_token_ids for item in plan.items if item.samples}


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _message(error: Exception) -> str:
    return f"the engine failed in a step: {_named(error)}"
