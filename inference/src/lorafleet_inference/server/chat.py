"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from lorafleet_inference.config import ServerConfig
from lorafleet_inference.engine.messages import TokenLogprobs
from lorafleet_inference.errors import UnsupportedParameter
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.logprobs import chat_logprobs, prompt_logprobs
from lorafleet_inference.server.requests import ChatRequest, parse_chat
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Prompt, Surface
from lorafleet_inference.server.wire import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    OptionalIds,
    Usage,
)
from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.output import ShownToken

CHUNK: Final[Literal["chat.completion.chunk"]] = "chat.completion.chunk"


class Chat(Surface[ChatRequest]):
    """Messages in, the assistant's next message out."""

    path = "/v1/chat/completions"
    reads = ChatRequest
    id_prefix = "chatcmpl"
    prompt_field = "messages"

    def __init__(self, config: ServerConfig, policy: FieldPolicy) -> None:
        self._takes_templates = config.request_chat_templates
        self._policy = policy

    def parse(self, body: bytes) -> ChatRequest:
        """Read a request."""
        request = parse_chat(body, self._policy)
        self.check(request)
        return request

    def check(self, request: ChatRequest) -> None:
        """Look at what this pod allows.

        Raises:
            UnsupportedParameter: the request brings a template, and may not.
        """
        if request.chat_template is not None and not self._takes_templates:
            raise UnsupportedParameter(
                "requests bring no chat_template here; --request-chat-templates allows it", param="chat_template"
            )

    def num_prompts(self, _: ChatRequest) -> int:
        """A conversation is one prompt."""
        return 1

    def strip_leading(self, request: ChatRequest) -> bool:
        """A message stands by itself, unless it is the rest of one."""
        return not request.continue_final_message

    async def prompts(self, request: ChatRequest, leased: Leased) -> list[Prompt]:
        """Render the chat template over the messages."""
        messages = (message.for_template(index, self._policy) for index, message in enumerate(request.messages))
        asked = Conversation(
            tuple(messages),
            request.opens_turn,
            request.continue_final_message,
            tuple(request.documents),
            request.variables,
        )
        templates, lease = leased.text.templates, leased.lease
        if request.chat_template is not None:
            template = templates.of_request(request.chat_template)
        else:
            template = await templates.find(lease.key.digest if lease.key else None, lease.directory)
        token_ids = await self.tokenised(await template.render(asked), request, leased)
        return [Prompt(token_ids, grammar=request.grammar)]

    def formatter(self, answer: Answer[ChatRequest]) -> Formatter:
        """Return who writes this answer."""
        return _ChatFormatter(answer)


class _ChatFormatter(Formatter):
    def __init__(self, answer: Answer[ChatRequest]) -> None:
        self._answer = answer
        self._opened: set[int] = set()

    def whole(self, choices: Sequence[Choice], usage: Usage) -> ChatCompletion:
        answer = self._answer
        return ChatCompletion(
            answer.id,
            answer.created,
            answer.request.model,
            [self._choice(one) for one in choices],
            usage,
            prompt_token_ids=answer.prompt_ids(0),
        )

    def _choice(self, choice: Choice) -> ChatChoice:
        answer = self._answer
        ids = answer.prompt_of(choice.index).token_ids
        of_prompt = prompt_logprobs(ids, choice.scored, answer.request.prompt_logprobs, answer.names.pieces)
        return ChatChoice(
            choice.index,
            ChatMessage(choice.text),
            self._logprobs(choice.tokens),
            choice.finish,
            of_prompt,
            answer.token_ids(choice.token_ids),
        )

    def events(self, delta: ChoiceDelta, _: Sequence[TokenLogprobs] | None) -> Iterator[ChatChunk]:
        if delta.index not in self._opened:
            self._opened.add(delta.index)
            opening = ChatChunkChoice(delta.index, ChatDelta(role="assistant", content=""))
            yield self._chunk(opening, delta, prompt_token_ids=self._answer.prompt_ids(delta.index))
        if delta.text or delta.tokens or delta.token_ids:
            logprobs, ids = self._logprobs(delta.tokens), self._answer.token_ids(delta.token_ids)
            yield self._chunk(
                ChatChunkChoice(delta.index, ChatDelta(content=delta.text), logprobs, token_ids=ids), delta
            )
        if delta.finish:
            yield self._chunk(ChatChunkChoice(delta.index, ChatDelta(), finish_reason=delta.finish), delta)

    def usage_event(self, usage: Usage) -> ChatChunk:
        answer = self._answer
        return ChatChunk(answer.id, answer.created, answer.request.model, [], CHUNK, usage)

    def _chunk(
        self, choice: ChatChunkChoice, delta: ChoiceDelta, prompt_token_ids: OptionalIds = msgspec.UNSET
    ) -> ChatChunk:
        answer = self._answer
        return ChatChunk(
            answer.id, answer.created, answer.request.model, [choice], CHUNK, answer.usage(delta), prompt_token_ids
        )

    def _logprobs(self, tokens: Sequence[ShownToken]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self._answer.names) if self._answer.request.logprobs else None
