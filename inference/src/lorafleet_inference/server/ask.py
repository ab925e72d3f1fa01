"""`POST /admin/v1/ask`: what a revision answers before any name leads to it, for whoever decides whether one should.

It is a request as others are, of the lowest priority, one at a time, and for nobody's key.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, Generic

import msgspec
from pydantic import ValidationError

from lorafleet_contract import admin
from lorafleet_contract.names import REVISION_MARK
from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.errors import (
    AdapterFailed,
    AdapterLoading,
    EngineNotReady,
    InvalidValue,
    ModelNotFound,
    OutputNotFinite,
    Overloaded,
    PodDraining,
    RequestError,
    RevisionNotFound,
)
from lorafleet_inference.server.admission import RETRY_SECONDS
from lorafleet_inference.server.answering import Answering
from lorafleet_inference.server.bodies import BodyRoom
from lorafleet_inference.server.chat import Chat
from lorafleet_inference.server.completions import Completions
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.http import Endpoint, Exchange
from lorafleet_inference.server.keys import as_nobody
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.requests import INT64, ChatRequest, CompletionRequest
from lorafleet_inference.server.surface import Answer, Choice, Formatter, RequestT
from lorafleet_inference.server.wire import Usage

PATH: Final = "/admin/v1/ask"
LAST: Final = INT64 - 1
"""Priority behind all others of the adapter."""
MAX_BODY_BYTES: Final = 16 * admin.MAX_ASK_MESSAGES * admin.MAX_ASK_CHARS
"""All that a request may say, each character escaped as JSON escapes it at worst."""
_LATER: Final = (ModelNotFound, RevisionNotFound, AdapterLoading, EngineNotReady, PodDraining, Overloaded)
"""What says nothing of the revision: it is not here yet, or the pod has no time."""
_ITS_FAULT: Final = (AdapterFailed, OutputNotFinite)


class Asked(msgspec.Struct, frozen=True, rename="camel"):
    """`admin.AskAnswer` as it is written."""

    text: str
    finish_reason: str
    num_tokens: int


class _Asked(Formatter, Generic[RequestT]):
    def __init__(self, answer: Answer[RequestT]) -> None:
        self._answer = answer

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Asked:
        choice = choices[0]
        message, finish = self._answer.prompt_of(choice.index).parts.message(choice.text, choice.finish)
        return Asked(message.content or "", finish, usage.completion_tokens)

    def events(self, _: ChoiceDelta, __: Sequence[TokenLogprobs] | None) -> Iterable[msgspec.Struct]:
        raise AssertionError("an answer to a question is never streamed")

    def usage_event(self, _: Usage) -> msgspec.Struct:
        raise AssertionError("an answer to a question is never streamed")


class _AskedChat(Chat):
    def formatter(self, answer: Answer[ChatRequest]) -> Formatter:
        return _Asked(answer)


class _AskedCompletions(Completions):
    def formatter(self, answer: Answer[CompletionRequest]) -> Formatter:
        return _Asked(answer)


class Asking:
    """Answers the route."""

    def __init__(self, pod: Pod) -> None:
        policy = FieldPolicy(ignore_unknown=False)
        self._pod = pod
        self._chat = Answering(pod, _AskedChat(pod.config, policy))
        self._completions = Answering(pod, _AskedCompletions(policy))
        self._is_busy = False

    async def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one question.

        Raises:
            RequestError: whatever keeps it from being answered.
        """
        asked = _read(body)
        if self._is_busy:
            raise Overloaded("another question is being answered", retry_after_seconds=RETRY_SECONDS)
        fields: dict[str, Any] = {
            "model": f"{asked.name}{REVISION_MARK}{asked.revision}",
            "max_tokens": asked.max_tokens,
            "temperature": 0,
            "priority": LAST,
        }
        self._is_busy = True
        try:
            with as_nobody(self._pod.guard, exchange.scope):
                if asked.messages is not None:
                    messages = [message.model_dump() for message in asked.messages]
                    await self._chat.handle(exchange, _written({**fields, "messages": messages}))
                else:
                    await self._completions.handle(exchange, _written({**fields, "prompt": asked.prompt}))
        finally:
            self._is_busy = False


def ask_endpoint(pod: Pod) -> Endpoint:
    """Return what serves the route."""
    room = BodyRoom(2 * MAX_BODY_BYTES)
    return Endpoint(Asking(pod).handle, max_body_bytes=MAX_BODY_BYTES, room=room, error_shape=_admin_error)


def _read(body: bytes) -> admin.AskRequest:
    try:
        return admin.AskRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise InvalidValue(f"{where}: {first['msg']}", param=where) from None


def _written(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def _admin_error(error: RequestError) -> tuple[int, bytes]:
    """Return an error as all of the admin port are."""
    if isinstance(error, _LATER):
        told = 503, admin.AdminError(reason=Reason.PENDING, message=error.message, retryable=True)
    elif isinstance(error, _ITS_FAULT):
        told = 422, admin.AdminError(reason=Reason.LOAD_FAILED, message=error.message)
    elif error.status < 500:
        told = 400, admin.AdminError(reason=Reason.BAD_REQUEST, message=error.message)
    else:
        told = 500, admin.AdminError(reason=Reason.LOAD_FAILED, message=error.message, retryable=True)
    return told[0], told[1].model_dump_json(by_alias=True).encode()
