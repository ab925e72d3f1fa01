"""Runs a request, the same way on every route: admission, lease, prompt, submit, collect or stream, end."""

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from starlette.responses import Response

from lorafleet_contract.usage import HEADER_USAGE, usage_comment, usage_text
from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.admission import Waiting
from lorafleet_inference.server.answer_room import AnswerShare
from lorafleet_inference.server.generation import ChoiceDelta, ChoicePlan, Generation
from lorafleet_inference.server.http import Exchange, Headers, json_response
from lorafleet_inference.server.keys import as_errors, grant_of, spending
from lorafleet_inference.server.leasing import lease_for
from lorafleet_inference.server.logprobs import TokenNames
from lorafleet_inference.server.pod import Pod, answer_length, check_token_ids
from lorafleet_inference.server.sampling import bad_word_ids, check_drafts, sampling_of
from lorafleet_inference.server.spans import tell_answer, tell_request
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Prompt, RequestT, Surface, TokenIds
from lorafleet_inference.server.wire import Usage
from lorafleet_inference.text.output import Output

THREAD_LOG_PROBABILITIES = 512
"""Answers with those of more positions are written in a thread."""
THREAD_CHARS = 4096
"""So are texts of more characters in which calls of tools or reasoning are looked for: some 5 ms."""


@dataclass(frozen=True, slots=True)
class _Admitted:
    """What a request has of what all share."""

    waiting: Waiting
    room: AnswerShare
    arrived: float


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
            request = await pod.readers.read(surface.parse, body)
            check_drafts(request, pod.config.engine.speculative_tokens)
            num_sequences = surface.num_prompts(request) * request.num_sequences
            tell_request(exchange.scope, request)
            name, lease = lease_for(pod, exchange, request, model_field=surface.model_field)
            with pod.admission.enter(name, num_sequences) as waiting:
                async with lease as leased, pod.answer_room.share() as room:
                    await self._answer(exchange, request, leased, _Admitted(waiting, room, arrived))

    async def _answer(self, exchange: Exchange, request: RequestT, leased: Leased, admitted: _Admitted) -> None:
        pod, surface = self._pod, self._surface
        prompts = await surface.prompts(request, leased)
        plans = await self._plans(request, prompts, leased)
        names = TokenNames(leased.text.pieces, as_ids=request.return_tokens_as_token_ids)
        answer = Answer(f"{surface.id_prefix}-{uuid.uuid4().hex}", int(time.time()), request, names, prompts, leased)
        generation = Generation(
            pod.engine,
            admitted.waiting,
            answer.id,
            leased.lease.key,
            admitted.arrived,
            room=admitted.room,
            count=leased.lease.count,
        )
        shows_special = any(prompt.shows_special for prompt in prompts)
        outputs = [self._output(request, leased, shows_special=shows_special) for _ in plans]
        num_ranked = request.n if request.is_ranked else None
        run = _Run(
            generation,
            plans,
            outputs,
            surface.formatter(answer),
            num_ranked=num_ranked,
            has_parts=any(prompt.parts for prompt in prompts),
        )
        grant = grant_of(exchange.scope)
        with as_errors():
            grant.reserve(run.num_prompt_tokens + len(plans) * (request.max_new_tokens or 0))
        with spending(grant, generation, run.num_prompt_tokens):
            try:
                if request.stream:
                    await run.stream(exchange, surface, include_usage=request.include_usage)
                else:
                    await run.whole(exchange)
            finally:
                tell_answer(exchange.scope, answer.id, generation, run.num_prompt_tokens)

    async def _plans(self, request: RequestT, prompts: Sequence[Prompt], leased: Leased) -> list[ChoicePlan]:
        field, plans = self._surface.prompt_field, list[ChoicePlan]()
        bad_words = await bad_word_ids(request.bad_words, partial(_encode_word, leased)) if request.bad_words else ()
        for prompt in prompts:
            self._check_form(request, prompt, leased)
            ids = prompt.token_ids
            max_tokens = answer_length(len(ids), request.max_new_tokens, leased.facts, prompt_field=field)
            for choice in range(request.num_sequences):
                sampling = sampling_of(
                    request,
                    max_tokens=max_tokens,
                    choice=choice,
                    eos_token_ids=(*leased.eos_token_ids, *prompt.eos_token_ids),
                    bad_words=bad_words,
                    grammar=prompt.grammar,
                )
                is_first = choice == 0
                if is_first:
                    check_token_ids(ids, sampling, leased.vocabulary, prompt_field=field)
                plans.append(
                    ChoicePlan(
                        len(plans),
                        ids,
                        sampling,
                        request.priority,
                        request.cache_salt,
                        is_first,
                        form_field=self._surface.form_field(request),
                    )
                )
        return plans

    def _check_form(self, request: RequestT, prompt: Prompt, leased: Leased) -> None:
        if prompt.grammar is not None and leased.has_own_tokens:
            raise InvalidValue(
                "the adapter has a tokenizer of its own, and forms of answers are enforced on the base's tokens only",
                param=self._surface.form_field(request),
            )

    def _output(self, request: RequestT, leased: Leased, *, shows_special: bool) -> Output:
        """The one place where it is decided how the tokens of a choice become its text."""
        detokenizer = leased.text.detokenizer(
            strip_leading=self._surface.strip_leading(request),
            skip_special=request.skip_special_tokens and not shows_special,
            space_special=request.spaces_between_special_tokens,
        )
        return Output(
            detokenizer,
            request.stops,
            show_stop=request.include_stop_str_in_output,
            show_ids=request.return_token_ids,
        )


async def _encode_word(leased: Leased, word: str) -> TokenIds:
    most = leased.facts.max_model_len
    return await leased.text.encode(word, add_special_tokens=False, max_tokens=most, field="bad_words")


class _Run:
    """One request on the engine, and its way to the client."""

    def __init__(
        self,
        generation: Generation,
        plans: Sequence[ChoicePlan],
        outputs: Sequence[Output],
        formatter: Formatter,
        *,
        num_ranked: int | None,
        has_parts: bool,
    ) -> None:
        """What is to be run.

        `num_ranked`: so many choices of each prompt are shown, the best ones first; None: all, as they were asked.
        `has_parts`: the formatter looks for calls of tools, or reasoning, in the text.
        """
        self._generation = generation
        self._plans = plans
        self._outputs = outputs
        self._formatter = formatter
        self._num_ranked = num_ranked
        self._has_parts = has_parts
        self.num_prompt_tokens = sum(len(plan.prompt_token_ids) for plan in plans if plan.new_prompt)

    async def whole(self, exchange: Exchange) -> None:
        """Answer with one JSON document."""
        parts: list[list[ChoiceDelta]] = [[] for _ in self._plans]
        async with aclosing(self._generation.deltas(self._plans, self._outputs)) as batches:
            async for deltas in batches:
                for delta in deltas:
                    parts[delta.index].append(delta)
        usage = self._generation.usage(self.num_prompt_tokens)
        if exchange.asks_usage:
            exchange.headers[HEADER_USAGE] = usage_text(usage.prompt_tokens, usage.completion_tokens)
        is_long = self._num_log_probabilities(parts) > THREAD_LOG_PROBABILITIES
        if is_long or self._is_long_to_read(delta for shown in parts for delta in shown):
            response = await asyncio.to_thread(self._response, parts, usage, exchange.headers)
        else:
            response = self._response(parts, usage, exchange.headers)
        await exchange.respond_until_taken(response)

    def _num_log_probabilities(self, parts: Sequence[Sequence[ChoiceDelta]]) -> int:
        """Positions of which log-probabilities are written."""
        of_prompts = sum(map(len, self._generation.prompt_logprobs.values()))
        return of_prompts + sum(len(delta.tokens) for shown in parts for delta in shown)

    def _is_long_to_read(self, deltas: Iterable[ChoiceDelta]) -> bool:
        """Whether to find the parts in what choices add takes so long that others' streams would wait for it."""
        return self._has_parts and sum(len(delta.text) for delta in deltas) > THREAD_CHARS

    def _response(self, parts: Sequence[Sequence[ChoiceDelta]], usage: Usage, headers: Headers) -> Response:
        choices: list[Choice] = []
        for first in (plan.index for plan in self._plans if plan.new_prompt):
            scored = self._generation.prompt_logprobs.get(first)
            begin = len(choices)
            choices += [self._choice(begin + rank, parts[one], scored) for rank, one in enumerate(self._best(first))]
        own = self._formatter.headers(choices, self._generation.timing)
        return json_response(self._formatter.whole(choices, usage), headers={**headers, **own})

    def _best(self, first: int) -> list[int]:
        """Return which choices of a prompt, whose first one is given, are shown: in their order, or the best ones first."""
        every = range(first, first + self._num_of_prompt)
        if self._num_ranked is None:
            return list(every)
        scores = self._generation.scores
        return sorted(every, key=lambda index: -scores[index].mean)[: self._num_ranked]

    @property
    def _num_of_prompt(self) -> int:
        return len(self._plans) // sum(plan.new_prompt for plan in self._plans)

    def _choice(self, index: int, shown: Sequence[ChoiceDelta], scored: tuple[TokenLogprobs, ...] | None) -> Choice:
        finish = shown[-1].finish
        assert finish is not None, "the last delta of a choice says why it ended"
        return Choice(
            index,
            "".join(delta.text for delta in shown),
            tuple(token for delta in shown for token in delta.tokens),
            finish,
            tuple(token_id for delta in shown for token_id in delta.token_ids),
            scored,
            shown[-1],
        )

    async def stream(self, exchange: Exchange, surface: Surface[Any], *, include_usage: bool) -> None:
        """Answer with server-sent events."""
        exchange.headers.update(self._formatter.headers(None, self._generation.timing))
        events = exchange.open_stream(names_events=surface.names_events)
        scored, opened = self._generation.prompt_logprobs, set[int]()
        async with aclosing(self._generation.deltas(self._plans, self._outputs)) as batches:
            async for deltas in batches:
                bodies = (event for delta in deltas for event in self._formatter.events(delta, scored.get(delta.index)))
                first = {delta.index for delta in deltas} - opened
                opened |= first
                is_long = sum(len(scored.get(index, ())) for index in first) > THREAD_LOG_PROBABILITIES
                if is_long or self._is_long_to_read(deltas):
                    await events.raw(await asyncio.to_thread(events.written, bodies))
                else:
                    await events.send(bodies)
                self._generation.sent(deltas)
        usage = self._generation.usage(self.num_prompt_tokens)
        if exchange.asks_usage:
            await events.raw(usage_comment(usage.prompt_tokens, usage.completion_tokens))
        if include_usage:
            await events.send((self._formatter.usage_event(usage),))
        await events.end(None if surface.tells_done else b"")
