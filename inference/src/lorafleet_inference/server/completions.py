"""`POST /v1/completions`."""

import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing

from lorafleet_contract.names import HEADER_REVISION
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.generation import ChoiceDelta, ChoicePlan, Generation
from lorafleet_inference.server.http import Exchange, json_response
from lorafleet_inference.server.logprobs import completion_logprobs, prompt_logprobs
from lorafleet_inference.server.pod import Pod, answer_length, check_token_ids, lease_headers
from lorafleet_inference.server.requests import MAX_CHOICES, CompletionRequest, parse_completion
from lorafleet_inference.server.wire import Completion, CompletionChoice, CompletionLogprobs
from lorafleet_inference.text.output import Output, ShownToken


class Completions:
    """Handles completion requests of one pod."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    async def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request.

        Raises:
            RequestError: whatever keeps it from being answered.
        """
        arrived = time.perf_counter()
        with self._pod.state.request():
            request = parse_completion(body)
            if len(request.prompts) * request.n > MAX_CHOICES:
                raise InvalidValue(f"prompts times n are at most {MAX_CHOICES}", param="n")
            revision = exchange.request.headers.get(HEADER_REVISION)
            async with await self._pod.manager.lease(request.model, revision) as lease:
                exchange.headers.update(lease_headers(lease))
                prompts = [await self._encode(prompt) for prompt in request.prompts]
                answer = _Answer(self._pod, request, sum(map(len, prompts)))
                generation = Generation(self._pod.engine, self._pod.admission, answer.id, lease.key, arrived)
                if request.stream:
                    await answer.stream(exchange, generation, self._plans(request, prompts))
                else:
                    await answer.whole(exchange, generation, self._plans(request, prompts))

    async def _encode(self, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return await self._pod.text.encode(prompt, add_special_tokens=True)
        check_token_ids(prompt, self._pod.facts, field="prompt")
        return tuple(prompt)

    def _plans(self, request: CompletionRequest, prompts: Sequence[tuple[int, ...]]) -> list[ChoicePlan]:
        facts = self._pod.facts
        for field, token_ids in request.token_ids.items():
            check_token_ids(token_ids, facts, field=field)
        plans: list[ChoicePlan] = []
        for prompt in prompts:
            max_tokens = answer_length(len(prompt), request.max_new_tokens, facts, prompt_field="prompt")
            for choice in range(request.n):
                sampling = request.sampling(max_tokens=max_tokens, choice=choice)
                plans.append(ChoicePlan(len(plans), prompt, sampling, new_prompt=choice == 0))
        return plans


class _Answer:
    """The answer to one request."""

    def __init__(self, pod: Pod, request: CompletionRequest, num_prompt_tokens: int) -> None:
        self._pod = pod
        self._request = request
        self._num_prompt_tokens = num_prompt_tokens
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def _outputs(self, plans: Sequence[ChoicePlan]) -> list[Output]:
        detokenizer = self._pod.text.detokenizer
        return [Output(detokenizer(strip_leading=False), self._request.stops) for _ in plans]

    def _logprobs(self, tokens: Sequence[ShownToken]) -> CompletionLogprobs | None:
        return completion_logprobs(tokens, self._pod.text.pieces) if self._request.logprobs is not None else None

    async def whole(self, exchange: Exchange, generation: Generation, plans: Sequence[ChoicePlan]) -> None:
        """Answer with one JSON document."""
        parts: list[list[ChoiceDelta]] = [[] for _ in plans]
        async with aclosing(generation.deltas(plans, self._outputs(plans))) as deltas:
            async for delta in deltas:
                parts[delta.index].append(delta)
        choices = []
        for index, shown in enumerate(parts):
            tokens = [token for delta in shown for token in delta.tokens]
            text = "".join(delta.text for delta in shown)
            first = index - index % self._request.n
            scored = generation.prompt_logprobs.get(first)
            of_prompt = prompt_logprobs(plans[index].prompt_token_ids, scored, self._pod.text.pieces)
            choices.append(CompletionChoice(index, text, self._logprobs(tokens), shown[-1].finish, of_prompt))
        usage = generation.usage(self._num_prompt_tokens)
        body = Completion(self.id, self._created, self._request.model, choices, "text_completion", usage)
        await exchange.respond(json_response(body, headers=exchange.headers))

    async def stream(self, exchange: Exchange, generation: Generation, plans: Sequence[ChoicePlan]) -> None:
        """Answer with server-sent events."""
        events = exchange.open_stream()
        async with aclosing(generation.deltas(plans, self._outputs(plans))) as deltas:
            async for delta in deltas:
                logprobs = self._logprobs(delta.tokens) if delta.tokens else None
                await events.event(self._chunk([CompletionChoice(delta.index, delta.text, logprobs, delta.finish)]))
        if self._request.include_usage:
            usage = generation.usage(self._num_prompt_tokens)
            await events.event(Completion(self.id, self._created, self._request.model, [], "text_completion", usage))
        await events.end()

    def _chunk(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(self.id, self._created, self._request.model, choices, "text_completion")
