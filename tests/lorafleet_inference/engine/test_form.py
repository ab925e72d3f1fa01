"""Draft tokens of answers with a form: what the form says itself, what leaves it, and when neither is tried."""

import pytest
from support.said_form import Said
from support.simulation import BLOCK_TOKENS, EOS, VOCAB_SIZE

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.form import FormDrafts
from lorafleet_inference.engine.messages import SamplingParams, Submit
from lorafleet_inference.engine.pace import Pace, StepBound
from lorafleet_inference.engine.plan import Drafted, Sampled, StepPlan, StepResult
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.speculation import PATIENCE
from lorafleet_inference.engine.token_events import TokenEvent
from lorafleet_inference.engine.vocabulary import Vocabulary

CHEAP = StepBound(Pace(0.3, fixed=0.1, prompt_token=0.001, answer_token=0.001))
DEAR = StepBound(Pace(0.3, fixed=0.001, prompt_token=1.0, answer_token=0.001))
PROMPT = (5, 6, 7, 8, 9, 5, 6)


def scheduler(form: Said, *, has_draft_model: bool = False, **sampling: int) -> Scheduler:
    """One request, whose first token of the answer is to come."""
    one = Scheduler(
        BlockManager(40, BLOCK_TOKENS, prefix_caching=True),
        max_batch_tokens=64,
        max_batch_requests=32,
        max_model_len=128,
        eos_token_ids=(EOS,),
        vocabulary_of=lambda _: Vocabulary(VOCAB_SIZE, VOCAB_SIZE),
        max_draft_tokens=8,
        has_draft_model=has_draft_model,
    )
    one.submit(Submit("r", PROMPT, None, SamplingParams(max_tokens=60, temperature=0, **sampling)), form)
    return one


def answered(one: Scheduler, plan: StepPlan, first: int, *more: int) -> list[TokenEvent]:
    one.advance(plan)
    return one.resolve(StepResult({"r": Sampled(first)}, further={"r": tuple(map(Sampled, more))} if more else {}))


def drafted(one: Scheduler, bound: StepBound = CHEAP, proposed: Drafted = ()) -> Drafted:
    """What the next step has; nothing of it is right, so one other token comes of it."""
    plan = one.plan((), bound=bound, drafted={"r": proposed})
    answered(one, plan, 30)
    return plan.items[0].draft_token_ids


def test_what_a_form_says_is_drafted_before_what_is_looked_up() -> None:
    one = scheduler(Said(None, *range(10, 20), None, None, None))
    answered(one, one.plan(()), 7)
    plan = one.plan((), bound=CHEAP)
    assert plan.items[0].draft_token_ids == tuple(range(10, 18)), "all that may be drafted, at once"
    assert len(answered(one, plan, *range(10, 19))) == 9
    plan = one.plan((), bound=CHEAP)
    assert plan.items[0].draft_token_ids == (19,)
    answered(one, plan, 19, 5)
    assert drafted(one) == ()


@pytest.mark.parametrize(("number", "expected"), [(0, ()), (2, (10, 11)), (64, tuple(range(10, 18)))])
def test_a_request_says_how_many_tokens_of_its_form_are_drafted(number: int, expected: Drafted) -> None:
    one = scheduler(Said(None, *range(10, 20)), max_draft_tokens=number)
    answered(one, one.plan(()), 7)
    assert one.plan((), bound=CHEAP).items[0].draft_token_ids == expected


def test_what_costs_more_than_it_spares_is_not_drafted_though_a_form_says_it() -> None:
    one = scheduler(Said(None, *range(10, 20), None))
    answered(one, one.plan(()), 7)
    assert not one.may_draft(DEAR)
    assert drafted(one, DEAR) == ()


def test_tokens_that_the_model_does_not_have_are_not_drafted() -> None:
    """A tokenizer may have more of them than the embedding has rows."""
    one = scheduler(Said(None, 10, 11, VOCAB_SIZE, 12))
    answered(one, one.plan(()), 7)
    assert drafted(one) == (10, 11)
    assert FormDrafts(8, Said(0, VOCAB_SIZE - 1, VOCAB_SIZE), VOCAB_SIZE).draft([5], 8) == [0, VOCAB_SIZE - 1]


def test_a_model_that_writes_the_text_of_a_form_in_other_tokens_is_drafted_less_and_less() -> None:
    one = scheduler(Said(None, *range(10, 60)))
    answered(one, one.plan(()), 7)
    numbers = [len(drafted(one)) for _ in range(10)]
    assert numbers == [8] + [1] * PATIENCE + [0, 1, 0, 0, 1, 0, 0]


def test_lookups_end_where_they_leave_the_form_and_count_as_wrong_from_there() -> None:
    one = scheduler(Said(None, None, None, 14, *[None] * 20))
    answered(one, one.plan(()), 7)
    plan = one.plan((), bound=CHEAP)
    assert plan.items[0].draft_token_ids == (8, 9), "5 follows in the prompt, and the form wants 14"
    answered(one, plan, 8, 9, 14)
    lookups = one._sequences["r"].drafts
    assert lookups is not None
    assert lookups.number([1] * 20, 99) == 2, "as many as were right of the four that were found"
    plan = one.plan((), bound=CHEAP)
    assert plan.items[0].draft_token_ids == ()


def test_lookups_that_leave_the_form_at_once_pause_as_wrong_ones_do() -> None:
    one = scheduler(Said(None, 11, None, 12, *[None] * 30))
    answered(one, one.plan(()), 7)
    form_drafts = one._sequences["r"].form_drafts
    assert form_drafts is not None
    for _ in range(8):  # nothing that the form says comes right
        form_drafts.told(1, 0, len(PROMPT) + 1)
    lookups = one._sequences["r"].drafts
    assert lookups is not None
    before = lookups.right_part
    assert drafted(one) == (), "8 follows in the prompt, and the form wants 11"
    assert lookups.right_part < before


def test_a_draft_model_is_asked_where_the_form_leaves_a_choice_and_cut_where_it_leaves_the_form() -> None:
    one = scheduler(Said(None, 10, 11, None, None, 13, None), has_draft_model=True)
    answered(one, one.plan(()), 7)
    assert one.drafts_wanted(CHEAP, 0.0) == []
    plan = one.plan((), bound=CHEAP)
    assert plan.items[0].draft_token_ids == (10, 11)
    answered(one, plan, 10, 11, 20)
    (wanted,) = one.drafts_wanted(CHEAP, 0.0)
    assert wanted.number == 4
    assert drafted(one, proposed=(21, 22, 23)) == (21,)


def test_a_slow_draft_model_keeps_nobody_from_drafting_what_the_form_says() -> None:
    one = scheduler(Said(None, *range(10, 20)), has_draft_model=True)
    answered(one, one.plan(()), 7)
    assert one.may_draft(CHEAP, round_seconds=10.0)


def test_who_hoped_in_vain_for_what_a_form_says_lets_tokens_go_by() -> None:
    form = Said(10, 11, 12, None, 13, 14, None)
    drafts, known = FormDrafts(8, form, VOCAB_SIZE), [5]
    assert drafts.is_likely(known)
    form.left = [None, 13, 14, None]  # the token that was not known is another one
    assert drafts.draft([*known, 30], 8) == []
    form.left = [13, 14, None]
    assert not drafts.has_some([5, 30]), "one token goes by"
    assert not drafts.is_likely([5, 30])
    assert drafts.has_some([5, 30, 31])
    assert drafts.draft([5, 30, 31], 8) == [13, 14]


def test_one_token_that_a_form_says_is_not_waited_for() -> None:
    assert not FormDrafts(8, Said(10, None), VOCAB_SIZE).is_likely([5])
    assert FormDrafts(8, Said(10, None), VOCAB_SIZE).has_some([5])
    assert FormDrafts(8, Said(10, 11, None), VOCAB_SIZE).is_likely([5])
