"""Executes steps so that what fails ends alone.

A step that raises is computed again item by item: each writes the same KV to the same blocks as before, from the same seeds,
so the items that do not raise go on as if nothing had happened. Only the others end. Nothing of a failed item is published.
"""

import logging
from typing import Protocol

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.plan import (
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

    def submit(self, plan: StepPlan, state: SamplingState) -> InFlight:
        """Have a step computed, after those that were submitted before."""

    def is_lost(self, error: Exception) -> bool:
        """Whether an error of a step leaves the device unusable, so that every later step would fail too."""


class Steps:
    """Executes steps on a runner."""

    def __init__(self, runner: Executor, blocks: BlockManager, state: SamplingState) -> None:
        self._runner = runner
        self._blocks = blocks
        self._state = state
        self.num_failed = 0
        """Steps that raised, since start."""
        self._num_in_vain = 0
        """Steps in a row of which nothing could be computed."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a step. `failed` of the result names the requests that raised also when computed alone.

        Raises:
            StepFailed: the engine has to end; nothing of the step may be committed.
        """
        try:
            result = self._execute(plan)
        except StepFailed:
            raise
        except Exception as error:
            self.num_failed += 1
            logger.exception("a step of %d requests failed", len(plan.items))
            result = self._each_alone(plan, error)
        self._num_in_vain = self._num_in_vain + 1 if len(result.failed) == len(plan.items) else 0
        if self._num_in_vain >= MAX_FAILED_STEPS:
            self._check()
        return result

    def _execute(self, plan: StepPlan) -> StepResult:
        try:
            return self._runner.submit(plan, self._state).collect()
        except Exception as error:
            if self._runner.is_lost(error):
                raise StepFailed(f"the device is lost: {_named(error)}") from error
            raise

    def _each_alone(self, plan: StepPlan, error: Exception) -> StepResult:
        result = StepResult()
        if len(plan.items) == 1:
            return StepResult(failed={plan.items[0].request_id: _message(error)})
        for item in plan.items:
            try:
                alone = self._execute(plan.alone(item))
            except StepFailed:
                raise
            except Exception as own:
                logger.exception("request %s fails alone too", item.request_id)
                alone = StepResult(failed={item.request_id: _message(own)})
            result = StepResult(
                result.sampled | alone.sampled,
                result.scored | alone.scored,
                result.not_finite | alone.not_finite,
                result.failed | alone.failed,
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
            self._runner.submit(plan, Unconstrained()).collect()
        except Exception as error:
            message = f"{self._num_in_vain} steps in a row failed, and a token of the base too: {_named(error)}"
            raise StepFailed(message) from error
        finally:
            self._blocks.release(taken)
        self._num_in_vain = 0


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _message(error: Exception) -> str:
    return f"the engine failed in a step: {_named(error)}"
