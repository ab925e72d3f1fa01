"""Runs the sequences of one request on the engine and joins what they show into one stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import RETRYABLE
from lorafleet_inference import metrics
from lorafleet_inference.engine.client import EngineClient
from lorafleet_inference.engine.messages import AdapterKey, Pooling, SamplingParams, Submit
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent, TokenLogprobs
from lorafleet_inference.errors import (
    AdapterFailed,
    AdapterLoading,
    ContextLengthExceeded,
    EngineFailure,
    InvalidValue,
    OutputNotFinite,
    RequestError,
)
from lorafleet_inference.server.admission import RETRY_SECONDS, Waiting
from lorafleet_inference.server.answer_room import AnswerShare, bytes_of
from lorafleet_inference.server.wire import CachedTokens, Finish, Usage
from lorafleet_inference.text.output import Output, ShownToken

_BY_CODE: dict[ErrorCode, type[RequestError]] = {
    one.code: one for one in (ContextLengthExceeded, InvalidValue, OutputNotFinite)
}
_FINISH: dict[FinishReason, Finish] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class ChoicePlan:
    """One sequence to run; `index` is its place among the choices of the answer."""

    index: int
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    new_prompt: bool = True
    """False for further choices of the same prompt, whose cached tokens are no saving of the client's."""
    pooling: Pooling | None = None
    """Where the embedding of the prompt is wanted, and no answer."""
    form_field: str | None = None
    """The field that asks for a form of the answer, which the engine may have to refuse."""


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What a choice shows next; `finish` stands in its last delta."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...]
    finish: Finish | None
    token_ids: tuple[int, ...]
    """Where they are asked for."""
    num_tokens: int
    """Of the choice so far."""
    num_cached_tokens: int
    """Of its prompt."""
    num_bytes: int
    """Of memory, about, that it takes until it is sent."""
    met_stop_string: bool = False
    """That is why it ended."""
    num_end_tokens: int = 0
    """1 where it ended with an end token that is told."""


@dataclass(slots=True)
class Timing:
    """When parts of a request happened, by the clock of `time.perf_counter`."""

    arrived: float
    submitted: float
    queue_seconds: float = 0.0
    """Before its first step; of several sequences, that of the last one."""
    first_token: float | None = None


@dataclass(slots=True)
class Score:
    """How likely the tokens of a sequence are, its end token among them where it is told."""

    total: float = 0.0
    num_tokens: int = 0

    def add(self, logprobs: Sequence[TokenLogprobs], number: int) -> None:
        """Take in the first ones of an event."""
        self.total += sum(one.chosen for one in logprobs[:number])
        self.num_tokens += min(number, len(logprobs))

    @property
    def mean(self) -> float:
        """Log-probability a token."""
        return self.total / self.num_tokens if self.num_tokens else 0.0


Deltas = tuple[ChoiceDelta, ...]
"""What came together: at most one of each choice."""


class Meter:
    """Measures one sequence. `adapter` gives the label of its adapter, asked for at each use, which keeps it in use."""

    def __init__(self, adapter: Callable[[], str], arrived: float) -> None:
        self._adapter = adapter
        self._arrived = arrived
        self._last: float | None = None

    def queued(self, seconds: float) -> None:
        """Count the time before the first step."""
        metrics.QUEUE_SECONDS.of().observe(seconds)

    def drafted(self, number: int, num_accepted: int) -> None:
        """Count draft tokens, and those of them that were right."""
        if number:
            metrics.DRAFT_TOKENS.of(self._adapter()).inc(number)
            metrics.ACCEPTED_TOKENS.of(self._adapter()).inc(num_accepted)

    def tokens(self, number: int) -> None:
        """Count tokens that came together."""
        if not number:
            return
        now = time.perf_counter()
        metrics.GENERATION_TOKENS.of(self._adapter()).inc(number)
        if self._last is None:
            metrics.TIME_TO_FIRST_TOKEN.of().observe(now - self._arrived)
        else:
            for _ in range(number):
                metrics.INTER_TOKEN.of().observe((now - self._last) / number)
        self._last = now

    def not_finite(self) -> None:
        """Count a row of logits that ended the sequence."""
        metrics.NOT_FINITE.of(self._adapter()).inc()

    def end(self, finish: str) -> None:
        """Count the sequence itself."""
        metrics.REQUESTS.of(self._adapter(), finish).inc()
        metrics.REQUEST_SECONDS.of().observe(time.perf_counter() - self._arrived)


class Generation:
    """All sequences of one request. Closing `deltas` early, as when the client leaves, cancels what runs."""

    def __init__(
        self,
        engine: EngineClient,
        waiting: Waiting,
        request_id: str,
        key: AdapterKey | None,
        arrived: float,
        *,
        room: AnswerShare,
        count: Callable[[int], None],
    ) -> None:
        self._engine = engine
        self._room = room
        self._count = count
        """Hears of tokens of prompts and answers as they come."""
        self._waiting = waiting
        self._request_id = request_id
        self._key = key
        self._arrived = arrived
        self._adapter = partial(metrics.ADAPTER_LABELS.of, key)
        self.timing = Timing(arrived, time.perf_counter())
        self.num_completion_tokens = 0
        self.num_cached_tokens = 0
        self.finishes: dict[int, str] = {}
        """How choices ended, by their index."""
        self.scores: dict[int, Score] = {}
        """By the index of the choice, where the engine told log-probabilities."""
        self.prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        """By the index of the first choice of each prompt, where they were asked for."""
        self.embeddings: dict[int, bytes] = {}
        """By the index of the choice, likewise: [dimensions] float32."""

    def sent(self, deltas: Deltas) -> None:
        """Count the memory of deltas no more."""
        self._room.give_back(sum(delta.num_bytes for delta in deltas))

    def usage(self, num_prompt_tokens: int) -> Usage:
        """Return what was used so far."""
        return Usage(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=self.num_completion_tokens,
            total_tokens=num_prompt_tokens + self.num_completion_tokens,
            prompt_tokens_details=CachedTokens(min(self.num_cached_tokens, num_prompt_tokens)),
        )

    async def deltas(self, plans: Sequence[ChoicePlan], outputs: Sequence[Output]) -> AsyncGenerator[Deltas, None]:
        """Yield what the choices show as it comes, each in its order; what waits is taken together.

        Raises:
            RequestError: what the engine says of a sequence; the others are cancelled.
        """
        streams = [self._choice(plan, output) for plan, output in zip(plans, outputs, strict=True)]
        if len(streams) > 1:
            async with aclosing(_merge(streams)) as merged:
                async for deltas in merged:
                    yield deltas
            return
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield (delta,)

    async def _choice(self, plan: ChoicePlan, output: Output) -> AsyncGenerator[ChoiceDelta, None]:
        meter, waiting, finish = Meter(self._adapter, self._arrived), True, "cancelled"
        metrics.PROMPT_TOKENS.of(self._adapter()).inc(len(plan.prompt_token_ids))
        self._count(len(plan.prompt_token_ids))
        submit = Submit(
            f"{self._request_id}-{plan.index}",
            plan.prompt_token_ids,
            self._key,
            plan.sampling,
            plan.priority,
            plan.cache_salt,
            plan.pooling,
        )
        num_tokens, num_cached, num_bytes, score = 0, 0, 0, self.scores.setdefault(plan.index, Score())
        try:
            async with aclosing(self._engine.submit(submit, self._room.hear)) as events:
                async for event in events:
                    if waiting:
                        waiting, num_cached = False, event.num_cached_tokens
                        self._began(plan, event, meter)
                    if event.code is ErrorCode.NOT_FINITE:
                        meter.not_finite()
                    if event.finish in (FinishReason.ERROR, FinishReason.CANCELLED):
                        finish = event.finish.value
                        raise _failure(event, plan.form_field)
                    if event.embedding is not None:
                        self.embeddings[plan.index] = event.embedding
                    meter.drafted(event.num_draft_tokens, event.num_accepted_tokens)
                    num_bytes += bytes_of(event)
                    shown = output.push(event)
                    score.add(event.logprobs or (), shown.num_tokens)
                    with_end = event.with_end and shown.num_tokens == len(event.token_ids)
                    meter.tokens(shown.num_tokens - with_end)
                    self._count(shown.num_tokens - with_end)
                    self.num_completion_tokens += shown.num_tokens - with_end
                    num_tokens += shown.num_tokens - with_end
                    ended = "stop" if shown.stopped else _FINISH.get(event.finish) if event.finish else None
                    if ended is not None:
                        finish = ended
                    if shown.text or shown.tokens or shown.token_ids or ended:
                        yield ChoiceDelta(
                            plan.index,
                            shown.text,
                            shown.tokens,
                            ended,
                            shown.token_ids,
                            num_tokens,
                            num_cached,
                            num_bytes,
                            shown.stopped,
                            int(with_end),
                        )
                        num_bytes = 0
                    if shown.stopped:
                        return
            if finish == "cancelled":
                raise EngineFailure("the engine ended this request without saying why")
        finally:
            meter.end(finish)
            self.finishes[plan.index] = finish

    def _began(self, plan: ChoicePlan, event: TokenEvent, meter: Meter) -> None:
        """Take in what stands in the first event of a sequence alone."""
        self._waiting.leave(1)
        self.num_cached_tokens += event.num_cached_tokens if plan.new_prompt else 0
        if event.prompt_logprobs is not None:
            self.prompt_logprobs[plan.index] = event.prompt_logprobs
        self.timing.first_token = self.timing.first_token or time.perf_counter()
        if event.queue_seconds is not None:
            self.timing.queue_seconds = max(self.timing.queue_seconds, event.queue_seconds)
            meter.queued(event.queue_seconds)


def _failure(event: TokenEvent, form_field: str | None) -> RequestError:
    message = event.error or "the engine ended this request"
    if event.code is ErrorCode.INVALID_VALUE:
        return InvalidValue(message, param=form_field)
    if event.code is not None:
        return _BY_CODE[event.code](message)
    if event.reason is None:
        return EngineFailure(message)
    if event.reason in RETRYABLE:
        return AdapterLoading(message, retry_after_seconds=RETRY_SECONDS)
    return AdapterFailed(f"{event.reason}: {message}")


async def _merge(streams: Sequence[AsyncGenerator[ChoiceDelta, None]]) -> AsyncGenerator[Deltas, None]:
    """Yield from all streams as items come, those that wait together; the first error ends all."""
    queue: asyncio.Queue[ChoiceDelta | Exception | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[ChoiceDelta, None]) -> None:
        try:
            async with aclosing(stream):
                async for delta in stream:
                    queue.put_nowait(delta)
            queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001  raised again where the queue is read
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(stream)) for stream in streams]
    try:
        num_open = len(tasks)
        while num_open:
            items = [await queue.get()]
            while not queue.empty():
                items.append(queue.get_nowait())
            num_open -= items.count(None)
            if deltas := [item for item in items if isinstance(item, ChoiceDelta)]:
                yield _joined(deltas)
            for item in items:
                if isinstance(item, Exception):
                    raise item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _joined(deltas: Sequence[ChoiceDelta]) -> Deltas:
    """Return one delta for each choice that has some."""
    of: dict[int, list[ChoiceDelta]] = {}
    for delta in deltas:
        of.setdefault(delta.index, []).append(delta)
    return tuple(
        ChoiceDelta(
            index,
            "".join(one.text for one in mine),
            tuple(token for one in mine for token in one.tokens),
            mine[-1].finish,
            tuple(token_id for one in mine for token_id in one.token_ids),
            mine[-1].num_tokens,
            mine[-1].num_cached_tokens,
            sum(one.num_bytes for one in mine),
            mine[-1].met_stop_string,
            mine[-1].num_end_tokens,
        )
        for index, mine in of.items()
    )
