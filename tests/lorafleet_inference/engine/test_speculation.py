"""Draft tokens: what is proposed, when they are worth it, and what the scheduler makes of them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simulation import BLOCK_TOKENS, EOS, VOCAB_SIZE

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.messages import SamplingParams, Submit
from lorafleet_inference.engine.pace import Pace, StepBound
from lorafleet_inference.engine.plan import Sampled, StepItem, StepPlan, StepResult
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.speculation import FIRST_LENGTH, MAX_PAUSE, RightParts, Speculator, is_worthwhile
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent
from lorafleet_inference.engine.vocabulary import Vocabulary


def test_what_followed_the_last_tokens_before_is_proposed() -> None:
    assert Speculator(4).draft([7, 8, 9, 4, 5, 6, 7, 8, 9], 4) == [4, 5, 6, 7]
    assert Speculator(4).draft([8, 9, 4, 5, 6, 1, 8, 9], 2) == [4, 5], "two tokens are enough"
    assert Speculator(4).draft([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3], 1) == [8], "the latest occurrence counts"
    assert Speculator(4).draft([5, 1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 1) == [9], "three tokens say more than two"
    assert Speculator(4).draft([1, 2, 3, 4], 4) == []
    assert Speculator(4).draft([1], 4) == []


def test_what_repeats_itself_goes_on() -> None:
    assert Speculator(7).draft([1, 2, 1, 2, 1, 2], 7) == [1, 2, 1, 2]
    assert Speculator(3).draft([5, 5, 5], 3) == [5, 5, 5]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 9))
def test_index_finds_what_a_search_finds(tokens: list[int], most: int) -> None:
    speculator, drafted = Speculator(4), []
    for end in range(1, len(tokens) + 1):
        drafted = speculator.draft(tokens[:end], most)
    expected: list[int] = []
    for size in (3, 2):
        tail = tokens[-size:]
        found = [at for at in range(size, len(tokens)) if tokens[at - size : at] == tail]
        if len(tokens) > size and found:
            period = len(tokens) - found[-1]
            expected = [tokens[found[-1] + at % period] for at in range(min(most, FIRST_LENGTH))]
            break
    assert drafted == expected


def test_drafts_are_as_long_as_they_were_right() -> None:
    tokens = [1, 2] * 20
    speculator = Speculator(16)
    lengths = []
    for right in (4, 8, 16, 3, 1):
        drafted = speculator.draft(tokens, 99)
        lengths.append(len(drafted))
        speculator.told(len(drafted), min(right, len(drafted)), len(tokens))
    assert lengths == [4, 8, 16, 16, 3]
    assert len(speculator.draft(tokens, 99)) == 1


def test_wrong_drafts_pause_for_longer_and_longer() -> None:
    tokens = [1] * 20
    speculator, pauses = Speculator(16), []
    for _ in range(9):
        count = 0
        while not speculator.draft(tokens, 99):
            count += 1
            tokens.append(1)
        pauses.append(count)
        speculator.told(1, 0, len(tokens))
        tokens.append(1)
    assert pauses == [0, 1, 2, 4, 8, 16, 32, MAX_PAUSE, MAX_PAUSE]
    assert speculator.right_part < 0.2


def test_a_draft_is_likely_before_the_newest_token_is_known_and_not_again_soon_where_it_leads_elsewhere() -> None:
    speculator, tokens = Speculator(4), [1, 2, 3, 1, 2]
    assert speculator.is_likely(tokens)
    assert speculator.draft([*tokens, 3], 4) == [1, 2, 3, 1]
    speculator, others, waits = Speculator(4), iter(range(10, 500)), []
    for _ in range(4):
        count = 0
        while not speculator.is_likely(tokens):
            count += 1
            tokens += [next(others), 1, 2]
        waits.append(count)
        tokens += [next(others)]
        assert speculator.draft(tokens, 4) == [], "what came was none of what followed before"
        tokens += [1, 2]
    assert waits == [0, 0, 0, 1], "pauses of 1, 2 and 4 tokens"
    assert not Speculator(4).is_likely([1, 2, 3])


def test_large_batches_have_no_drafts() -> None:
    assert is_worthwhile(None, 8, 1.0)
    assert not is_worthwhile(None, 9, 1.0)
    pace = Pace(0.3, fixed=0.040, prompt_token=0.004, answer_token=0.005)
    assert is_worthwhile(pace, 1, 0.2)
    assert not is_worthwhile(pace, 1, 0.05)
    assert is_worthwhile(pace, 20, 0.6)
    assert not is_worthwhile(pace, 200, 0.6)


def test_requests_begin_with_what_drafts_of_their_adapter_were_right_for_others() -> None:
    parts = RightParts()
    assert parts.begin(None) == 1.0
    for _ in range(10):
        parts.told("wrong", 4, 0)
        parts.told("right", 4, 4)
    begun = [parts.begin("wrong") for _ in range(40)]
    assert begun[0] < 0.15
    assert begun == sorted(begun), "without drafts nobody learns that it became better"
    assert begun[-1] > 0.85
    assert parts.begin("right") == parts.begin("unknown") == 1.0
    for number in range(2000):
        parts.told(f"a{number}", 4, 0)
    assert parts.begin("wrong") == 1.0, "forgotten"


def test_a_draft_model_that_is_never_right_is_not_asked_again_by_each_request() -> None:
    one = scheduler(draft_model=True)
    bound = StepBound(Pace(0.3, fixed=0.040, prompt_token=0.030, answer_token=0.005))
    num_drafts = []
    for number in range(6):
        one.submit(msgspec.structs.replace(asked(8), request_id="r"))
        answered(one, one.plan(()), 7)
        num_drafts.append(0)
        while one.num_running:
            wanted = one.drafts_wanted(bound, 0.001)
            num_drafts[number] += len(wanted)
            plan = one.plan((), bound=bound, drafted={each.request_id: (9,) * each.number for each in wanted})
            answered(one, plan, 8)
    assert num_drafts == [2, 0, 0, 1, 0, 0], "the fourth tries again"


def scheduler(num_blocks: int = 40, max_model_len: int = 64, most: int = 4, *, draft_model: bool = False) -> Scheduler:
    return Scheduler(
        BlockManager(num_blocks, BLOCK_TOKENS, prefix_caching=True),
        max_batch_tokens=64,
        max_batch_requests=8,
        max_model_len=max_model_len,
        eos_token_ids=(EOS,),
        vocabulary_of=lambda _: Vocabulary(VOCAB_SIZE, VOCAB_SIZE),
        max_draft_tokens=most,
        has_draft_model=draft_model,
    )


def answered(one: Scheduler, plan: StepPlan, first: int, *more: int) -> list[TokenEvent]:
    one.advance(plan)
    further = {"r": tuple(map(Sampled, more))} if more else {}
    return one.resolve(StepResult({"r": Sampled(first)}, further=further))


def asked(max_tokens: int = 30, **sampling: object) -> Submit:
    return Submit("r", (5, 6, 7, 8, 5, 6), None, SamplingParams(max_tokens=max_tokens, temperature=0, **sampling))  # type: ignore[arg-type]


def test_right_draft_tokens_stand_with_the_token_after_them() -> None:
    one = scheduler()
    one.submit(asked())
    assert answered(one, one.plan(()), 7)[0].token_ids == (7,)
    plan = one.plan(())
    assert plan.items == (StepItem("r", 6, 5, samples=True, decode=True, draft_token_ids=(8, 5, 6, 7)),)
    events = answered(one, plan, 8, 5, 9)
    assert [event.token_ids for event in events] == [(8,), (5,), (9,)]
    assert [(event.num_draft_tokens, event.num_accepted_tokens) for event in events] == [(4, 2), (0, 0), (0, 0)]
    (item,) = one.plan(()).items
    assert (item.start, item.num_tokens, item.draft_token_ids) == (9, 1, ()), "the KV of 7, 8 and 5 is there"


def test_tokens_after_the_end_are_nothing() -> None:
    one = scheduler()
    one.submit(asked())
    answered(one, one.plan(()), 7)
    events = answered(one, one.plan(()), 8, EOS, 6)
    assert [event.finish for event in events] == [None, FinishReason.STOP]
    assert one.num_running == 0


@pytest.mark.parametrize("sampling", [{"max_tokens": 3}, {"max_tokens": 50}], ids=["max_tokens", "context"])
def test_no_draft_goes_beyond_the_answer(sampling: dict[str, int]) -> None:
    one = scheduler(max_model_len=9)
    one.submit(asked(**sampling))
    answered(one, one.plan(()), 7)
    (item,) = one.plan(()).items
    assert item.draft_token_ids == (8,), "one of the two that are left comes after it"


@pytest.mark.parametrize(
    "sampling",
    [{"presence_penalty": 1.0}, {"repetition_penalty": 1.1}, {"bad_words": ((5, 6),)}],
    ids=lambda one: next(iter(one)),
)
def test_answers_that_depend_on_their_history_are_not_drafted(sampling: dict[str, object]) -> None:
    one = scheduler()
    one.submit(asked(**sampling))
    answered(one, one.plan(()), 7)
    assert one.plan(()).items[0].draft_token_ids == ()


@pytest.mark.parametrize(("num_blocks", "num_draft_tokens"), [(4, 4), (3, 1)])
def test_a_draft_takes_blocks_that_are_free_and_nobody_elses(num_blocks: int, num_draft_tokens: int) -> None:
    one = scheduler(num_blocks=num_blocks)
    one.submit(asked(max_tokens=6))
    one.submit(Submit("other", (1, 2, 3), None, SamplingParams(max_tokens=2)))
    plan = one.plan(())
    one.advance(plan)
    one.resolve(StepResult({"r": Sampled(7), "other": Sampled(9)}))
    plan = one.plan(())
    assert not plan.preempted
    drafted = {item.request_id: len(item.draft_token_ids) for item in plan.items}
    assert drafted == {"r": num_draft_tokens, "other": 0}


def test_a_step_has_no_more_rows_of_logits_than_requests_may_have() -> None:
    one = scheduler(most=8)
    for name in "rst":
        one.submit(msgspec.structs.replace(asked(), request_id=name))
    plan = one.plan(())
    one.advance(plan)
    one.resolve(StepResult({name: Sampled(7) for name in "rst"}))
    items = one.plan(()).items
    assert sum(1 + len(item.draft_token_ids) for item in items) == 8, "as many as max_batch_requests"
    assert len(items) == 3


def test_each_request_says_how_many_tokens_are_drafted_beside_others() -> None:
    one = scheduler(most=4)
    asking = {"none": 0, "two": 2, "all": None, "more": 20}
    for name, number in asking.items():
        one.submit(msgspec.structs.replace(asked(max_draft_tokens=number), request_id=name))
    one.advance(one.plan(()))
    one.resolve(StepResult({name: Sampled(7) for name in asking}))
    drafted = {item.request_id: len(item.draft_token_ids) for item in one.plan(()).items}
    assert drafted == {"none": 0, "two": 2, "all": 2, "more": 0}, "four rows of logits are left for drafts"


def test_pace_decides() -> None:
    one = scheduler()
    one.submit(asked())
    answered(one, one.plan(()), 7)
    dear = StepBound(Pace(0.3, fixed=0.001, prompt_token=1.0, answer_token=0.001))
    assert one.plan((), bound=dear).items[0].draft_token_ids == ()
