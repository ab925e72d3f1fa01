"""What a plan's changes add up to, kept as plainly as can be."""

from dataclasses import dataclass

from lorafleet_inference.engine.plan import NewRequest, StepItem, StepPlan, StepResult


@dataclass
class Known:
    """A running request, as whoever computes knows it."""

    new: NewRequest
    token_ids: list[int]
    blocks: list[int]


class KnownRequests:
    """Of all plans so far."""

    def __init__(self) -> None:
        self.of: dict[str, Known] = {}

    def apply(self, plan: StepPlan) -> None:
        """Take in what changed."""
        for name in plan.gone:
            self.of.pop(name, None)
        for new in plan.new:
            self.of[new.request_id] = Known(new, list(new.token_ids), list(new.blocks))
        for grown in plan.grown:
            blocks = self.of[grown.request_id].blocks
            blocks[grown.num_before :] = grown.blocks

    def resolve(self, plan: StepPlan, result: StepResult) -> None:
        """Take in the tokens that a step chose."""
        for item in plan.items:
            if item.request_id in result.sampled:
                known = self.of[item.request_id]
                known.token_ids[item.end :] = [result.sampled[item.request_id].token_id]

    def tokens(self, item: StepItem) -> tuple[int, ...]:
        """Return the tokens of an item."""
        return tuple(self.of[item.request_id].token_ids[item.start : item.end])

    def blocks(self, item: StepItem, block_tokens: int) -> tuple[int, ...]:
        """Return its blocks, up to the last token that it computes."""
        return tuple(self.of[item.request_id].blocks[: -(-item.end // block_tokens)])
