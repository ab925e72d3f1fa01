"""`POST /v1/chat/completions`."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import msgspec

from lorafleet_inference.config import ServerConfig
from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.errors import InvalidValue, UnsupportedParameter
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.logprobs import chat_logprobs, prompt_logprobs
from lorafleet_inference.server.parts import PartReader, Parts
from lorafleet_inference.server.requests import ChatRequest, parse_chat
from lorafleet_inference.server.structured import MAX_SCHEMA_CHARS, of_grammar
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Prompt, Surface
from lorafleet_inference.server.tools import NamedTool
from lorafleet_inference.server.wire import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    OptionalIds,
    Usage,
)
from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.output import ShownToken
from lorafleet_inference.text.reasoning import tags_of
from lorafleet_inference.text.tool_calls import NOTATIONS, Notation, notation_of

THREAD_MESSAGES = 512
"""More messages, and those that call tools, are made ready for the template in a thread."""
CHUNK: Final[Literal["chat.completion.chunk"]] = "chat.completion.chunk"


class Chat(Surface[ChatRequest]):
    """Messages in, the assistant's next message out."""

    path = "/v1/chat/completions"
    reads = ChatRequest
    writes = ChatCompletion
    streams_as = ChatChunk
    id_prefix = "chatcmpl"
    prompt_field = "messages"

    def __init__(self, config: ServerConfig, policy: FieldPolicy) -> None:
        self._takes_templates = config.request_chat_templates
        self._notation = config.tool_call_parser
        self._reasoning = config.reasoning_parser
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
        is_long = len(request.messages) > THREAD_MESSAGES or any(message.tool_calls for message in request.messages)
        asked = await asyncio.to_thread(self._asked, request) if is_long else self._asked(request)
        templates, lease = leased.templates, leased.lease
        if request.chat_template is not None:
            template = templates.of_request(request.chat_template)
        else:
            template = await templates.find(lease.key.digest if lease.key else None, lease.directory)
        parts = self._parts(request, template.source)
        text = await template.render(asked)
        if parts.tags is not None and text.rstrip().endswith(parts.tags.begin):
            parts = replace(parts, is_reasoning=True)
        grammar, special = request.grammar, _special(leased, parts)
        is_thinking = parts.tags is not None and parts.tags.begin in special  # such a token is no text to a grammar
        is_enforced = request.enforces_calls or not leased.has_own_tokens
        if parts.notation is not None and is_enforced and not is_thinking:
            grammar = self._tool_grammar(request, parts.notation, special)
        token_ids = await self.tokenised(text, request, leased)
        return [Prompt(token_ids, grammar=grammar, parts=parts, shows_special=bool(special))]

    def _asked(self, request: ChatRequest) -> Conversation:
        messages = (message.for_template(index, self._policy) for index, message in enumerate(request.messages))
        return Conversation(
            tuple(messages),
            request.opens_turn,
            request.continue_final_message,
            tuple(request.documents),
            request.variables,
            tuple(tool.for_template() for tool in request.offered),
        )

    def _parts(self, request: ChatRequest, template: str) -> Parts:
        """Return what the answer may have beside content.

        Raises:
            InvalidValue: there are tools, and no notation in which this model calls them.
        """
        notation = None
        if request.callable_tools:
            notation = notation_of(template) if self._notation == "auto" else NOTATIONS.get(self._notation)
            if notation is None:
                message = "no notation of tool calls is known of this model; --tool-call-parser names one"
                raise InvalidValue(message, param="tools")
        # a form that was asked for begins with the first token, and holds no tags
        is_free = self._reasoning == "auto" and request.form_field is None and not request.must_call
        tags = tags_of(template) if is_free else None
        return Parts(notation, tags, is_call_named=isinstance(request.tool_choice, NamedTool))

    def _tool_grammar(self, request: ChatRequest, notation: Notation, special: Mapping[str, int]) -> str:
        def literal(text: str) -> str:
            return f"<[{special[text]}]>" if text in special else json.dumps(text)

        grammar = request.tool_grammar(notation, literal)
        try:
            return of_grammar(grammar, MAX_SCHEMA_CHARS)
        except ValueError as error:
            raise InvalidValue(f"tools: {error}", param="tools") from None

    def form_field(self, request: ChatRequest) -> str | None:
        """Tools make a form too."""
        return "tools" if request.callable_tools else request.form_field

    def formatter(self, answer: Answer[ChatRequest]) -> Formatter:
        """Return who writes this answer."""
        return _ChatFormatter(answer)


def _special(leased: Leased, parts: Parts) -> dict[str, int]:
    """Return the markers of parts that are special tokens, with their ids."""
    markers = [] if parts.notation is None else [parts.notation.marker]
    markers += [] if parts.tags is None else [parts.tags.begin, parts.tags.end]
    ids = {marker: leased.text.special_id(marker) for marker in markers}
    return {text: one for text, one in ids.items() if one is not None and leased.text.pieces.is_special(one)}


class _ChatFormatter(Formatter):
    def __init__(self, answer: Answer[ChatRequest]) -> None:
        self._answer = answer
        self._readers: dict[int, PartReader] = {}
        """By choice, of those that have begun."""

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
        message, finish = answer.prompt_of(choice.index).parts.message(choice.text, choice.finish)
        of_prompt = prompt_logprobs(ids, choice.scored, answer.request.prompt_logprobs, answer.names.pieces)
        return ChatChoice(
            choice.index,
            message,
            self._logprobs(choice.tokens),
            finish,
            of_prompt,
            answer.token_ids(choice.token_ids),
        )

    def events(self, delta: ChoiceDelta, _: Sequence[TokenLogprobs] | None) -> Iterator[ChatChunk]:
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = self._answer.prompt_of(delta.index).parts.reader()
            opening = ChatChunkChoice(delta.index, ChatDelta(role="assistant", content=""))
            yield self._chunk(opening, delta, prompt_token_ids=self._answer.prompt_ids(delta.index))
        parts = [*reader.push(delta.text), *(reader.finish() if delta.finish else ())]
        first, *rest = reader.deltas(parts) or [ChatDelta(content="")]
        if parts or delta.tokens or delta.token_ids:
            logprobs, ids = self._logprobs(delta.tokens), self._answer.token_ids(delta.token_ids)
            yield self._chunk(ChatChunkChoice(delta.index, first, logprobs, token_ids=ids), delta)
        for one in rest:
            yield self._chunk(ChatChunkChoice(delta.index, one), delta)
        if delta.finish:
            finish = reader.finish_of(delta.finish)
            yield self._chunk(ChatChunkChoice(delta.index, ChatDelta(), finish_reason=finish), delta)

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
