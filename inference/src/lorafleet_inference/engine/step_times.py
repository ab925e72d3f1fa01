"""When steps ran, for how long, and how long the next one should take. Pure: the clock is handed in."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.pace import PaceKeeper, StepBound
from lorafleet_inference.engine.plan import StepPlan
from lorafleet_inference.engine.quiet import QuietAdapters

UNHURRIED = 10.0
"""A step may take so many times the target where nobody is there whom a short one serves. There is a bound also then: on a slow
device a full batch could take as long as what the API process takes for an engine that hangs (`--max-step-seconds`)."""


class StepTimes:
    """Keeps the times of the steps in flight, and learns from those that have ended."""

    def __init__(self, target_seconds: float, now: Callable[[], float]) -> None:
        """`target_seconds`: how long a step should take while a quiet adapter is there. `now`: seconds of any clock."""
        self._now = now
        self._target = target_seconds
        self._keeper = PaceKeeper(target_seconds)
        self._quiet = QuietAdapters()
        self._is_kept_short = False
        self._in_flight: deque[tuple[StepPlan, float, bool]] = deque()
        """With when each was submitted, and whether it was kept short."""
        self._last_ended = 0.0
        self.total_seconds = 0.0
        """All steps together."""
        self.num_late = 0
        """Steps that took longer than the target although they were kept short."""
        self.max_tokens = 0
        """Tokens that the last step could have had."""

    def bound(self, num_requests: Mapping[AdapterKey | None, int]) -> StepBound:
        """Return how long the next step may be; `num_requests`: by adapter, those that wait or run."""
        quiet = self._quiet.observe(num_requests, self._now())
        self._is_kept_short = quiet is not None
        pace = self._keeper.pace
        if quiet is None:
            return StepBound(replace(pace, target=UNHURRIED * self._target))
        return StepBound(pace, quiet)

    def submitted(self, plan: StepPlan) -> None:
        """A step, planned with the last bound, begins, or follows the ones in flight."""
        self._in_flight.append((plan, self._now(), self._is_kept_short))

    def collected(self) -> None:
        """The oldest step in flight has ended."""
        plan, began, is_kept_short = self._in_flight.popleft()
        now = self._now()
        # a step that was submitted ahead begins when the one before it ends
        seconds = now - max(began, self._last_ended)
        self._last_ended = now
        self.total_seconds += seconds
        self.num_late += is_kept_short and seconds > self._target
        self.max_tokens = plan.max_tokens
        self._keeper.learn(plan.num_tokens - plan.num_answer_tokens, plan.num_answer_tokens, seconds)
