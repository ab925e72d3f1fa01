"""Every accepted request ends exactly once, within the budget, however little memory there is."""

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import key_of
from support.simulation import EOS, VOCAB_SIZE, Simulation, compute, request

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.messages import AdapterKey, LengthRope, RopeKind, SamplingParams, Submit
from lorafleet_inference.engine.plan import Sampled, StepResult
from lorafleet_inference.engine.planner import MAX_SCORED_TOKENS
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.token_events import FinishReason
from lorafleet_inference.engine.vocabulary import Vocabulary

KEYS = (key_of("a"), key_of("b"), key_of("c"))
KEYS_OF_BOTH = (key_of("busy"), key_of("quiet"))
MANY_STEPS = 2000


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    num_blocks=st.integers(1, 14),
    max_batch_tokens=st.integers(1, 24),
    max_batch_requests=st.integers(1, 6),
    rope=st.sampled_from([None, LengthRope(RopeKind.LONGROPE, 10), LengthRope(RopeKind.DYNAMIC, 10)]),
)
def test_every_request_ends_once(
    seed: int, num_blocks: int, max_batch_tokens: int, max_batch_requests: int, rope: LengthRope | None
) -> None:
    rng = random.Random(seed)
    simulation = Simulation(
        num_blocks=num_blocks,
        max_batch_tokens=max_batch_tokens,
        max_batch_requests=max_batch_requests,
        max_model_len=40,
        length_rope=rope,
        token=lambda request_id, position: EOS if random.Random(f"{seed}{request_id}{position}").random() < 0.1 else 2,
    )
    for number in range(30):
        for _ in range(rng.randrange(3)):
            name = f"r{len(simulation.stories)}"
            adapter = rng.choice((None, *KEYS))
            shared = rng.choice([None, 5])
            simulation.submit(
                request(name, adapter, num_prompt=rng.randrange(45), max_tokens=rng.randrange(1, 14), seed=shared)
            )
        if simulation.stories and rng.random() < 0.2:
            simulation.cancel(rng.choice(list(simulation.stories)))
        if rng.random() < 0.1:
            simulation.set_back(rng.choice(KEYS))
        few = {*rng.sample(KEYS, 2), *simulation.scheduler.running_adapters()}
        on_device = few if number % 3 == 0 else set(KEYS)
        held = {key_of("a")} if rng.random() < 0.2 else set()
        simulation.step(on_device, held)
    for _ in range(MANY_STEPS):
        if not simulation.scheduler.num_running + simulation.scheduler.num_waiting:
            break
        assert simulation.step(KEYS).items, "nothing is computed although requests wait"
    assert all(story.ended for story in simulation.stories.values())
    assert simulation.blocks.num_used == 0
    for story in simulation.stories.values():
        tokens = [token for event in story.events for token in event.token_ids]
        finish = story.events[-1].finish
        assert EOS not in tokens
        assert (finish is FinishReason.CANCELLED) == story.cancelled
        if finish is FinishReason.LENGTH:
            num_prompt = len(story.request.prompt_token_ids)
            assert len(tokens) == min(story.request.sampling.max_tokens, 40 - num_prompt)


def test_prompts_are_cut_to_the_budget_beside_decode() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=8, max_batch_requests=4)
    simulation.submit(request("first", num_prompt=3, max_tokens=9))
    simulation.step()
    simulation.submit(request("long", num_prompt=20))
    sizes = []
    for _ in range(3):
        items = {item.request_id: item.num_tokens for item in simulation.step().items}
        sizes.append((items["first"], items["long"]))
    assert sizes == [(1, 7), (1, 7), (1, 6)]


def test_a_known_prefix_is_not_computed_again() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=64, max_batch_requests=4)
    simulation.submit(request("one", num_prompt=10, seed=1, max_tokens=1))
    simulation.step()
    simulation.submit(request("two", num_prompt=12, seed=1))
    plan = simulation.step()
    assert [item.start for item in plan.items] == [8]
    assert (plan.num_queried_tokens, plan.num_hit_tokens) == (12, 8)
    assert simulation.stories["two"].events[0].num_cached_tokens == 8


def test_the_prefix_of_another_adapter_is_computed() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=64, max_batch_requests=4)
    one, two = AdapterKey("x", "sha256:1"), AdapterKey("x", "sha256:2")
    for name, adapter in (("one", one), ("two", two), ("base", None)):
        simulation.submit(request(name, adapter, num_prompt=10, seed=1, max_tokens=1))
        assert [item.start for item in simulation.step({one, two}).items] == [0]


def test_requests_of_different_salts_share_no_prefix() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=64, max_batch_requests=4)
    starts = []
    for number, salt in enumerate(("", "x", "y", "x", "")):
        asked = request(f"r{number}", num_prompt=10, seed=1, max_tokens=1)
        simulation.submit(msgspec.structs.replace(asked, cache_salt=salt))
        starts += [item.start for item in simulation.step().items]
    assert starts == [0, 0, 0, 8, 8]


def test_priority_orders_the_requests_of_an_adapter_and_not_adapters() -> None:
    """One runs at a time; requests of equal priority keep their order, and the other adapter has its turns as ever."""
    simulation = Simulation(num_blocks=50, max_batch_tokens=64, max_batch_requests=1)
    a, b = key_of("a"), key_of("b")
    for name, adapter, priority in (("a0", a, 5), ("a1", a, 0), ("a2", a, 0), ("a3", a, -3), ("b0", b, 9)):
        asked = request(name, adapter, max_tokens=1)
        simulation.submit(msgspec.structs.replace(asked, priority=priority))
    order = [item.request_id for _ in range(5) for item in simulation.step({a, b}).items]
    assert [name for name in order if name != "b0"] == ["a3", "a1", "a2", "a0"]
    assert order.index("b0") <= 1


def test_memory_that_is_short_takes_it_from_the_lowest_priority() -> None:
    simulation = Simulation(num_blocks=6, max_batch_tokens=32, max_batch_requests=8)
    for name, priority in (("oldest", 0), ("late", 1), ("urgent", 0)):
        simulation.submit(msgspec.structs.replace(request(name, num_prompt=7, max_tokens=12), priority=priority))
    preempted: tuple[str, ...] = ()
    while not preempted:
        preempted = simulation.step().preempted
    assert preempted == ("late",)


@pytest.mark.parametrize("num_prompt", [1, 5, 64])
def test_a_request_for_no_tokens_scores_its_prompt_and_ends(num_prompt: int) -> None:
    simulation = Simulation(num_blocks=16, max_batch_tokens=8, max_batch_requests=2)
    asked = request("score", num_prompt=num_prompt)
    simulation.submit(msgspec.structs.replace(asked, sampling=SamplingParams(max_tokens=0, prompt_logprobs=0)))
    while not simulation.stories["score"].ended:
        simulation.step()
    (event,) = simulation.stories["score"].events
    assert (event.token_ids, event.finish) == ((), FinishReason.LENGTH)
    assert len(event.prompt_logprobs or ()) == num_prompt - 1


def test_memory_that_is_short_preempts_the_latest_and_all_end() -> None:
    simulation = Simulation(num_blocks=6, max_batch_tokens=32, max_batch_requests=8)
    for number in range(3):
        simulation.submit(request(f"r{number}", num_prompt=7, max_tokens=12))
    for _ in range(60):
        simulation.step()
    assert simulation.num_preempted > 0
    ends = {name: story.times[-1] for name, story in simulation.stories.items()}
    assert ends["r0"] == min(ends.values())
    assert all(len(story.events) == 12 for story in simulation.stories.values())


def test_a_request_that_never_fits_is_refused_at_once() -> None:
    simulation = Simulation(num_blocks=4, max_batch_tokens=32, max_batch_requests=8)
    simulation.submit(request("memory", num_prompt=10, max_tokens=20))
    simulation.submit(request("context", num_prompt=64))
    simulation.submit(request("empty", num_prompt=0))
    for story in simulation.stories.values():
        assert [event.finish for event in story.events] == [FinishReason.ERROR]
    codes = {name: story.events[0].code for name, story in simulation.stories.items()}
    too_long = ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert codes == {"memory": too_long, "context": too_long, "empty": ErrorCode.INVALID_VALUE}
    assert not simulation.step().items


def test_a_waiting_adapter_holds_nobody_back() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=64, max_batch_requests=4)
    for number in range(10):
        simulation.submit(request(f"absent{number}", key_of("absent")))
    simulation.submit(request("there", key_of("there")))
    simulation.submit(request("base"))
    assert {item.request_id for item in simulation.step({key_of("there")}).items} == {"there", "base"}


def test_a_held_adapter_starts_nothing_new_and_ends_what_runs() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=64, max_batch_requests=4)
    key = key_of("held")
    simulation.submit(request("runs", key))
    simulation.step({key})
    simulation.submit(request("waits", key))
    for _ in range(5):
        simulation.step({key}, {key})
    assert simulation.stories["runs"].ended
    assert not simulation.stories["waits"].events
    assert simulation.step({key}).first_scheduled == ("waits",)


def test_an_adapter_that_is_set_back_waits_and_goes_on_where_it_was() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=8, max_batch_requests=4)
    a, b = KEYS[:2]
    simulation.submit(request("long", a, num_prompt=16, max_tokens=9))
    simulation.submit(request("other", b, num_prompt=3, max_tokens=30))
    while len(simulation.stories["long"].events) < 3:
        simulation.step({a, b})
    assert simulation.scheduler.computing_adapters() == {a, b}
    assert simulation.set_back(a) == 1
    assert simulation.scheduler.running_adapters() == {b}
    assert simulation.scheduler.waiting_adapters() == [a]
    assert {item.request_id for item in simulation.step({b}).items} == {"other"}
    while not simulation.stories["long"].ended:
        simulation.step({a, b})
    assert sum(len(event.token_ids) for event in simulation.stories["long"].events) == 9


def test_what_only_computes_again_what_it_had_is_not_computing() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=8, max_batch_requests=4, prefix_caching=False)
    a = KEYS[0]
    simulation.submit(request("long", a, num_prompt=16, max_tokens=9))
    while not simulation.stories["long"].events:
        simulation.step({a})
    simulation.set_back(a)
    simulation.step({a})
    assert simulation.scheduler.running_adapters() == {a}
    assert simulation.scheduler.computing_adapters() == set()
    while len(simulation.stories["long"].events) < 2:
        simulation.step({a})
    assert simulation.scheduler.computing_adapters() == {a}


def test_an_adapter_that_failed_ends_its_waiting_requests_with_the_reason() -> None:
    simulation = Simulation(num_blocks=50, max_batch_tokens=64, max_batch_requests=4)
    simulation.submit(request("waits", key_of("bad")))
    simulation.submit(request("other", key_of("good")))
    events = simulation.scheduler.fail_adapter(key_of("bad"), Reason.ARTIFACT_INVALID, "it is broken")
    assert [(event.request_id, event.finish, event.reason) for event in events] == [
        ("waits", FinishReason.ERROR, Reason.ARTIFACT_INVALID)
    ]
    assert not simulation.scheduler.has_work(key_of("bad"))
    assert simulation.scheduler.has_work(key_of("good"))


def test_cancelled_memory_is_free_at_the_next_step() -> None:
    simulation = Simulation(num_blocks=4, max_batch_tokens=32, max_batch_requests=8)
    simulation.submit(request("big", num_prompt=13, max_tokens=3))
    simulation.step()
    simulation.submit(request("next", num_prompt=13, max_tokens=3))
    assert [item.request_id for item in simulation.step().items] == ["big"]
    simulation.cancel("big")
    assert [item.request_id for item in simulation.step().items] == ["next"]


def test_the_scored_tokens_of_all_requests_share_the_rows_of_a_step() -> None:
    simulation = Simulation(num_blocks=2000, max_batch_tokens=4096, max_batch_requests=16, max_model_len=400)
    for number in range(8):
        simulation.submit(scored(f"r{number}", num_prompt=200))
    simulation.submit(request("plain", key_of("a"), num_prompt=200))
    most = 0
    for number in range(10):
        plan = simulation.step(KEYS)
        most = max(most, sum(item.num_score for item in plan.items))
        assert number or "plain" in {item.request_id for item in plan.items}, "who asks for none waits for none"
    assert 0 < most <= MAX_SCORED_TOKENS
    for number in range(8):
        first = simulation.stories[f"r{number}"].events[0]
        assert len(first.prompt_logprobs or ()) == 199


def scored(request_id: str, *, num_prompt: int) -> Submit:
    plain = request(request_id, num_prompt=num_prompt)
    return msgspec.structs.replace(plain, sampling=msgspec.structs.replace(plain.sampling, prompt_logprobs=0))


class CountingBlocks(BlockManager):
    """Counts the holdings that are looked at to find out what could be taken."""

    num_looked_at = 0

    def takable_after(self, shared: Collection[int], released: Iterable[Sequence[int]]) -> Iterator[int]:
        for num_takable in super().takable_after(shared, released):
            self.num_looked_at += 1
            yield num_takable


def test_looking_for_room_for_a_newcomer_looks_at_each_running_sequence_once() -> None:
    blocks = CountingBlocks(160, 4, prefix_caching=True)
    scheduler = Scheduler(
        blocks,
        max_batch_tokens=512,
        max_batch_requests=64,
        max_model_len=1000,
        eos_token_ids=(EOS,),
        vocabulary_of=lambda _: Vocabulary(VOCAB_SIZE, VOCAB_SIZE),
    )
    for number in range(16):
        shared = request(f"busy{number}", key_of("busy"), num_prompt=13, max_tokens=45, seed=5)
        scheduler.submit(shared)
        plan = scheduler.plan(KEYS_OF_BOTH)
        compute(scheduler, plan, StepResult({item.request_id: Sampled(2) for item in plan.items}))
    scheduler.submit(request("newcomer", key_of("quiet"), num_prompt=160 * 4 - 8, max_tokens=4))
    assert "newcomer" not in {item.request_id for item in scheduler.plan(KEYS_OF_BOTH).items}
    assert scheduler.num_running == 16
    assert 0 < blocks.num_looked_at <= 16


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ((5, VOCAB_SIZE), {}),
        ((5, -1), {}),
        ((5,), {"stop_token_ids": (VOCAB_SIZE,)}),
        ((5,), {"logit_bias": ((VOCAB_SIZE, 1.0),)}),
        ((5,), {"eos_token_ids": (VOCAB_SIZE,)}),
        ((5,), {"allowed_token_ids": (5, VOCAB_SIZE)}),
        ((5,), {"bad_words": ((5,), (5, VOCAB_SIZE))}),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused_whoever_sent_them(
    prompt: tuple[int, ...], sampling: dict[str, Any]
) -> None:
    simulation = Simulation(num_blocks=8, max_batch_tokens=8, max_batch_requests=2)
    asked = SamplingParams(max_tokens=3, **sampling)
    simulation.submit(Submit("poison", prompt, None, asked))
    simulation.submit(Submit("last", (5, VOCAB_SIZE - 1), None, SamplingParams(max_tokens=3)))
    refused = simulation.stories["poison"].events
    assert [(event.finish, event.code) for event in refused] == [(FinishReason.ERROR, ErrorCode.INVALID_VALUE)]
    assert str(VOCAB_SIZE) in str(refused[0].error)
    assert not simulation.stories["last"].ended


def test_an_end_token_is_told_to_whom_asks_for_it() -> None:
    simulation = Simulation(num_blocks=8, max_batch_tokens=8, max_batch_requests=2, token=lambda *_: EOS)
    for name, show_end in (("shown", True), ("hidden", False)):
        asked = SamplingParams(max_tokens=3, show_end=show_end)
        simulation.submit(Submit(name, (5, 6), None, asked))
    simulation.step()
    told = {name: story.events[-1] for name, story in simulation.stories.items()}
    assert (told["shown"].token_ids, told["shown"].with_end, told["shown"].finish) == ((EOS,), True, FinishReason.STOP)
    assert (told["hidden"].token_ids, told["hidden"].with_end) == ((), False)


@pytest.mark.parametrize(("ignore_eos", "finish"), [(False, FinishReason.STOP), (True, FinishReason.LENGTH)])
def test_the_adapters_own_end_tokens_end_its_answers(ignore_eos: bool, finish: FinishReason) -> None:
    simulation = Simulation(num_blocks=8, max_batch_tokens=8, max_batch_requests=2, token=lambda *_: 7)
    own = SamplingParams(max_tokens=3, eos_token_ids=(7,), ignore_eos=ignore_eos)
    simulation.submit(Submit("own", (5, 6), key_of("a"), own))
    simulation.submit(Submit("other", (5, 6), key_of("b"), SamplingParams(max_tokens=3)))
    while not all(story.ended for story in simulation.stories.values()):
        simulation.step(KEYS)
    assert simulation.stories["own"].events[-1].finish is finish
    assert simulation.stories["other"].events[-1].finish is FinishReason.LENGTH
