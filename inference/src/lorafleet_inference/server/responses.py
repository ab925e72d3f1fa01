"""`POST /v1/responses`: OpenAI's Responses API as far as nothing has to be kept between requests."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.errors import RequestError, UnsupportedParameter
from lorafleet_inference.server.chat import Chat
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.logprobs import chat_logprobs
from lorafleet_inference.server.reading import read_json, validated
from lorafleet_inference.server.requests import ChatRequest
from lorafleet_inference.server.responses_request import OF_CHATS, ResponsesRequest
from lorafleet_inference.server.responses_wire import (
    Event,
    Incomplete,
    Output,
    OutputCall,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    Response,
    ResponseUsage,
    Status,
)
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Prompt, Surface
from lorafleet_inference.server.wire import Finish, TokenLogprob, Usage
from lorafleet_inference.text.output import ShownToken
from lorafleet_inference.text.reasoning import Thought
from lorafleet_inference.text.tool_calls.parts import Argued, Called, Part, Said

REFUSED = {
    "previous_response_id": "responses are not kept: send the earlier items as input",
    "conversation": "conversations are not kept: send the earlier items as input",
    "prompt": "prompts are not kept: send instructions and input",
}


class AskedChat(ChatRequest):
    """The chat that a request asks for, with the request."""

    asked: ResponsesRequest

    @property
    def include_usage(self) -> bool:
        """The last event has it."""
        return True


class Responses(Surface[AskedChat]):
    """Items in, items out."""

    path = "/v1/responses"
    reads = ResponsesRequest
    writes = Response
    streams_as = Event
    names_events = True
    id_prefix = "resp"
    prompt_field = "input"

    def __init__(self, chat: Chat, policy: FieldPolicy) -> None:
        self._chat = chat
        self._policy = policy

    @classmethod
    def fields(cls) -> frozenset[str]:
        """Those of chats too, where they are not said in other words here."""
        own = {name for name in ResponsesRequest.model_fields if name not in ("store", "background")}
        return frozenset(own | OF_CHATS)

    def parse(self, body: bytes) -> AskedChat:
        """Read a request."""
        asked = read_json(ResponsesRequest, body)
        for name, message in REFUSED.items():
            if name in asked.others:
                raise UnsupportedParameter(message, param=name)
        fields, others = asked.chat()
        self._policy.judge(others)
        try:
            request = validated(AskedChat, {**fields, "asked": asked})
            self._chat.check(request)
        except RequestError as error:
            raise _renamed(error) from None
        return request

    def num_prompts(self, _: AskedChat) -> int:
        """The items are one conversation."""
        return 1

    def strip_leading(self, request: AskedChat) -> bool:
        """As of a chat."""
        return self._chat.strip_leading(request)

    def form_field(self, request: AskedChat) -> str | None:
        """The form stands in `text` here."""
        field = self._chat.form_field(request)
        return "text.format" if field == "response_format" else field

    async def prompts(self, request: AskedChat, leased: Leased) -> list[Prompt]:
        """As of a chat."""
        try:
            return await self._chat.prompts(request, leased)
        except RequestError as error:
            raise _renamed(error) from None

    def formatter(self, answer: Answer[AskedChat]) -> Formatter:
        """Return who writes this answer."""
        return _ResponseFormatter(answer)


def _renamed(error: RequestError) -> RequestError:
    """Name the field as this request has it."""
    if error.param is not None and error.param.partition("[")[0] == "messages":
        error.param = "input"
    if error.param == "response_format":
        error.param = "text.format"
    return error


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass(slots=True)
class _Open:
    """An item that is being written."""

    index: int
    id: str
    kind: type[Thought] | type[Said] | type[Called]
    text: str = ""
    """Its text, or its arguments."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    name: str = ""
    call_id: str = ""

    def item(self, status: Status) -> Output:
        """Return it as it is now."""
        is_new = status == "in_progress"
        if self.kind is Called:
            return OutputCall(self.id, self.call_id, self.name, self.text, status)
        if self.kind is Thought:
            return OutputReasoning(self.id, status, [] if is_new else [ReasoningText(self.text)])
        return OutputMessage(self.id, status, [] if is_new else [OutputText(self.text, self.logprobs)])


class _ResponseFormatter(Formatter):
    """Writes the items in the order in which the model writes them. The last event waits for the usage."""

    def __init__(self, answer: Answer[AskedChat]) -> None:
        self._answer = answer
        self._reader = answer.prompts[0].parts.reader()
        self._num_events = 0
        self._num_calls = 0
        self._open: _Open | None = None
        self._done: list[Output] = []
        self._finish: Finish = "stop"

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Response:
        (choice,) = choices
        for _ in self._written(choice.text, choice.tokens, choice.finish):
            pass  # the events are for nobody; the items stay
        return self._response(usage)

    def events(self, delta: ChoiceDelta, _: Sequence[TokenLogprobs] | None) -> Iterator[Event]:
        if self._num_events == 0:
            yield self._event("response.created", response=self._response())
            yield self._event("response.in_progress", response=self._response())
        yield from self._written(delta.text, delta.tokens, delta.finish)

    def usage_event(self, usage: Usage) -> Event:
        status = "incomplete" if self._finish == "length" else "completed"
        return self._event(f"response.{status}", response=self._response(usage))

    def _written(self, text: str, tokens: Sequence[ShownToken], finish: Finish | None) -> Iterator[Event]:
        logprobs = chat_logprobs(tokens, self._answer.names).content if self._answer.request.logprobs else []
        for part in (*self._reader.push(text), *(self._reader.finish() if finish is not None else ())):
            yield from self._part(part)
            if self._open is not None and self._open.kind is Said:
                self._open.logprobs += logprobs
                logprobs = []
        if finish is not None:
            self._finish = finish
            yield from self._close("incomplete" if finish == "length" else "completed")

    def _part(self, part: Thought | Part) -> Iterator[Event]:
        match part:
            case Called(index, name):
                yield from self._close("completed")
                self._open = self._opened("fc", Called, name=name, call_id=self._reader.call_id(index))
                yield self._event("response.output_item.added", item=self._open.item("in_progress"))
            case Argued(_, text) if self._open is not None:
                self._open.text += text
                yield self._event("response.function_call_arguments.delta", delta=text)
            case Said(text):
                yield from self._say(Said, "msg", text, "response.output_text.delta", OutputText(""))
            case Thought(text):
                yield from self._say(Thought, "rs", text, "response.reasoning_text.delta", ReasoningText(""))

    def _say(
        self, kind: type[Thought] | type[Said], prefix: str, text: str, event: str, empty: OutputText | ReasoningText
    ) -> Iterator[Event]:
        if self._open is None or self._open.kind is not kind:
            yield from self._close("completed")
            self._open = self._opened(prefix, kind)
            yield self._event("response.output_item.added", item=self._open.item("in_progress"))
            yield self._event("response.content_part.added", content_index=0, part=empty)
        self._open.text += text
        told: dict[str, Any] = {"logprobs": []} if kind is Said else {}
        yield self._event(event, content_index=0, delta=text, **told)

    def _opened(self, prefix: str, kind: type[Thought] | type[Said] | type[Called], **known: Any) -> _Open:
        return _Open(len(self._done), _new_id(prefix), kind, **known)

    def _close(self, status: Status) -> Iterator[Event]:
        """End the item that is being written."""
        opened = self._open
        if opened is None:
            return
        item = opened.item(status)
        match item:
            case OutputCall():
                done = {"name": item.name, "arguments": item.arguments}
                yield self._event("response.function_call_arguments.done", **done)
            case OutputReasoning():
                yield self._event("response.reasoning_text.done", content_index=0, text=opened.text)
                yield self._event("response.content_part.done", content_index=0, part=item.content[0])
            case OutputMessage():
                told: dict[str, Any] = {"content_index": 0, "text": opened.text, "logprobs": opened.logprobs}
                yield self._event("response.output_text.done", **told)
                yield self._event("response.content_part.done", content_index=0, part=item.content[0])
        yield self._event("response.output_item.done", item=item)
        self._done.append(item)
        self._open = None

    def _event(self, kind: str, **fields: Any) -> Event:
        opened = self._open
        if "response" not in fields and opened is not None:
            fields["output_index"] = opened.index
            if "item" not in fields:
                fields["item_id"] = opened.id
        self._num_events += 1
        return Event(kind, self._num_events - 1, **fields)

    def _response(self, usage: Usage | None = None) -> Response:
        answer, request, asked = self._answer, self._answer.request, self._answer.request.asked
        status: Status = "in_progress" if usage is None else "incomplete" if self._finish == "length" else "completed"
        return Response(
            id=answer.id,
            created_at=answer.created,
            model=request.model,
            status=status,
            output=list(self._done) if usage is not None else [],
            usage=None if usage is None else _usage(usage),
            incomplete_details=Incomplete() if status == "incomplete" else None,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata,
            parallel_tool_calls=asked.parallel_tool_calls,
            reasoning={"effort": asked.reasoning.effort, "summary": None},
            temperature=request.temperature,
            text=asked.text.model_dump(mode="json", by_alias=True, exclude_none=True),
            tool_choice=asked.tool_choice if isinstance(asked.tool_choice, str) else asked.tool_choice.model_dump(),
            tools=[tool.model_dump(mode="json") for tool in asked.tools],
            top_logprobs=asked.top_logprobs,
            top_p=request.top_p,
            truncation=asked.truncation,
        )


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(usage.prompt_tokens, usage.prompt_tokens_details, usage.completion_tokens, usage.total_tokens)
