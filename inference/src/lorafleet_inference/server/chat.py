"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence

from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.logprobs import chat_logprobs, prompt_logprobs
from lorafleet_inference.server.requests import ChatRequest, parse_chat
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Surface, TokenIds
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
from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.output import ShownToken


class Chat(Surface[ChatRequest]):
    """Messages in, the assistant's next message out."""

    id_prefix = "chatcmpl"
    prompt_field = "messages"
    strip_leading = True

    def parse(self, body: bytes) -> ChatRequest:
        """Read a request."""
        return parse_chat(body)

    def num_prompts(self, _: ChatRequest) -> int:
        """A conversation is one prompt."""
        return 1

    async def prompts(self, request: ChatRequest, leased: Leased) -> list[TokenIds]:
        """Render the chat template over the messages."""
        asked = Conversation(tuple(message.for_template(index) for index, message in enumerate(request.messages)))
        text, lease = leased.text, leased.lease
        template = await text.templates.find(lease.key.digest if lease.key else None, lease.directory)
        prompt = await template.render(asked)
        most = leased.facts.max_model_len
        return [await text.encode(prompt, add_special_tokens=False, max_tokens=most, field=self.prompt_field)]

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
            answer.id, answer.created, answer.request.model, [self._choice(one) for one in choices], usage
        )

    def _choice(self, choice: Choice) -> ChatChoice:
        of_prompt = prompt_logprobs(choice.prompt_token_ids, choice.scored, self._answer.pieces)
        return ChatChoice(
            choice.index, ChatMessage(choice.text), self._logprobs(choice.tokens), choice.finish, of_prompt
        )

    def events(self, delta: ChoiceDelta) -> Iterator[ChatChunk]:
        if delta.index not in self._opened:
            self._opened.add(delta.index)
            yield self._chunk(delta.index, ChatDelta(role="assistant", content=""))
        if delta.text or delta.tokens:
            yield self._chunk(delta.index, ChatDelta(content=delta.text), self._logprobs(delta.tokens))
        if delta.finish:
            yield self._chunk(delta.index, ChatDelta(), finish=delta.finish)

    def usage_event(self, usage: Usage) -> ChatChunk:
        answer = self._answer
        return ChatChunk(answer.id, answer.created, answer.request.model, [], "chat.completion.chunk", usage)

    def _chunk(
        self, index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None, finish: Finish | None = None
    ) -> ChatChunk:
        answer = self._answer
        choice = ChatChunkChoice(index, delta, logprobs, finish)
        return ChatChunk(answer.id, answer.created, answer.request.model, [choice], "chat.completion.chunk")

    def _logprobs(self, tokens: Sequence[ShownToken]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self._answer.pieces) if self._answer.request.logprobs else None
