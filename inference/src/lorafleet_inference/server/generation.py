"""Runs the sequences of one request on the engine and joins what they show into one stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import RETRYABLE
from lorafleet_inference import metrics
from lorafleet_inference.engine.client import EngineClient
from lorafleet_inference.engine.messages import (
    AdapterKey,
    FinishReason,
    SamplingParams,
    Submit,
    TokenEvent,
    TokenLogprobs,
)
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
    new_prompt: bool = True
    """False for further choices of the same prompt, whose cached tokens are no saving of the client's."""


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What a choice shows next; `finish` stands in its last delta."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...]
    finish: Finish | None


class Meter:
    """Measures one sequence."""

    def __init__(self, adapter: str, arrived: float) -> None:
        self._adapter = adapter
        self._arrived = arrived
        self._last: float | None = None

    def tokens(self, event: TokenEvent) -> None:
        """Count the tokens of an event."""
        now = time.perf_counter()
        if event.queue_seconds is not None:
            metrics.QUEUE_SECONDS.of().observe(event.queue_seconds)
        if not event.token_ids:
            return
        metrics.GENERATION_TOKENS.of(self._adapter).inc(len(event.token_ids))
        if self._last is None:
            metrics.TIME_TO_FIRST_TOKEN.of().observe(now - self._arrived)
        else:
            metrics.INTER_TOKEN.of().observe((now - self._last) / len(event.token_ids))
        self._last = now

    def not_finite(self) -> None:
        """Count a row of logits that ended the sequence."""
        metrics.NOT_FINITE.of(self._adapter).inc()

    def end(self, finish: str) -> None:
        """Count the sequence itself."""
        metrics.REQUESTS.of(self._adapter, finish).inc()
        metrics.REQUEST_SECONDS.of().observe(time.perf_counter() - self._arrived)


class Generation:
    """All sequences of one request. Closing `deltas` early, as when the client leaves, cancels what runs."""

    def __init__(
        self, engine: EngineClient, waiting: Waiting, request_id: str, key: AdapterKey | None, arrived: float
    ) -> None:
        self._engine = engine
        self._waiting = waiting
        self._request_id = request_id
        self._key = key
        self._arrived = arrived
        self._adapter = metrics.ADAPTER_LABELS.of(key)
        self.num_completion_tokens = 0
        self.num_cached_tokens = 0
        self.prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        """By the index of the first choice of each prompt, where they were asked for."""

    def usage(self, num_prompt_tokens: int) -> Usage:
        """Return what was used so far."""
        return Usage(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=self.num_completion_tokens,
            total_tokens=num_prompt_tokens + self.num_completion_tokens,
            prompt_tokens_details=CachedTokens(min(self.num_cached_tokens, num_prompt_tokens)),
        )

    async def deltas(self, plans: Sequence[ChoicePlan], outputs: Sequence[Output]) -> AsyncGenerator[ChoiceDelta, None]:
        """Yield what the choices show, each in its order, in between each other as they come.

        Raises:
            RequestError: what the engine says of a sequence; the others are cancelled.
        """
        streams = [self._choice(plan, output) for plan, output in zip(plans, outputs, strict=True)]
        joined = streams[0] if len(streams) == 1 else _merge(streams)
        async with aclosing(joined):
            async for delta in joined:
                yield delta

    async def _choice(self, plan: ChoicePlan, output: Output) -> AsyncGenerator[ChoiceDelta, None]:
        meter, waiting, finish = Meter(self._adapter, self._arrived), True, "cancelled"
        metrics.PROMPT_TOKENS.of(self._adapter).inc(len(plan.prompt_token_ids))
        submit = Submit(f"{self._request_id}-{plan.index}", plan.prompt_token_ids, self._key, plan.sampling)
        try:
            async with aclosing(self._engine.submit(submit)) as events:
                async for event in events:
                    if waiting:
                        waiting = False
                        self._waiting.leave(1)
                        self.num_cached_tokens += event.num_cached_tokens if plan.new_prompt else 0
                    if event.prompt_logprobs is not None:
                        self.prompt_logprobs[plan.index] = event.prompt_logprobs
                    meter.tokens(event)
                    self.num_completion_tokens += len(event.token_ids)
                    if event.code is ErrorCode.NOT_FINITE:
                        meter.not_finite()
                    if event.finish in (FinishReason.ERROR, FinishReason.CANCELLED):
                        finish = event.finish.value
                        raise _failure(event)
                    shown = output.push(event)
                    ended = "stop" if shown.stopped else _FINISH.get(event.finish) if event.finish else None
                    if ended is not None:
                        finish = ended
                    if shown.text or shown.tokens or ended:
                        yield ChoiceDelta(plan.index, shown.text, shown.tokens, ended)
                    if shown.stopped:
                        return
            if finish == "cancelled":
                raise EngineFailure("the engine ended this request without saying why")
        finally:
            meter.end(finish)


def _failure(event: TokenEvent) -> RequestError:
    message = event.error or "the engine ended this request"
    if event.code is not None:
        return _BY_CODE[event.code](message)
    if event.reason is None:
        return EngineFailure(message)
    if event.reason in RETRYABLE:
        return AdapterLoading(message, retry_after_seconds=RETRY_SECONDS)
    return AdapterFailed(f"{event.reason}: {message}")


async def _merge(streams: Sequence[AsyncGenerator[ChoiceDelta, None]]) -> AsyncGenerator[ChoiceDelta, None]:
    """Yield from all streams as items come; the first error ends all."""
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
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
