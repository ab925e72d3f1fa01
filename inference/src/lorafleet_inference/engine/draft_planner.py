"""Plans the draft tokens of a step: which answers have some, how many, and on which blocks. Pure."""

from collections.abc import Sequence as Many

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.pace import Pace, StepBound
from lorafleet_inference.engine.plan import DraftWanted, Growth
from lorafleet_inference.engine.running import RunningSet
from lorafleet_inference.engine.sequence import Sequence
from lorafleet_inference.engine.speculation import DraftLength, DraftSource, is_worthwhile


class DraftPlanner:
    """Drafts take what a step leaves: room, and blocks that are free."""

    def __init__(self, blocks: BlockManager, running: RunningSet, *, max_step_drafts: int, max_model_len: int) -> None:
        """`max_step_drafts`: tokens that a step continues answers with, drafts included."""
        self._blocks, self._running = blocks, running
        self._max_step_drafts, self._max_model_len = max_step_drafts, max_model_len

    def may_draft(self, bound: StepBound | None, round_seconds: float) -> bool:
        """As `Scheduler.may_draft` says."""
        pace, decoding = None if bound is None else bound.pace, self._running.num_decoding
        if not is_worthwhile(pace, decoding, 1.0):
            return False
        return any(
            _is_likely(one.form_drafts, one, pace, decoding)
            or _is_likely(one.drafts, one, pace, decoding, round_seconds)
            for one in self._running
            if one.drafts is not None and one.continues_answer
        )

    def wanted(self, bound: StepBound | None, round_seconds: float) -> list[DraftWanted]:
        """As `Scheduler.drafts_wanted` says: of the oldest first, as many tokens as the step has room for."""
        pace, decoding = None if bound is None else bound.pace, self._running.decoding()
        room = self._max_step_drafts - len(decoding)
        wanted = []
        for one in decoding:
            if one.drafts is None or not one.continues_answer or one.num_charged > one.num_computed or one.num_ahead:
                continue
            if _is_drafted_by_form(one, pace, len(decoding)):
                continue
            if not _pays(one.drafts, pace, len(decoding), round_seconds):
                continue
            number = one.drafts.number(one.token_ids, min(room, self._most_drafted(one)))
            if number < 1:
                continue
            room -= number
            request = one.request
            num_prompt = len(request.prompt_token_ids)
            wanted.append(
                DraftWanted(one.request_id, one.token_ids, num_prompt, request.sampling, request.cache_salt, number)
            )
        return wanted

    def draft(
        self, sequence: Sequence, room: int, bound: StepBound | None, num_decoding: int, proposed: Many[int]
    ) -> tuple[tuple[int, ...], Growth | None]:
        """Return draft tokens, and blocks that were free and are theirs now.

        There are some where they are worth it in a step that continues `num_decoding` answers, at most `room`, and beyond no bound
        of the answer. What its form says itself goes first; other drafts end where they leave the form. `proposed`: by a draft model.
        """
        drafts, by_form, form = sequence.drafts, sequence.form_drafts, sequence.form
        if drafts is None or sequence.num_ahead:
            return (), None
        most, pace = min(self._most_drafted(sequence), room), None if bound is None else bound.pace
        drafted: list[int] = []
        if by_form is not None and _pays(by_form, pace, num_decoding):
            drafted = by_form.draft(sequence.token_ids, most)
        if by_form is not None and drafted:
            drafts, form = by_form, None  # it says nothing that it does not allow
        elif not isinstance(drafts, DraftSource):
            drafted = list(proposed)[: max(0, most)]
        elif _pays(drafts, pace, num_decoding):
            drafted = drafts.draft(sequence.token_ids, most)
        num_proposed = len(drafted)
        if form is not None and drafted:
            drafted = drafted[: form.allowed(drafted)]
            if not drafted:
                drafts.told(num_proposed, 0, len(sequence.token_ids))
        if not drafted:
            return (), None
        num_wrong = num_proposed - len(drafted)
        drafted, grown = self._placed(sequence, drafted)
        sequence.proposed = drafts, len(drafted) + num_wrong
        return tuple(drafted), grown

    def _placed(self, sequence: Sequence, drafted: list[int]) -> tuple[list[int], Growth | None]:
        """Give draft tokens blocks; without free ones there are as many as the sequence's own have room for."""
        num_tokens, num_before = len(sequence.token_ids), len(sequence.blocks)
        num_fresh = self._blocks.blocks_for(num_tokens + len(drafted)) - num_before
        if num_fresh <= 0:
            return drafted, None
        fresh = self._blocks.take(num_fresh)
        if fresh is None:
            return drafted[: num_before * self._blocks.block_tokens - num_tokens], None
        sequence.blocks += fresh
        return drafted, Growth(sequence.request_id, num_before, tuple(fresh))

    def _most_drafted(self, sequence: Sequence) -> int:
        """Return how many tokens of an answer may be drafted: the one after them ends it at last."""
        num_tokens, sampling = len(sequence.token_ids), sequence.request.sampling
        return min(sampling.max_tokens - sequence.num_answer, self._max_model_len - num_tokens) - 1


def _pays(drafts: DraftLength, pace: Pace | None, num_answers: int, round_seconds: float = 0.0) -> bool:
    """Whether a draft of a sequence pays; where it does not, it is tried again after a while."""
    if is_worthwhile(pace, num_answers, drafts.right_part, round_seconds):
        return True
    drafts.hope()
    return False


def _is_likely(
    drafts: DraftLength | None, one: Sequence, pace: Pace | None, num_answers: int, round_seconds: float = 0.0
) -> bool:
    """Whether there would be a draft of this source, and a draft would pay."""
    return drafts is not None and _pays(drafts, pace, num_answers, round_seconds) and drafts.is_likely(one.token_ids)


def _is_drafted_by_form(one: Sequence, pace: Pace | None, num_answers: int) -> bool:
    """Whether the form of an answer says its next tokens itself, so that no model has to propose any."""
    drafts = one.form_drafts
    return drafts is not None and is_worthwhile(pace, num_answers, drafts.right_part) and drafts.has_some(one.token_ids)
