"""`POST /v1/chat/completions`."""

import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing

from lorafleet_contract.names import HEADER_REVISION
from lorafleet_inference.server.generation import ChoiceDelta, ChoicePlan, Generation
from lorafleet_inference.server.http import Exchange, json_response
from lorafleet_inference.server.logprobs import chat_logprobs, prompt_logprobs
from lorafleet_inference.server.pod import Pod, answer_length, check_token_ids, lease_headers
from lorafleet_inference.server.requests import ChatRequest, parse_chat
from lorafleet_inference.server.wire import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Finish,
    Usage,
)
from lorafleet_inference.text.output import Output, ShownToken


class Chat:
    """Handles chat requests of one pod."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    async def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request.

        Raises:
            RequestError: whatever keeps it from being answered.
        """
        arrived = time.perf_counter()
        with self._pod.state.request():
            request = parse_chat(body)
            messages = [message.for_template(index) for index, message in enumerate(request.messages)]
            revision = exchange.request.headers.get(HEADER_REVISION)
            async with await self._pod.manager.lease(request.model, revision) as lease:
                exchange.headers.update(lease_headers(lease))
                text = self._pod.text
                template = await text.templates.find(lease.key.digest if lease.key else None, lease.directory)
                prompt = await text.encode(template.render(messages), add_special_tokens=False)
                answer = _Answer(self._pod, request, len(prompt))
                generation = Generation(self._pod.engine, self._pod.admission, answer.id, lease.key, arrived)
                if request.stream:
                    await answer.stream(exchange, generation, self._plans(request, prompt))
                else:
                    await answer.whole(exchange, generation, self._plans(request, prompt))

    def _plans(self, request: ChatRequest, prompt: tuple[int, ...]) -> list[ChoicePlan]:
        facts = self._pod.facts
        for field, token_ids in request.token_ids.items():
            check_token_ids(token_ids, facts, field=field)
        max_tokens = answer_length(len(prompt), request.max_new_tokens, facts, prompt_field="messages")
        return [
            ChoicePlan(index, prompt, request.sampling(max_tokens=max_tokens, choice=index), new_prompt=index == 0)
            for index in range(request.n)
        ]


class _Answer:
    """The answer to one request."""

    def __init__(self, pod: Pod, request: ChatRequest, num_prompt_tokens: int) -> None:
        self._pod = pod
        self._request = request
        self._num_prompt_tokens = num_prompt_tokens
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def _outputs(self) -> list[Output]:
        detokenizer = self._pod.text.detokenizer
        return [Output(detokenizer(strip_leading=True), self._request.stops) for _ in range(self._request.n)]

    def _logprobs(self, tokens: Sequence[ShownToken]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self._pod.text.pieces) if self._request.logprobs else None

    async def whole(self, exchange: Exchange, generation: Generation, plans: Sequence[ChoicePlan]) -> None:
        """Answer with one JSON document."""
        parts: list[list[ChoiceDelta]] = [[] for _ in plans]
        async with aclosing(generation.deltas(plans, self._outputs())) as deltas:
            async for delta in deltas:
                parts[delta.index].append(delta)
        choices = []
        for index, shown in enumerate(parts):
            finish = shown[-1].finish
            assert finish is not None, "the last delta of a choice says why it ended"
            tokens = [token for delta in shown for token in delta.tokens]
            message = ChatMessage("".join(delta.text for delta in shown))
            scored = generation.prompt_logprobs.get(0)
            of_prompt = prompt_logprobs(plans[index].prompt_token_ids, scored, self._pod.text.pieces)
            choices.append(ChatChoice(index, message, self._logprobs(tokens), finish, of_prompt))
        usage = generation.usage(self._num_prompt_tokens)
        body = ChatCompletion(self.id, self._created, self._request.model, choices, usage)
        await exchange.respond(json_response(body, headers=exchange.headers))

    async def stream(self, exchange: Exchange, generation: Generation, plans: Sequence[ChoicePlan]) -> None:
        """Answer with server-sent events."""
        events = exchange.open_stream()
        opened: set[int] = set()
        async with aclosing(generation.deltas(plans, self._outputs())) as deltas:
            async for delta in deltas:
                if delta.index not in opened:
                    opened.add(delta.index)
                    await events.event(self._chunk(delta.index, ChatDelta(role="assistant", content="")))
                if delta.text or delta.tokens:
                    logprobs = self._logprobs(delta.tokens)
                    await events.event(self._chunk(delta.index, ChatDelta(content=delta.text), logprobs))
                if delta.finish:
                    await events.event(self._chunk(delta.index, ChatDelta(), finish=delta.finish))
        if self._request.include_usage:
            await events.event(self._usage_chunk(generation.usage(self._num_prompt_tokens)))
        await events.end()

    def _chunk(
        self, index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None, finish: Finish | None = None
    ) -> ChatChunk:
        choice = ChatChunkChoice(index, delta, logprobs, finish)
        return ChatChunk(self.id, self._created, self._request.model, [choice], "chat.completion.chunk")

    def _usage_chunk(self, usage: Usage) -> ChatChunk:
        return ChatChunk(self.id, self._created, self._request.model, [], "chat.completion.chunk", usage)
