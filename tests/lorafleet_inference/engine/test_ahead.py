"""Requests get the same tokens whether steps are submitted one ahead of their results or not, or answers are drafted, whatever happens
meanwhile."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.engines import key_of
from support.tiny_device import (
    FIRST_PLAIN,
    LATE_TRAP,
    NAN,
    TRAP,
    VOCAB_SIZE,
    TinyDevice,
    inspect,
    ticking,
)

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.core import Engine
from lorafleet_inference.engine.messages import (
    AdapterKey,
    Cancel,
    FromEngine,
    LengthRope,
    RegisterAdapter,
    ReleaseAdapter,
    RopeKind,
    SamplingParams,
    Submit,
    ToEngine,
    Tokens,
)
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent
from lorafleet_inference.engine.turns import PATIENCE_SECONDS

INVOCATION = (6, 7)
ADAPTERS = (key_of("one"), key_of("two"), key_of("three"), key_of("activated-6-7"))
PROMPT_TOKENS = st.integers(FIRST_PLAIN, VOCAB_SIZE - 1)


@dataclass
class Run:
    """An engine on a tiny device, and what it said."""

    ahead: bool
    num_blocks: int
    rope: LengthRope | None
    max_batch_tokens: int
    max_resident: int = 2
    num_draft_tokens: int = 0
    repeats: bool = False
    num_draft_blocks: int = 0
    """Of a draft model, which thinks as the base does; 0: there is none."""
    said: list[FromEngine] = field(default_factory=list)

    def __post_init__(self) -> None:
        now, self.move = ticking()
        self.device = TinyDevice(
            self.num_blocks,
            max_resident=self.max_resident,
            ahead=self.ahead,
            length_rope=self.rope,
            repeats=self.repeats,
        )
        self.inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        config = EngineConfig(
            model="",
            max_batch_tokens=self.max_batch_tokens,
            max_batch_requests=self.device.max_requests,
            max_resident_adapters=self.max_resident,
            speculative_tokens=self.num_draft_tokens,
        )
        self.draft: TinyDevice | None = None
        if self.num_draft_blocks:
            self.draft = TinyDevice(
                self.num_draft_blocks,
                length_rope=self.rope,
                repeats=self.repeats,
                max_requests=self.device.max_requests,
            )
        self.engine = Engine(
            self.device, config, inspect, self.said.append, self.inbox, draft_runner=self.draft, now=now
        )
        self.most_in_flight = 0

    def step(self) -> bool:
        """One turn of the loop, after what is being loaded; returns whether there was anything to do."""
        self.engine._loads._thread._thread.submit(lambda: None).result()
        self.engine.drain(wait=False)
        collects = self.engine._steps.num_in_flight > 0
        plan = self.engine.step()
        self.engine.publish()
        self.engine._blocks.check()
        if self.engine._drafter is not None:
            self.engine._drafter._blocks.check()
        self.most_in_flight = max(self.most_in_flight, self.engine._steps.num_in_flight)
        return bool(plan.items) or collects or not self.inbox.empty()

    def run(self) -> None:
        """Until nothing is left to do."""
        idle = 0
        for _ in range(5000):
            idle = 0 if self.step() else idle + 1
            self.move(0.1)
            if idle > 10 * PATIENCE_SECONDS + 10:
                return
        raise AssertionError("the engine does not come to an end")

    def events(self, name: str) -> list[TokenEvent]:
        return [
            event for one in self.said if isinstance(one, Tokens) for event in one.events if event.request_id == name
        ]

    def close(self) -> None:
        self.engine._loads.close()
        self.engine._choices.grammars.close()


@st.composite
def prompts(draw: st.DrawFn) -> tuple[int, ...]:
    """Many share a beginning of whole blocks; some have an invocation, some a token that stands for a fault."""
    shared = [FIRST_PLAIN + (at * at) % 7 for at in range(draw(st.sampled_from([0, 16, 33, 48, 64])))]
    own = draw(st.lists(PROMPT_TOKENS, min_size=1, max_size=20))
    if draw(st.integers(0, 3)) == 0:
        own[draw(st.integers(0, len(own))) :] = [*INVOCATION, *own[:3]]
    if draw(st.integers(0, 7)) == 0:
        own[draw(st.integers(0, len(own) - 1))] = draw(st.sampled_from([NAN, TRAP, LATE_TRAP]))
    if draw(st.integers(0, 15)) == 0:
        shared[5:6] = [draw(st.sampled_from([NAN, TRAP, LATE_TRAP]))]
    return (*shared, *own)


SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.sampled_from([0, 1, 2, 5, 12, 40]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 3),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 2.0]),
    bad_words=st.sampled_from([(), (), (), ((9, 10), (11, 12), (13, 13))]),
    stop_token_ids=st.sampled_from([(), (), (8,), (9, 14)]),
    ignore_eos=st.booleans(),
    min_tokens=st.sampled_from([0, 0, 3]),
    show_end=st.booleans(),
    num_logprobs=st.sampled_from([None, None, 2]),
    prompt_logprobs=st.sampled_from([None, None, None, None, 1]),
)
ROPES = st.sampled_from([None, None, LengthRope(RopeKind.LONGROPE, 30), LengthRope(RopeKind.DYNAMIC, 30)])


class All(RuleBasedStateMachine):
    """Engines that submit steps ahead, that draft, that do both or neither: each request has the same answer of all."""

    @initialize(
        num_blocks=st.integers(9, 30),
        rope=ROPES,
        max_batch_tokens=st.sampled_from([6, 20, 64, 200]),
        num_draft_tokens=st.sampled_from([1, 5, 20]),
        repeats=st.booleans(),
    )
    def begin(
        self, num_blocks: int, rope: LengthRope | None, max_batch_tokens: int, num_draft_tokens: int, *, repeats: bool
    ) -> None:
        self.runs = [
            Run(ahead, num_blocks, rope, max_batch_tokens, num_draft_tokens=drafts, repeats=repeats)
            for ahead, drafts in ((False, 0), (True, 0), (False, num_draft_tokens), (True, num_draft_tokens))
        ]
        for ahead, num_draft_blocks in ((False, 5), (True, num_blocks)):
            self.runs.append(
                Run(
                    ahead,
                    num_blocks,
                    rope,
                    max_batch_tokens,
                    num_draft_tokens=num_draft_tokens,
                    repeats=repeats,
                    num_draft_blocks=num_draft_blocks,
                )
            )
        self.names: list[str] = []
        for key in ADAPTERS[2:]:
            self.register(key, resident=True)

    def tell(self, message: ToEngine) -> None:
        for run in self.runs:
            run.inbox.put(message)

    def register(self, key: AdapterKey, *, resident: bool) -> None:
        self.tell(RegisterAdapter(key, f"/{key.name}", resident))
        for run in self.runs:
            run.step()  # has it inspected
            run.step()

    @rule(
        asked=st.builds(
            Submit,
            request_id=st.just(""),
            prompt_token_ids=prompts(),
            adapter=st.sampled_from((None, *ADAPTERS)),
            sampling=SAMPLING,
            priority=st.integers(0, 1),
            cache_salt=st.sampled_from(["", "", "", "salt"]),
        ),
        num_choices=st.sampled_from([1, 1, 1, 3]),
    )
    def ask(self, asked: Submit, num_choices: int) -> None:
        for number in range(num_choices):
            name = f"r{len(self.names)}"
            self.names.append(name)
            sampling = msgspec.structs.replace(asked.sampling, seed=(asked.sampling.seed or 0) + number)
            self.tell(msgspec.structs.replace(asked, request_id=name, sampling=sampling))

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for run in self.runs:
            for _ in range(num_steps):
                run.step()

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.tell(Cancel(data.draw(st.sampled_from(self.names[-8:]))))

    @rule(key=st.sampled_from(ADAPTERS), resident=st.booleans())
    def register_again(self, key: AdapterKey, *, resident: bool) -> None:
        self.register(key, resident=resident)

    @rule(key=st.sampled_from(ADAPTERS))
    def release(self, key: AdapterKey) -> None:
        self.tell(ReleaseAdapter(key))

    @rule(seconds=st.sampled_from([1.0, PATIENCE_SECONDS]))
    def wait(self, seconds: float) -> None:
        for run in self.runs:
            run.move(seconds)

    @rule(how=st.sampled_from(["before", "after", "choosing", "late"]))
    def fail(self, how: str) -> None:
        for run in self.runs:
            run.device.fails_next = how

    @invariant()
    def no_more_are_in_flight_than_may_be(self) -> None:
        for run in getattr(self, "runs", []):
            assert run.most_in_flight <= run.ahead

    def teardown(self) -> None:
        if not hasattr(self, "runs"):
            return
        with closing(self.runs):
            for run in self.runs:
                run.run()
                assert run.engine._blocks.num_used == 0
                assert run.engine._drafter is None or run.engine._drafter.num_blocks_used == 0
            for name in self.names:
                first, *others = (run.events(name) for run in self.runs)
                for other in others:
                    compare(first, other)


@contextmanager
def closing(runs: list[Run]) -> Iterator[None]:
    try:
        yield
    finally:
        for run in runs:
            run.close()


def compare(one: list[TokenEvent], other: list[TokenEvent]) -> None:
    """A request that one of them was told to cancel, or that was alone in a step that failed once, may end earlier."""
    answers = [[token for event in events for token in event.token_ids] for events in (one, other)]
    ends = one[-1], other[-1]
    for events in (one, other):
        assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
    if any(end.finish is FinishReason.CANCELLED or "RuntimeError" in (end.error or "") for end in ends):
        shorter, longer = sorted(answers, key=len)
        assert longer[: len(shorter)] == shorter
        return
    assert answers[0] == answers[1]
    assert (ends[0].finish, ends[0].error, ends[0].code, ends[0].with_end) == (
        ends[1].finish,
        ends[1].error,
        ends[1].code,
        ends[1].with_end,
    )
    assert [event.logprobs for event in one if event.token_ids] == [
        event.logprobs for event in other if event.token_ids
    ]
    if ends[0].error is None:  # how far a prompt was scored before it failed depends on how it was cut into steps
        assert one[0].prompt_logprobs == other[0].prompt_logprobs


def test_an_adapter_makes_way_for_another_when_no_step_in_flight_uses_it() -> None:
    answers = []
    for ahead in (False, True):
        run = Run(ahead, num_blocks=30, rope=None, max_batch_tokens=64, max_resident=1)
        with closing([run]):
            for key in ADAPTERS[:2]:
                run.inbox.put(RegisterAdapter(key, f"/{key.name}", resident=False))
                run.step()
                run.step()
            asked = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
            for number, key in enumerate((None, *ADAPTERS[:2])):  # the first adapter is served more than the base
                run.inbox.put(Submit(f"r{number}", tuple(range(FIRST_PLAIN, FIRST_PLAIN + 2 + 8 * number)), key, asked))
                for _ in range(5):
                    run.step()
            assert run.device.holds == {ADAPTERS[0]}
            assert run.engine._steps.num_in_flight == ahead
            run.move(PATIENCE_SECONDS)
            run.step()  # has it read first
            run.step()
            assert run.engine._counts.preempted == 1
            assert (ADAPTERS[0] in run.device.holds) == ahead, "the step in flight computes with it"
            run.run()
            answers.append([[event.token_ids for event in run.events(name)] for name in ("r0", "r1", "r2")])
    assert answers[0] == answers[1]
    assert [len(answer) for answer in answers[0]] == [60, 60, 60]


TestAll = All.TestCase
TestAll.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_repetitive_answer_takes_fewer_steps_with_drafts(*, ahead: bool) -> None:
    answers, steps = [], []
    for num_draft_tokens in (0, 16):
        run = Run(
            ahead=ahead, num_blocks=30, rope=None, max_batch_tokens=64, num_draft_tokens=num_draft_tokens, repeats=True
        )
        with closing([run]):
            asked = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
            run.inbox.put(Submit("r", tuple(range(FIRST_PLAIN, FIRST_PLAIN + 12)), None, asked))
            run.run()
            answers.append([token for event in run.events("r") for token in event.token_ids])
            steps.append(run.engine._counts.steps)
            told = [event.num_accepted_tokens for event in run.events("r")]
            assert sum(told) == 100 - steps[-1]
    assert answers[0] == answers[1]
    assert steps[1] < 0.8 * steps[0]


def test_steps_go_ahead_where_nothing_is_drafted() -> None:
    """Answers that repeat nothing, and one that wants no drafts beside: but for false hopes, a step is always in flight."""
    run = Run(ahead=True, num_blocks=60, rope=None, max_batch_tokens=64, num_draft_tokens=8)
    with closing([run]):
        for number in range(3):
            asked = SamplingParams(
                max_tokens=90, temperature=1, seed=number, ignore_eos=True, max_draft_tokens=(0, 0, 8)[number]
            )
            run.inbox.put(Submit(f"r{number}", tuple(range(FIRST_PLAIN, FIRST_PLAIN + 12)), None, asked))
        num_steps = num_waits = 0
        while run.step():
            num_steps += 1
            num_waits += not run.engine._steps.num_in_flight
        assert num_steps >= 90
        assert num_waits < 0.5 * num_steps
