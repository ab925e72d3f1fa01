"""The scheduler driven without a model: tokens are drawn, time is counted in steps."""

import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from support.rows import KnownRequests

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.messages import AdapterKey, LengthRope, RopeKind, SamplingParams, Submit
from lorafleet_inference.engine.pace import StepBound
from lorafleet_inference.engine.plan import Sampled, StepItem, StepPlan, StepResult
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.token_events import TokenEvent, TokenLogprobs
from lorafleet_inference.engine.vocabulary import Vocabulary

EOS = 1
VOCAB_SIZE = 1 << 16
BLOCK_TOKENS = 4


@dataclass
class Story:
    """What happened to a request."""

    request: Submit
    submitted: int
    events: list[TokenEvent] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    """The number of steps that had run at each event."""
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        """Whether the terminal event came."""
        return bool(self.events) and self.events[-1].finish is not None

    @property
    def steps_to_first_token(self) -> int:
        """Steps from Submit to the first event with a token."""
        return (
            next(time for time, event in zip(self.times, self.events, strict=True) if event.token_ids) - self.submitted
        )


class Simulation:
    """A scheduler, and checks of every step that it plans."""

    def __init__(
        self,
        *,
        num_blocks: int,
        max_batch_tokens: int,
        max_batch_requests: int,
        max_model_len: int = 64,
        token: Callable[[str, int], int] = lambda _, position: 2 + position % 5,
        prefix_caching: bool = True,
        num_ahead: int = 0,
        length_rope: LengthRope | None = None,
        invocations: Mapping[AdapterKey, tuple[int, ...]] | None = None,
    ) -> None:
        """`num_ahead`: how many steps may be in flight while the next one is planned. `invocations`: of activated adapters; then
        what each block holds is checked too, token by token."""
        self.blocks = BlockManager(num_blocks, BLOCK_TOKENS, prefix_caching=prefix_caching)
        self.budget = max_batch_tokens
        self.max_batch_requests = max_batch_requests
        self.max_running = min(max_batch_requests, max(1, max_batch_tokens // 2))
        self.scheduler = Scheduler(
            self.blocks,
            max_batch_tokens=max_batch_tokens,
            max_batch_requests=max_batch_requests,
            max_model_len=max_model_len,
            eos_token_ids=(EOS,),
            vocabulary_of=lambda _: Vocabulary(VOCAB_SIZE, VOCAB_SIZE),
            length_rope=length_rope,
            invocation_of=lambda key: (invocations or {}).get(key, ()),
        )
        self._invocations = invocations
        self._content_of: dict[int, int] = {}
        """By block: a hash of the salt, of all tokens up to the last one there, and of whose weights each was computed with."""
        self.length_rope = length_rope
        self.token = token
        self.stories: dict[str, Story] = {}
        self.num_steps = 0
        self.num_preempted = 0
        self.known = KnownRequests()
        self._num_ahead = num_ahead
        self._results: deque[StepResult] = deque()
        """Of the steps in flight."""
        self._computed: dict[str, int] = {}
        self._rope_length_of: dict[int, int] = {}
        """By block: what the KV there was computed with."""

    def submit(self, request: Submit) -> None:
        """Hand in a request."""
        self.stories[request.request_id] = Story(request, self.num_steps)
        refused = self.scheduler.submit(request)
        if refused is not None:
            self.tell([refused])

    def cancel(self, request_id: str) -> None:
        """Cancel a request."""
        event = self.scheduler.cancel(request_id)
        assert (event is None) == self.stories[request_id].ended
        if event is not None:
            self.stories[request_id].cancelled = True
            self.tell([event])

    def set_back(self, adapter: AdapterKey) -> int:
        """Let the running requests of an adapter wait; return how many."""
        for name, story in self.stories.items():
            if story.request.adapter == adapter:
                self._computed.pop(name, None)
        return self.scheduler.set_back(adapter)

    def step(
        self,
        on_device: Collection[AdapterKey] = (),
        held: Collection[AdapterKey] = (),
        bound: StepBound | None = None,
    ) -> StepPlan:
        """Plan and check one step, and take in the result that is due."""
        plan = self.scheduler.plan(on_device, held, bound)
        self.blocks.check()
        self.known.apply(plan)
        self._check(plan, on_device, held)
        self.num_steps += 1
        self.num_preempted += len(plan.preempted)
        sampled = {
            item.request_id: Sampled(self.token(item.request_id, item.end)) for item in plan.items if item.samples
        }
        scored = {item.request_id: (TokenLogprobs(-1.0, ()),) * item.num_score for item in plan.items if item.num_score}
        result = StepResult(sampled, scored)
        self.known.resolve(plan, result)
        if plan.items:
            self.scheduler.advance(plan)
            self._results.append(result)
        while len(self._results) > (self._num_ahead if plan.items else 0):
            self.tell(self.scheduler.resolve(self._results.popleft()))
        self.blocks.check()
        return plan

    def tell(self, events: Collection[TokenEvent]) -> None:
        """Take events in."""
        for event in events:
            story = self.stories[event.request_id]
            assert not story.ended, "an event after the terminal one"
            story.events.append(event)
            story.times.append(self.num_steps)

    def _check(self, plan: StepPlan, on_device: Collection[AdapterKey], held: Collection[AdapterKey]) -> None:
        assert plan.num_tokens <= self.budget
        assert self.scheduler.num_running <= self.max_running
        assert len({item.request_id for item in plan.items}) == len(plan.items)
        for request_id in plan.preempted:
            self._computed.pop(request_id, None)
        fresh: set[int] = set()
        for item in plan.items:
            end, adapter = item.end, self.known.of[item.request_id].new.adapter
            before = self._computed.get(item.request_id)
            assert item.num_tokens > 0
            assert before is None or item.start == before, "a token was computed twice or left out"
            assert adapter is None or adapter in plan.adapters <= set(on_device)
            assert before is not None or adapter not in held
            blocks = self.known.blocks(item, BLOCK_TOKENS)
            assert (len(blocks) - 1) * BLOCK_TOKENS < end <= len(blocks) * BLOCK_TOKENS
            story = self.stories[item.request_id]
            known = [*story.request.prompt_token_ids, *(one for event in story.events for one in event.token_ids)]
            chosen = self.known.of[item.request_id].token_ids
            assert chosen[: len(known)] == known
            assert len(chosen) <= len(known) + self._num_ahead
            assert item.samples == (end == len(chosen))
            self._check_rope(item, blocks, len(chosen))
            if self._invocations is not None:
                self._check_weights(item, blocks, self._invocations)
            written = set(blocks[item.start // BLOCK_TOKENS :])
            assert not written & fresh, "two sequences write to one block"
            fresh |= written
            self._computed[item.request_id] = end

    def _check_rope(self, item: StepItem, blocks: tuple[int, ...], num_known: int) -> None:
        rope = self.length_rope
        wanted = 0
        if rope is not None and rope.kind is RopeKind.LONGROPE:
            wanted = rope.limit + 1 if num_known > rope.limit else 0
        elif rope is not None:
            num_prompt = self.known.of[item.request_id].new.num_prompt
            wanted = num_prompt if num_prompt > rope.limit else 0
        assert self.known.of[item.request_id].new.rope_length == wanted
        for block in blocks[: -(-item.start // BLOCK_TOKENS)]:
            assert self._rope_length_of[block] == wanted, "KV of other rotary frequencies"
        for block in blocks[item.start // BLOCK_TOKENS :]:
            self._rope_length_of[block] = wanted

    def _check_weights(
        self, item: StepItem, blocks: tuple[int, ...], invocations: Mapping[AdapterKey, tuple[int, ...]]
    ) -> None:
        known = self.known.of[item.request_id]
        adapter, prompt = known.new.adapter, tuple(known.token_ids[: known.new.num_prompt])
        invocation = () if adapter is None else invocations.get(adapter, ())
        places = [at for at in range(len(prompt)) if prompt[at : at + len(invocation)] == invocation]
        begin = (places[-1] if places else len(known.token_ids)) if invocation else 0
        computed = [(token, adapter if at >= begin else None) for at, token in enumerate(known.token_ids[: item.end])]
        content = hash(self.stories[item.request_id].request.cache_salt)
        for index, block in enumerate(blocks):
            end = (index + 1) * BLOCK_TOKENS
            content = hash((content, *computed[end - BLOCK_TOKENS : end]))
            if end <= item.start:
                assert self._content_of[block] == content, "KV of other tokens, or of other weights"
            self._content_of[block] = content


def compute(scheduler: Scheduler, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
    """Have a step computed at once."""
    scheduler.advance(plan)
    return scheduler.resolve(result)


def request(
    request_id: str,
    adapter: AdapterKey | None = None,
    *,
    num_prompt: int = 3,
    max_tokens: int = 4,
    seed: int | None = None,
) -> Submit:
    """A request with a prompt of its own, or one that all of a seed share."""
    draw = random.Random(request_id if seed is None else seed)
    prompt = tuple(draw.randrange(2, 50) for _ in range(num_prompt))
    return Submit(request_id, prompt, adapter, SamplingParams(max_tokens=max_tokens, temperature=0))
