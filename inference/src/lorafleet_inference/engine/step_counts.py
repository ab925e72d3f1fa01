"""What steps had in them, all of them together."""

from dataclasses import dataclass

from lorafleet_inference.engine.plan import StepPlan


@dataclass(slots=True)
class StepCounts:
    """Counts since the start; they only grow."""

    steps: int = 0
    preempted: int = 0
    """Requests that were set back."""
    prefill: int = 0
    """Tokens of prompts that were computed."""
    decode: int = 0
    """Tokens of answers that were computed."""
    queried: int = 0
    """Tokens that were looked up in the prefix cache."""
    hit: int = 0
    """Of these, found there."""

    def add(self, plan: StepPlan) -> None:
        """Count what is planned."""
        decode = plan.num_answer_tokens
        self.steps += bool(plan.items)
        self.preempted += len(plan.preempted)
        self.decode += decode
        self.prefill += plan.num_tokens - decode
        self.queried += plan.num_queried_tokens
        self.hit += plan.num_hit_tokens
