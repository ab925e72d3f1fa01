"""The life of one request in the scheduler: what is accepted, what ends it, and what its events say."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
from support.engines import key_of
from support.simulation import compute

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.block_manager import BlockHash, BlockManager
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams, Submit
from lorafleet_inference.engine.pace import MIN_PROMPT_TOKENS, Pace, StepBound
from lorafleet_inference.engine.plan import Sampled, StepItem, StepPlan, StepResult
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent, TokenLogprobs
from lorafleet_inference.engine.vocabulary import Vocabulary

EOS, STOP, PLAIN = 1, 8, 2
BLOCK_TOKENS = 4
MAX_MODEL_LEN = 32
A, B = key_of("a"), key_of("b")
LOGPROBS = TokenLogprobs(-0.5, ((PLAIN, -0.5),))


class ListingBlocks(BlockManager):
    """Lists what is published."""

    published: list[int]

    def publish(self, block: int, block_hash: BlockHash) -> None:
        self.published.append(block)
        super().publish(block, block_hash)


def scheduler(
    *,
    num_blocks: int = 64,
    max_batch_tokens: int = 64,
    max_batch_requests: int = 8,
    blocks: BlockManager | None = None,
) -> Scheduler:
    """The adapter b has one token more than the base and a."""
    return Scheduler(
        blocks or BlockManager(num_blocks, BLOCK_TOKENS, prefix_caching=True),
        max_batch_tokens=max_batch_tokens,
        max_batch_requests=max_batch_requests,
        max_model_len=MAX_MODEL_LEN,
        eos_token_ids=(EOS,),
        vocabulary_of=lambda adapter: Vocabulary(101, 101) if adapter == B else Vocabulary(100, 100),
    )


def asked(
    request_id: str,
    num_prompt: int = 3,
    *,
    adapter: AdapterKey | None = None,
    max_tokens: int = 4,
    first: int = 10,
    **sampling: Any,
) -> Submit:
    """A request whose prompt is 10, 11, 12…, or from another `first` token on."""
    prompt = tuple(range(first, first + num_prompt))
    return Submit(request_id, prompt, adapter, SamplingParams(max_tokens=max_tokens, **sampling))


def sampled(plan: StepPlan, token: Callable[[StepItem], int] = lambda _: PLAIN) -> StepResult:
    """What a step computes."""
    tokens = {item.request_id: Sampled(token(item), LOGPROBS) for item in plan.items if item.samples}
    scored = {item.request_id: (TokenLogprobs(-1.0, ()),) * item.num_score for item in plan.items if item.num_score}
    return StepResult(tokens, scored)


def step(one: Scheduler, *tokens: int, on_device: Collection[AdapterKey] = (A, B)) -> list[TokenEvent]:
    """Run steps in which each request gets these tokens, one after the other."""
    events = []
    for token in tokens or (PLAIN,):
        plan = one.plan(on_device)
        events += compute(one, plan, sampled(plan, lambda _, chosen=token: chosen))
    return events


def submitted(*requests: Submit, **sizes: int) -> Scheduler:
    one = scheduler(**sizes)
    for request in requests:
        assert one.submit(request) is None
    return one


TOO_LONG, INVALID = ErrorCode.CONTEXT_LENGTH_EXCEEDED, ErrorCode.INVALID_VALUE
LIMITS: dict[str, tuple[Submit, ErrorCode | None, str]] = {
    "no prompt": (asked("r", 0), INVALID, "at least one prompt token"),
    "one token": (asked("r", 1), None, ""),
    "less than no answer": (asked("r", max_tokens=-1), INVALID, "no less than none to answer"),
    "no answer": (asked("r", max_tokens=0), None, ""),
    "one token to answer": (asked("r", max_tokens=1), None, ""),
    "no room for an answer": (asked("r", 32), TOO_LONG, "prompt has 32 tokens and the context 32"),
    "room for one token": (asked("r", 31, max_tokens=999), None, ""),
    "no room, and no answer": (asked("r", 32, max_tokens=0), None, ""),
    "more than the context": (asked("r", 33, max_tokens=0), TOO_LONG, "prompt has 33 tokens"),
    "a token of another adapter": (asked("r", adapter=A, stop_token_ids=(100,)), INVALID, "token id 100"),
    "a token of its adapter": (asked("r", adapter=B, stop_token_ids=(100,)), None, ""),
    "a token of nobody": (Submit("r", (5, 101), B, SamplingParams(max_tokens=1)), INVALID, "prompt: token id 101"),
}


@pytest.mark.parametrize(("request_", "code", "words"), LIMITS.values(), ids=LIMITS.keys())
def test_what_can_never_be_computed_is_refused(request_: Submit, code: ErrorCode | None, words: str) -> None:
    one = scheduler()
    refused = one.submit(request_)
    if code is None:
        assert refused is None
        assert one.num_waiting == 1
        return
    assert refused == TokenEvent("r", finish=FinishReason.ERROR, error=refused.error, code=code)
    assert words in (refused.error or "")
    assert (one.num_waiting, one.num_running) == (0, 0)


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "fits"),
    [(10, 7, True), (10, 8, False), (16, 1, True), (17, 1, False), (16, 0, True), (17, 0, False), (1, 99, False)],
)
def test_prompt_and_answer_but_its_last_token_have_to_fit_into_the_cache(
    num_prompt: int, max_tokens: int, fits: bool
) -> None:
    refused = scheduler(num_blocks=4).submit(asked("r", num_prompt, max_tokens=max_tokens))
    assert (refused is None) == fits
    if refused is not None:
        total = max(num_prompt + 1, min(num_prompt + max_tokens, MAX_MODEL_LEN))
        assert refused.code is TOO_LONG
        assert f"answer of {total} tokens never fit the KV cache of 16 tokens" in (refused.error or "")


def test_no_more_than_the_context_is_asked_of_the_cache() -> None:
    assert submitted(asked("r", 10, max_tokens=999), num_blocks=8).num_waiting == 1


def test_an_id_that_is_taken_is_refused_and_its_first_request_goes_on() -> None:
    one = submitted(asked("r", max_tokens=1))
    again = one.submit(asked("r", 0))
    assert again == TokenEvent("r", finish=FinishReason.ERROR, error="a request of this id is running")
    assert [event.finish for event in step(one)] == [FinishReason.LENGTH]
    assert one.submit(asked("r")) is None, "it has ended"


ENDS: dict[str, tuple[dict[str, Any], int, list[int], FinishReason]] = {
    "the model's end token": ({}, EOS, [], FinishReason.STOP),
    "the model's end token, later": ({}, EOS, [PLAIN, PLAIN], FinishReason.STOP),
    "an end token of the adapter": ({"eos_token_ids": (7,)}, 7, [PLAIN], FinishReason.STOP),
    "a stop token": ({"stop_token_ids": (STOP,)}, STOP, [PLAIN], FinishReason.STOP),
    "a stop token, without end tokens": (
        {"stop_token_ids": (STOP,), "ignore_eos": True},
        STOP,
        [PLAIN, EOS],
        FinishReason.STOP,
    ),
    "an end token that is shown": ({"show_end": True}, EOS, [PLAIN], FinishReason.STOP),
    "a stop token that is shown": ({"show_end": True, "stop_token_ids": (STOP,)}, STOP, [], FinishReason.STOP),
    "its length": ({"max_tokens": 3}, PLAIN, [PLAIN] * 2, FinishReason.LENGTH),
    "its length, with an end token that is ignored": (
        {"max_tokens": 2, "ignore_eos": True, "eos_token_ids": (7,)},
        EOS,
        [7],
        FinishReason.LENGTH,
    ),
}


@pytest.mark.parametrize(("sampling", "last", "before", "finish"), ENDS.values(), ids=ENDS.keys())
def test_what_ends_an_answer(sampling: dict[str, Any], last: int, before: list[int], finish: FinishReason) -> None:
    one = submitted(asked("r", **{"max_tokens": 9, **sampling}))
    for token in before:
        assert step(one, token) == [TokenEvent("r", (token,), (LOGPROBS,))]
    ended = step(one, last)
    shown: dict[str, Any] = {"token_ids": (last,), "logprobs": (LOGPROBS,)}
    if finish is FinishReason.STOP:
        shown = {**shown, "with_end": True} if sampling.get("show_end") else {}
    assert ended == [TokenEvent("r", **shown, finish=finish)]
    assert (one.num_running, one.num_waiting) == (0, 0)


def test_a_request_without_an_answer_ends_when_its_prompt_is_computed() -> None:
    one = submitted(asked("r", 9, max_tokens=0), max_batch_tokens=5)
    assert step(one) == []
    assert step(one) == [TokenEvent("r", finish=FinishReason.LENGTH)]
    assert (one.num_running, one.num_waiting) == (0, 0)


class Exactly:
    """An answer of these tokens and no more; `problem` once another one comes."""

    def __init__(self, *tokens: int) -> None:
        self.left = list(tokens)
        self.problem: str | None = None

    def accept(self, token_id: int) -> bool:
        if token_id != self.left.pop(0):
            self.problem = f"it has no {token_id}"
        return self.problem is None and bool(self.left)


def test_an_answer_that_has_to_match_a_form_ends_with_it() -> None:
    one = scheduler()
    assert one.submit(asked("r", max_tokens=9), Exactly(20, 21)) is None
    assert step(one, 20) == [TokenEvent("r", (20,), (LOGPROBS,))]
    (ended,) = step(one, 21)
    assert (ended.token_ids, ended.logprobs, ended.finish) == ((21,), (LOGPROBS,), FinishReason.STOP)
    assert (one.num_running, one.num_waiting) == (0, 0)


def test_an_answer_whose_form_cannot_be_followed_any_more_fails() -> None:
    one = scheduler()
    assert one.submit(asked("r", max_tokens=9), Exactly(20, 21)) is None
    assert one.submit(asked("other", max_tokens=9)) is None
    failed, other = step(one, 30)
    message = "the grammar of this request cannot be followed any more: it has no 30"
    assert failed == TokenEvent("r", finish=FinishReason.ERROR, error=message, code=ErrorCode.INVALID_VALUE)
    assert other == TokenEvent("other", (30,), (LOGPROBS,))


def test_an_end_token_ends_an_answer_whatever_its_form() -> None:
    one = scheduler()
    assert one.submit(asked("r", max_tokens=9), Exactly(EOS, 20)) is None
    assert step(one, EOS) == [TokenEvent("r", finish=FinishReason.STOP)]


def test_an_answer_ends_where_the_context_does() -> None:
    one = submitted(asked("r", MAX_MODEL_LEN - 2, max_tokens=99))
    events = step(one, PLAIN, PLAIN)
    assert [event.finish for event in events] == [None, FinishReason.LENGTH]
    assert events[-1].token_ids == (PLAIN,)


def test_cancelled_requests_end_once_wherever_they_are() -> None:
    one = submitted(asked("runs"), asked("waits", adapter=A), asked("goes on"))
    step(one, on_device=())
    cancelled = {name: TokenEvent(name, finish=FinishReason.CANCELLED) for name in ("runs", "waits", "goes on")}
    assert one.cancel("runs") == cancelled["runs"]
    assert one.cancel("waits") == cancelled["waits"]
    assert [one.cancel(name) for name in ("runs", "waits", "nobody")] == [None, None, None]
    assert [event.request_id for event in step(one)] == ["goes on"]
    assert one.submit(asked("new")) is None
    assert one.cancel_all() == [cancelled["goes on"], TokenEvent("new", finish=FinishReason.CANCELLED)]
    assert (one.num_running, one.num_waiting) == (0, 0)
    assert one.cancel_all() == []


def test_requests_of_steps_whose_results_never_come_say_why_and_the_others_stay() -> None:
    """Each of them once, however many steps it is in."""
    one = submitted(asked("first", max_tokens=9), asked("ended", max_tokens=9), asked("third", max_tokens=9))
    for _ in range(2):
        one.advance(one.plan(()))
    assert one.cancel("ended") is not None
    assert one.submit(asked("waits")) is None
    assert one.fail_flights("the device is gone") == [
        TokenEvent(name, finish=FinishReason.ERROR, error="the device is gone") for name in ("first", "third")
    ]
    assert [event.request_id for event in step(one)] == ["waits"]


def test_an_adapter_that_cannot_be_loaded_ends_what_waits_for_it_and_nothing_that_runs() -> None:
    one = submitted(asked("runs", adapter=A, max_tokens=9))
    step(one)
    for name, adapter in (("first", A), ("second", A), ("other", B)):
        assert one.submit(asked(name, adapter=adapter)) is None
    given = {"finish": FinishReason.ERROR, "error": "it is broken", "reason": Reason.ARTIFACT_INVALID}
    failed = one.fail_adapter(A, Reason.ARTIFACT_INVALID, "it is broken")
    assert failed == [TokenEvent(name, **given) for name in ("first", "second")]
    assert {event.request_id for event in step(one)} == {"runs", "other"}
    assert one.fail_adapter(key_of("nobody"), Reason.ARTIFACT_INVALID, "") == []


def test_whose_weights_are_needed_and_who_waits() -> None:
    one = submitted(asked("a", adapter=A), asked("base"), asked("b", adapter=B, max_tokens=1))
    assert one.running_adapters() == set()
    assert one.waiting_adapters() == [A, B]
    assert [one.has_work(key) for key in (A, B, key_of("c"))] == [True, True, False]
    step(one, on_device=(B,))
    assert one.running_adapters() == set(), "b has ended, and the base needs none"
    assert one.waiting_adapters() == [A]
    assert [one.has_work(key) for key in (A, B)] == [True, False]
    step(one, on_device=(A,))
    assert one.running_adapters() == {A}
    assert one.waiting_adapters() == []
    assert one.has_work(A)


def test_the_least_served_adapter_waits_at_the_head_until_it_is_forgotten() -> None:
    one = submitted(asked("b", 9, adapter=B, max_tokens=1), asked("a", 2, adapter=A, max_tokens=1))
    step(one)
    assert one.service(B) == 9
    assert one.service(A) == 2
    for name, key in (("b2", B), ("a2", A)):
        assert one.submit(asked(name, adapter=key)) is None
    assert one.waiting_adapters() == [A, B]
    one.forget(B)
    assert one.service(B) == 2, "it is like a new one"


def test_requests_of_an_adapter_start_as_they_came_also_after_a_preemption() -> None:
    requests = [asked(name, 7, max_tokens=12) for name in ("first", "second", "third", "fourth")]
    one = submitted(*requests, num_blocks=6, max_batch_requests=3)
    order: list[str] = []
    ended: list[str] = []
    preempted: set[str] = set()
    for _ in range(200):
        plan = one.plan(())
        order += plan.first_scheduled
        preempted.update(plan.preempted)
        # prompts differ from each other in nothing: tokens do
        result = sampled(plan, lambda item: 20 + int(item.request_id == "second"))
        ended += [event.request_id for event in compute(one, plan, result) if event.finish]
    assert order == ended == ["first", "second", "third", "fourth"]
    assert preempted


def test_a_request_that_fails_alone_in_a_step_publishes_nothing() -> None:
    names = ("failed", "not finite", "fine")
    requests = (asked(name, 9, max_tokens=2, first=10 * at) for at, name in enumerate(names, 1))
    one = submitted(*requests, max_batch_requests=3)
    plan = one.plan(())
    result = sampled(plan)
    bad = with_faults(result, failed={"failed": "out of memory"}, not_finite=frozenset({"not finite"}))
    events = {event.request_id: event for event in compute(one, plan, bad)}
    assert events["failed"] == TokenEvent("failed", finish=FinishReason.ERROR, error="out of memory")
    assert (events["not finite"].finish, events["not finite"].code) == (FinishReason.ERROR, ErrorCode.NOT_FINITE)
    assert events["fine"].token_ids == (PLAIN,)


def with_faults(result: StepResult, **more: Any) -> StepResult:
    return StepResult(result.sampled, result.scored, **more)


@pytest.mark.parametrize("way", ["failed", "not_finite", "fine"])
def test_only_what_was_computed_well_is_found_again(way: str) -> None:
    one = submitted(asked("one", 9, max_tokens=1))
    plan = one.plan(())
    bad = {"failed": {"failed": {"one": "no"}}, "not_finite": {"not_finite": frozenset({"one"})}, "fine": {}}[way]
    compute(one, plan, with_faults(sampled(plan), **bad))
    assert one.submit(asked("two", 9)) is None
    (item,) = one.plan(()).items
    assert item.start == (8 if way == "fine" else 0)


@pytest.mark.parametrize(("adapter", "whose"), [(None, "the base model"), (A, "the adapter a")])
def test_logits_that_are_not_finite_are_laid_to_whose_weights_they_are_of(
    adapter: AdapterKey | None, whose: str
) -> None:
    one = submitted(asked("r", 5, adapter=adapter))
    step(one)
    plan = one.plan((A,))
    (event,) = compute(one, plan, StepResult(not_finite=frozenset({"r"})))
    assert event.finish is FinishReason.ERROR
    assert event.code is ErrorCode.NOT_FINITE
    assert event.error == (
        f"the logits of {whose} are not finite (NaN or infinity) within the first 6 tokens of this request"
    )


def test_blocks_are_found_again_as_soon_as_they_are_full() -> None:
    """Also those of the answer, and by a request that begins while the first still runs."""
    one = submitted(asked("first", 3, max_tokens=20))
    step(one, *range(13, 19))  # 10 … 17 have been computed, and 18 is known
    assert one.submit(asked("second", 12)) is None
    plan = one.plan(())
    item = next(item for item in plan.items if item.request_id == "second")
    assert item.start == 8
    events = {event.request_id: event for event in compute(one, plan, sampled(plan))}
    assert events["second"].num_cached_tokens == 8


def test_prompts_cut_into_steps_are_scored_from_the_second_token_on() -> None:
    one = submitted(asked("r", 12, max_tokens=2, prompt_logprobs=0), max_batch_tokens=5)
    events, sizes = [], []
    for number in range(1, 5):
        plan = one.plan(())
        sizes += [item.num_tokens for item in plan.items]
        scored = {
            item.request_id: (TokenLogprobs(-number, ()),) * item.num_score for item in plan.items if item.num_score
        }
        events += compute(one, plan, StepResult(sampled(plan).sampled, scored))
    assert sizes == [5, 5, 2, 1]
    assert [event.finish for event in events] == [None, FinishReason.LENGTH]
    assert [one.chosen for one in events[0].prompt_logprobs or ()] == [-1] * 5 + [-2] * 5 + [-3]
    assert events[1].prompt_logprobs is None


def test_each_full_block_is_published_once() -> None:
    blocks = ListingBlocks(64, BLOCK_TOKENS, prefix_caching=True)
    blocks.published = []
    one = scheduler(blocks=blocks, max_batch_tokens=5)
    assert one.submit(asked("r", 11, max_tokens=12)) is None
    step(one, *[PLAIN] * 14)
    assert (one.num_running, one.num_waiting) == (0, 0)
    assert len(blocks.published) == len(set(blocks.published)) == 22 // BLOCK_TOKENS


def test_a_step_is_no_longer_than_its_pace_allows() -> None:
    slow = StepBound(Pace(0.25, fixed=0.1, prompt_token=0.01, answer_token=0.01))
    for bound, num_tokens in ((slow, MIN_PROMPT_TOKENS), (None, 8 * 31)):
        requests = (asked(str(number), 31, max_tokens=1, first=number) for number in range(8))
        one = submitted(*requests, max_batch_tokens=512)
        assert one.plan((), bound=bound).num_tokens == num_tokens


def test_whose_requests_there_are() -> None:
    one = submitted(asked("a1", adapter=A), asked("a2", adapter=A, max_tokens=1), asked("n"))
    assert one.num_requests == {A: 2, None: 1}
    step(one, PLAIN, PLAIN, PLAIN)
    assert one.num_requests == {A: 1, None: 1}
    assert one.cancel("n") is not None
    assert one.num_requests == {A: 1}
    one.fail_adapter(A, Reason.NOT_FOUND, "-")
    assert one.num_requests == {A: 1}, "it runs"
    one.cancel_all()
    assert one.num_requests == {}
