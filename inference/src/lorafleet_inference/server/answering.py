"""Runs a request, the same way on every route: admission, lease, prompt, submit, collect or stream, end."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Generic

from lorafleet_contract.names import HEADER_REVISION, split_model
from lorafleet_inference.engine.vocabulary import vocabulary_of
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.admission import Waiting
from lorafleet_inference.server.generation import ChoiceDelta, ChoicePlan, Generation
from lorafleet_inference.server.http import Exchange, json_response
from lorafleet_inference.server.pod import Pod, answer_length, check_token_ids, lease_headers
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, RequestT, Surface, TokenIds
from lorafleet_inference.text.output import Output


@asynccontextmanager
async def leasing(pod: Pod, exchange: Exchange, model: str) -> AsyncIterator[Leased]:
    """Hold the base model or an adapter for a request; the answer's headers name it.

    `name@revision` and the header mean the same revision.

    Raises:
        RequestError: it is unknown, has failed or does not come in time.
    """
    name, revision = split_model(model)
    asked = exchange.request.headers.get(HEADER_REVISION)
    if revision is not None and asked not in (None, revision):
        raise InvalidValue(f"{model!r} means another revision than the header {HEADER_REVISION}", param="model")
    async with await pod.manager.lease(name, revision if revision is not None else asked) as lease:
        exchange.headers.update(lease_headers(lease))
        own = await pod.text.templates.own(lease.key.digest if lease.key else None, lease.directory)
        vocabulary = vocabulary_of(pod.facts)
        ends = tuple(one for one in own.eos_token_ids if 0 <= one < vocabulary.num_outputs)
        yield Leased(pod.facts, vocabulary, pod.text, lease, ends)


class Answering(Generic[RequestT]):
    """Answers the requests of one route that generates."""

    def __init__(self, pod: Pod, surface: Surface[RequestT]) -> None:
        self._pod = pod
        self._surface = surface

    async def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request.

        Raises:
            RequestError: whatever keeps it from being answered.
        """
        arrived = time.perf_counter()
        pod, surface = self._pod, self._surface
        with pod.state.request():
            request = surface.parse(body)
            num_sequences = surface.num_prompts(request) * request.n
            with pod.admission.enter(split_model(request.model)[0], num_sequences) as waiting:
                async with leasing(pod, exchange, request.model) as leased:
                    await self._answer(exchange, request, leased, waiting, arrived)

    async def _answer(
        self, exchange: Exchange, request: RequestT, leased: Leased, waiting: Waiting, arrived: float
    ) -> None:
        pod, surface = self._pod, self._surface
        plans = self._plans(request, await surface.prompts(request, leased), leased)
        answer = Answer(f"{surface.id_prefix}-{uuid.uuid4().hex}", int(time.time()), request, leased.text.pieces)
        generation = Generation(pod.engine, waiting, answer.id, leased.lease.key, arrived)
        run = _Run(generation, plans, [self._output(request, leased) for _ in plans], surface.formatter(answer))
        if request.stream:
            await run.stream(exchange, include_usage=request.include_usage)
        else:
            await run.whole(exchange)

    def _plans(self, request: RequestT, prompts: Sequence[TokenIds], leased: Leased) -> list[ChoicePlan]:
        plans: list[ChoicePlan] = []
        for prompt in prompts:
            field = self._surface.prompt_field
            max_tokens = answer_length(len(prompt), request.max_new_tokens, leased.facts, prompt_field=field)
            for choice in range(request.n):
                sampling = request.sampling(max_tokens=max_tokens, choice=choice, eos_token_ids=leased.eos_token_ids)
                if choice == 0:
                    check_token_ids(prompt, sampling, leased.vocabulary, prompt_field=field)
                plans.append(ChoicePlan(len(plans), prompt, sampling, new_prompt=choice == 0))
        return plans

    def _output(self, request: RequestT, leased: Leased) -> Output:
        return Output(leased.text.detokenizer(strip_leading=self._surface.strip_leading), request.stops)


class _Run:
    """One request on the engine, and its way to the client."""

    def __init__(
        self, generation: Generation, plans: Sequence[ChoicePlan], outputs: Sequence[Output], formatter: Formatter
    ) -> None:
        self._generation = generation
        self._plans = plans
        self._outputs = outputs
        self._formatter = formatter
        self._num_prompt_tokens = sum(len(plan.prompt_token_ids) for plan in plans if plan.new_prompt)

    async def whole(self, exchange: Exchange) -> None:
        """Answer with one JSON document."""
        parts: list[list[ChoiceDelta]] = [[] for _ in self._plans]
        async with aclosing(self._generation.deltas(self._plans, self._outputs)) as batches:
            async for deltas in batches:
                for delta in deltas:
                    parts[delta.index].append(delta)
        usage = self._generation.usage(self._num_prompt_tokens)
        await exchange.respond(
            json_response(self._formatter.whole(self._choices(parts), usage), headers=exchange.headers)
        )

    def _choices(self, parts: Sequence[Sequence[ChoiceDelta]]) -> list[Choice]:
        choices, scored = [], None
        for plan, shown in zip(self._plans, parts, strict=True):
            if plan.new_prompt:
                scored = self._generation.prompt_logprobs.get(plan.index)
            finish = shown[-1].finish
            assert finish is not None, "the last delta of a choice says why it ended"
            text = "".join(delta.text for delta in shown)
            tokens = tuple(token for delta in shown for token in delta.tokens)
            choices.append(Choice(plan.index, plan.prompt_token_ids, text, tokens, finish, scored))
        return choices

    async def stream(self, exchange: Exchange, *, include_usage: bool) -> None:
        """Answer with server-sent events."""
        events = exchange.open_stream()
        async with aclosing(self._generation.deltas(self._plans, self._outputs)) as batches:
            async for deltas in batches:
                await events.send(event for delta in deltas for event in self._formatter.events(delta))
        if include_usage:
            await events.send((self._formatter.usage_event(self._generation.usage(self._num_prompt_tokens)),))
        await events.end()
