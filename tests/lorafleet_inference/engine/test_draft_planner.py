"""Which answers of a step have draft tokens, how many, and on which blocks."""

import pytest
from support.said_form import Said

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.draft_planner import DraftPlanner
from lorafleet_inference.engine.fairness import ServiceCounters
from lorafleet_inference.engine.form import FormDrafts
from lorafleet_inference.engine.messages import SamplingParams, Submit
from lorafleet_inference.engine.pace import Pace, StepBound
from lorafleet_inference.engine.plan import DraftWanted, Growth
from lorafleet_inference.engine.running import RunningSet
from lorafleet_inference.engine.sequence import Sequence
from lorafleet_inference.engine.speculation import HOPE, DraftLength, Speculator

BLOCK_TOKENS, VOCAB_SIZE = 4, 1000
PROMPT = (5, 6, 7, 8, 5, 6)
CHEAP = StepBound(Pace(0.3, fixed=0.1, prompt_token=0.001, answer_token=0.001))
DEAR = StepBound(Pace(0.3, fixed=0.001, prompt_token=1.0, answer_token=0.001))
TIGHT = StepBound(Pace(0.3, fixed=0.012, prompt_token=0.006, answer_token=0.001))
"""Worth it for one answer or two, not for three; and for one where half of the drafts are right, not for two."""


class Step:
    """Sequences that run, on blocks of their own."""

    def __init__(self, *, num_blocks: int = 40, max_step_drafts: int = 32, max_model_len: int = 128) -> None:
        self.blocks = BlockManager(num_blocks, BLOCK_TOKENS, prefix_caching=True)
        self.running = RunningSet(ServiceCounters())
        self.planner = DraftPlanner(
            self.blocks, self.running, max_step_drafts=max_step_drafts, max_model_len=max_model_len
        )

    def add(
        self,
        name: str = "r",
        answer: tuple[int, ...] = (7,),
        *,
        drafts: DraftLength | None = None,
        form: Said | None = None,
        form_drafts: FormDrafts | None = None,
        max_tokens: int = 60,
        pending: int = 1,
        salt: str = "",
    ) -> Sequence:
        """One that has `answer` so far; of its tokens `pending` are to be computed."""
        tokens = [*PROMPT, *answer]
        sampling = SamplingParams(max_tokens=max_tokens)
        request = Submit(name, PROMPT, None, sampling, cache_salt=salt)
        taken = self.blocks.take(self.blocks.blocks_for(len(tokens)))
        assert taken is not None
        one = Sequence(request, len(self.running), tokens, form=form, num_computed=len(tokens) - pending, blocks=taken)
        one.num_charged = one.num_computed
        one.drafts, one.form_drafts = drafts, form_drafts
        self.running.add(one)
        return one

    def draft(
        self,
        one: Sequence,
        proposed: tuple[int, ...] = (),
        *,
        room: int = 16,
        bound: StepBound | None = CHEAP,
        num_decoding: int = 1,
    ) -> tuple[int, ...]:
        """The draft tokens of one; they lie in its blocks."""
        drafted, grown = self.planner.draft(one, room, bound, num_decoding, proposed)
        assert self.blocks.num_used >= len(one.blocks)
        assert grown is None or tuple(one.blocks[grown.num_before :]) == grown.blocks
        assert len(one.token_ids) + len(drafted) <= len(one.blocks) * BLOCK_TOKENS
        return drafted


def model() -> DraftLength:
    """Drafts of a draft model, 4 tokens at first."""
    return DraftLength(16)


def half_right() -> DraftLength:
    return DraftLength(16, right_part=0.5)


class TestDraft:
    """Of one answer in a step."""

    def test_who_wants_none_has_none(self) -> None:
        step = Step()
        assert step.draft(step.add(), (1, 2)) == ()

    def test_what_a_model_proposes(self) -> None:
        step = Step()
        one = step.add(drafts=(drafts := model()))
        assert step.draft(one, (1, 2, 3)) == (1, 2, 3)
        assert one.proposed == (drafts, 3)
        assert step.draft(step.add("other", drafts=model())) == (), "it proposed nothing"

    def test_what_is_looked_up(self) -> None:
        step = Step()
        one = step.add(drafts=(drafts := Speculator(4)))
        assert step.draft(one) == (8, 5, 6, 7)
        assert one.proposed == (drafts, 4)

    def test_nothing_while_a_step_in_flight_has_to_tell_the_next_token(self) -> None:
        step = Step()
        one = step.add(drafts=model())
        one.num_ahead = 1
        assert step.draft(one, (1, 2, 3)) == ()

    @pytest.mark.parametrize(("room", "expected"), [(2, (1, 2)), (1, (1,)), (0, ()), (-1, ())])
    def test_the_room_of_the_step(self, room: int, expected: tuple[int, ...]) -> None:
        step = Step()
        assert step.draft(step.add(drafts=model()), (1, 2, 3), room=room) == expected
        assert step.draft(step.add("other", drafts=Speculator(4)), room=room) == (8, 5, 6, 7)[: max(0, room)]

    @pytest.mark.parametrize(("max_tokens", "number"), [(5, 3), (4, 2), (3, 1), (2, 0), (1, 0)])
    def test_the_token_after_them_ends_the_answer_at_last(self, max_tokens: int, number: int) -> None:
        step = Step()
        assert len(step.draft(step.add(drafts=model(), max_tokens=max_tokens), (1, 2, 3, 4))) == number

    @pytest.mark.parametrize(("max_model_len", "number"), [(12, 4), (11, 3), (9, 1), (8, 0)])
    def test_the_context_ends_it_too(self, max_model_len: int, number: int) -> None:
        step = Step(max_model_len=max_model_len)
        assert len(step.draft(step.add(drafts=model()), (1, 2, 3, 4))) == number

    def test_what_is_looked_up_has_to_pay(self) -> None:
        step = Step()
        one = step.add(drafts=(drafts := Speculator(4)))
        drafts.right_part = 0.5
        assert step.draft(one, bound=TIGHT, num_decoding=2) == ()
        assert drafts.right_part == pytest.approx(0.5 + HOPE * 0.5), "it is tried again some time"
        assert step.draft(one, bound=TIGHT) == (8, 5, 6, 7)

    def test_what_was_proposed_is_tried_whatever_it_costs(self) -> None:
        """Whether it pays was asked before the draft model computed it."""
        step = Step()
        assert step.draft(step.add(drafts=model()), (1, 2), bound=DEAR) == (1, 2)

    def test_where_nothing_is_known_of_the_pace(self) -> None:
        step = Step()
        one = step.add(drafts=Speculator(4))
        assert step.draft(one, bound=None, num_decoding=9) == ()
        assert step.draft(one, bound=None, num_decoding=8) == (8, 5, 6, 7)


class TestForms:
    """Drafts where the answer has a form."""

    @staticmethod
    def with_form(step: Step, said: Said, drafts: DraftLength, **more: int) -> Sequence:
        form_drafts = FormDrafts(8, said, VOCAB_SIZE)
        return step.add(form=said, form_drafts=form_drafts, drafts=drafts, **more)

    def test_what_the_form_says_goes_first(self) -> None:
        step = Step()
        one = self.with_form(step, Said(20, 21, None), model())
        assert step.draft(one, (1, 2, 3)) == (20, 21)
        assert one.proposed == (one.form_drafts, 2)

    def test_also_before_what_is_looked_up(self) -> None:
        step = Step()
        assert step.draft(self.with_form(step, Said(20, 21, None), Speculator(4))) == (20, 21)

    def test_no_more_than_there_is_room_for(self) -> None:
        step = Step()
        one = self.with_form(step, Said(20, 21, 22, 23, 24), model(), max_tokens=5)
        assert step.draft(one) == (20, 21, 22)
        assert step.draft(one, room=1) == (20,)

    def test_where_the_form_says_nothing_others_are_asked_as_far_as_it_allows(self) -> None:
        step = Step()
        one = self.with_form(step, Said(None, 2, 9), drafts := model())
        assert step.draft(one, (1, 2, 3, 4)) == (1, 2)
        assert one.proposed == (drafts, 4), "those that left the form were wrong"
        other = self.with_form(step, Said(None, 5, 9), Speculator(4))
        assert step.draft(other) == (8, 5)

    def test_what_leaves_the_form_at_once_was_wrong(self) -> None:
        step = Step()
        said = Said(9)
        one = step.add(form=said, drafts=(drafts := half_right()))
        assert step.draft(one, (1, 2)) == ()
        assert one.proposed is None
        assert drafts.right_part == pytest.approx(0.4), "of two none was right"
        assert drafts.number(one.token_ids, 9) == 0, "and there is a pause"

    def test_what_the_form_says_has_to_pay(self) -> None:
        step = Step()
        one = self.with_form(step, Said(20, 21, None), model())
        assert one.form_drafts is not None
        one.form_drafts.right_part = 0.5
        assert step.draft(one, bound=TIGHT, num_decoding=2) == ()
        assert one.form_drafts.right_part == pytest.approx(0.5 + HOPE * 0.5)
        assert step.draft(one, bound=TIGHT) == (20, 21)


class TestBlocks:
    """Draft tokens take blocks that are free and nobody else's."""

    def test_those_that_it_has_are_enough(self) -> None:
        step = Step()
        one = step.add(drafts=model(), answer=(7,))
        assert step.planner.draft(one, 9, CHEAP, 1, (1,)) == ((1,), None), "seven tokens and one more fill two blocks"

    def test_more_of_them(self) -> None:
        step = Step(num_blocks=4)
        one = step.add(drafts=model(), answer=(7,))
        before = list(one.blocks)
        drafted, grown = step.planner.draft(one, 9, CHEAP, 1, (1, 2, 3, 4, 5, 6))
        assert drafted == (1, 2, 3, 4, 5, 6)
        assert grown == Growth("r", 2, tuple(one.blocks[2:]))
        assert (one.blocks[:2], len(one.blocks)) == (before, 4)

    def test_where_too_few_are_free_none_is_taken(self) -> None:
        step = Step(num_blocks=3)
        one = step.add(drafts=(drafts := model()), answer=(7,))
        assert step.planner.draft(one, 9, CHEAP, 1, (1, 2, 3, 4, 5, 6)) == ((1,), None)
        assert one.proposed == (drafts, 1)
        assert (len(one.blocks), step.blocks.num_available) == (2, 1)

    def test_what_left_the_form_counts_as_wrong_where_blocks_end_the_draft(self) -> None:
        step = Step(num_blocks=2)
        one = step.add(drafts=(drafts := model()), answer=(7,), form=Said(1, 2, 9))
        assert step.draft(one, (1, 2, 3, 4, 5)) == (1,)
        assert one.proposed == (drafts, 4)


class TestMayDraft:
    """Whether it pays to wait for the results of the steps in flight."""

    def may(self, step: Step, bound: StepBound | None = CHEAP, round_seconds: float = 0.0) -> bool:
        return step.planner.may_draft(bound, round_seconds)

    def test_where_nobody_runs_or_wants_any(self) -> None:
        step = Step()
        assert not self.may(step)
        step.add()
        assert not self.may(step)

    def test_where_a_model_proposes(self) -> None:
        step = Step()
        step.add(drafts=model())
        assert self.may(step)
        assert not self.may(step, DEAR)
        assert not self.may(step, TIGHT, 0.0071), "the round of the model takes more than the token gives"
        assert self.may(step, TIGHT, 0.0069)

    def test_where_it_is_looked_up(self) -> None:
        step = Step()
        step.add(drafts=Speculator(4))
        assert self.may(step)
        other = Step()
        other.add(drafts=Speculator(4), answer=(99,))
        assert not self.may(other)

    def test_not_for_an_answer_that_has_not_begun(self) -> None:
        step = Step()
        step.add(drafts=model(), answer=(), pending=1)
        assert not self.may(step)

    def test_one_of_several_is_enough(self) -> None:
        step = Step()
        step.add("a")
        step.add("b", drafts=model(), answer=())
        step.add("c", drafts=model())
        assert self.may(step)

    def test_how_many_answers_go_on_counts(self) -> None:
        step = Step()
        for name in "abc":
            assert self.may(step, TIGHT) is (name in "bc")
            step.add(name, drafts=model())
        assert not self.may(step, TIGHT)
        assert self.may(step, None)

    def test_where_not_even_right_ones_pay_nothing_is_learned_of_how_many_are_right(self) -> None:
        step = Step()
        step.add(drafts=(drafts := half_right()))
        for bound in (DEAR, StepBound(Pace(0.3, fixed=0.004, prompt_token=0.006, answer_token=0.001))):
            assert not self.may(step, bound)
            assert drafts.right_part == 0.5

    def test_what_the_form_says_has_to_pay(self) -> None:
        step = Step()
        said = Said(20, 21, None)
        form_drafts = FormDrafts(8, said, VOCAB_SIZE)
        form_drafts.right_part = 0.5
        step.add(form=said, form_drafts=form_drafts, drafts=half_right())
        step.add("other")
        assert not self.may(step, TIGHT)

    def test_what_the_form_says(self) -> None:
        step = Step()
        said = Said(20, 21, None)
        drafts = half_right()
        step.add(form=said, form_drafts=FormDrafts(8, said, VOCAB_SIZE), drafts=drafts)
        assert self.may(step, TIGHT, 1.0), "no model has to compute it"
        assert drafts.right_part == 0.5, "nobody asked for these"


class TestWanted:
    """What a draft model is asked for."""

    @staticmethod
    def names(step: Step, bound: StepBound | None = CHEAP, round_seconds: float = 0.0) -> dict[str, int]:
        return {one.request_id: one.number for one in step.planner.wanted(bound, round_seconds)}

    def test_all_that_it_has_to_know(self) -> None:
        step = Step()
        one = step.add(drafts=model(), salt="own")
        assert step.planner.wanted(CHEAP, 0.0) == [
            DraftWanted("r", one.token_ids, len(PROMPT), one.request.sampling, "own", 4)
        ]

    def test_those_that_cannot_use_any_are_left_out(self) -> None:
        step = Step()
        step.add("none")
        step.add("prompt", drafts=model(), answer=())
        step.add("last", drafts=model(), max_tokens=2)
        again = step.add("again", drafts=model())
        again.num_charged += 1
        assert self.names(step) == {}
        step.add("one", drafts=model())
        assert self.names(step) == {"one": 4}
        again.num_charged -= 1
        assert self.names(step) == {"again": 4, "one": 4}

    def test_the_oldest_first_as_many_as_there_is_room_for(self) -> None:
        step = Step(max_step_drafts=9)
        for name in "abc":
            step.add(name, drafts=model())
        assert self.names(step) == {"a": 4, "b": 2}, "nine rows, of which three are of the answers themselves"

    def test_the_answers_end(self) -> None:
        step = Step(max_model_len=10)
        step.add("context", drafts=model())
        step.add("answer", drafts=model(), max_tokens=3)
        assert self.names(step) == {"context": 2, "answer": 1}

    def test_it_has_to_pay_with_the_round_of_the_model(self) -> None:
        step = Step()
        step.add(drafts=(drafts := half_right()))
        assert self.names(step, TIGHT, 0.0006) == {}
        assert drafts.right_part == pytest.approx(0.5 + HOPE * 0.5)
        drafts.right_part = 0.5
        assert self.names(step, TIGHT, 0.0004) == {"r": 4}
        assert self.names(step, None) == {"r": 4}
        assert self.names(step, DEAR) == {}

    def test_how_many_answers_go_on_counts(self) -> None:
        step = Step()
        for name, expected in (("a", {"a"}), ("b", {"a", "b"}), ("c", set())):
            step.add(name, drafts=model())
            assert set(self.names(step, TIGHT)) == expected

    def test_not_where_the_form_says_the_next_tokens_itself(self) -> None:
        step = Step()
        said = Said(20, 21, None)
        one = step.add(form=said, form_drafts=FormDrafts(8, said, VOCAB_SIZE), drafts=model())
        assert self.names(step) == {}
        assert one.form_drafts is not None
        one.form_drafts.right_part = 0.1
        assert self.names(step, TIGHT) == {"r": 4}, "it is not likely to be right in these words"
        said.left.clear()
        one.form_drafts.right_part = 1.0
        assert self.names(step) == {"r": 4}

    def test_who_is_asked_for_nothing_keeps_nobody_else_from_it(self) -> None:
        step = Step()
        said = Said(20, 21, None)
        step.add("form", form=said, form_drafts=FormDrafts(8, said, VOCAB_SIZE), drafts=model())
        step.add("wrong", drafts=half_right())
        step.add("right", drafts=model())
        pace = Pace(0.3, fixed=0.012, prompt_token=0.004, answer_token=0.001)
        assert self.names(step, StepBound(pace)) == {"right": 4}
