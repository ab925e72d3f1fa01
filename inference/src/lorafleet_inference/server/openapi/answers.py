"""Answers of an operation: its own, and errors in the form of the API that was asked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from inspect import cleandoc
from typing import Any, Final

from lorafleet_common.keys.quota import LIMIT_HEADERS
from lorafleet_contract.lorax import LoraxError, lorax_answer
from lorafleet_contract.names import HEADER_ADAPTER, HEADER_POD, HEADER_REVISION
from lorafleet_contract.openai import ErrorAnswer, ErrorCode
from lorafleet_inference.errors import RateLimited, RequestError, Unauthorized
from lorafleet_inference.server.connections import REFUSALS
from lorafleet_inference.server.http import UNBUFFERED, PayloadTooLarge, UnsupportedEncoding
from lorafleet_inference.server.middleware import REQUEST_ID
from lorafleet_inference.server.openapi.operations import Form, Operation, Stream
from lorafleet_inference.server.openapi.schemas import Components

Schema = dict[str, Any]
JSON: Final = "application/json"
SSE: Final = "text/event-stream"
DONE: Final = "[DONE]"
BODIES: Final[Mapping[Form, type]] = {"OpenAI": ErrorAnswer, "LoRAX": LoraxError}
HEADERS: Final[Mapping[str, str]] = {
    REQUEST_ID: "The client's, if it sent one of up to 128 printable characters, else a new one.",
    HEADER_POD: "The pod that answered.",
    HEADER_ADAPTER: "Served name of the adapter that answered; absent for the base.",
    HEADER_REVISION: "Its revision; absent for the base.",
    "retry-after": "Seconds after which to come back.",
    "www-authenticate": "How a key is sent, and what was wrong with this one.",
    UNBUFFERED: "`no`, of streams: proxies pass events on as they come.",
    "allow": "Methods that the path takes.",
    **dict.fromkeys(LIMIT_HEADERS, "Of the request's key, where it has such a limit, in OpenAI's form."),
}
_ALWAYS: Final = (REQUEST_ID, HEADER_POD)
"""Of what is answered at all, not of a connection that is refused."""
_ADAPTER: Final = (HEADER_ADAPTER, HEADER_REVISION)
_OF_STATUS: Final = {401: ("www-authenticate",), 405: ("allow",), 429: ("retry-after",), 503: ("retry-after",)}


@dataclass(frozen=True, slots=True)
class ErrorCase:
    """One way in which a request ends other than well."""

    form: Form
    status: int
    code: str | None
    meaning: str


Cases = Callable[[Operation], Sequence[ErrorCase]]
NOWHERE: Final = (
    ErrorCase("OpenAI", 404, None, "There is no such path."),
    ErrorCase("OpenAI", 405, None, "The path does not take this method."),
)
"""Of no operation, therefore."""


class Answers:
    """Describes answers, and gathers what operations have in common."""

    def __init__(self, schemas: Components) -> None:
        self._schemas = schemas
        self._shared: dict[str, list[ErrorCase]] = {}

    def of(self, operation: Operation, cases: Sequence[ErrorCase]) -> Schema:
        """Return `responses` of an operation, by status."""
        found: dict[int, list[ErrorCase]] = {}
        for case in sorted(cases, key=lambda one: (one.status, one.form != "OpenAI", one.code or "", one.meaning)):
            found.setdefault(case.status, []).append(case)
        if operation.fails is not None:
            found.setdefault(503, [])
        if operation.method == "head":
            whole = {
                200: self._success(operation),
                **{status: self._error(of_status) for status, of_status in found.items()},
            }
            return {str(status): {**whole[status], "content": {}} for status in sorted(whole)}
        answers = {status: self._share(status, of_status) for status, of_status in found.items()}
        if operation.fails is not None:
            answers[503] = self._failing(operation.fails, found[503])
        answers[200] = self._success(operation)
        return {str(status): answer for status, answer in sorted(answers.items())}

    def shared(self) -> Schema:
        """Return what was referred to."""
        headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()}
        for case in NOWHERE:
            self._share(case.status, [case])
        answers = {name: self._error(cases) for name, cases in sorted(self._shared.items())}
        return {"headers": headers, "responses": answers}

    def _share(self, status: int, cases: Sequence[ErrorCase]) -> Schema:
        """Refer to what all answers of a status and of the same forms share; it tells the reasons of all."""
        name = "Or".join(dict.fromkeys(case.form for case in cases)) + str(status)
        known = self._shared.setdefault(name, [])
        known += [case for case in cases if case not in known]
        return {"$ref": f"#/components/responses/{name}"}

    def _error(self, cases: Sequence[ErrorCase]) -> Schema:
        told = dict.fromkeys(f"`{case.code}`: {case.meaning}" if case.code else case.meaning for case in cases)
        body = _either([self._schemas.of(BODIES[form]) for form in dict.fromkeys(case.form for case in cases)])
        names = (*_ALWAYS, *_ADAPTER, *LIMIT_HEADERS, *_OF_STATUS.get(cases[0].status, ()))
        return {"description": " ".join(told), "headers": _headers(names), "content": {JSON: {"schema": body}}}

    def _failing(self, fails: tuple[Any, ...], cases: Sequence[ErrorCase]) -> Schema:
        """Return the 503 that is what was asked for, or an error."""
        answer = self._error(cases)
        schema = _either([*(self._schemas.of(kind) for kind in fails), answer["content"][JSON]["schema"]])
        return {**answer, "description": "It is not. " + answer["description"], "content": {JSON: {"schema": schema}}}

    def _success(self, operation: Operation) -> Schema:
        content: Schema = {}
        if operation.answers:
            content[JSON] = {"schema": _either([self._schemas.of(kind) for kind in operation.answers])}
        if operation.media_type is not None:
            content[operation.media_type] = {"schema": {"type": "string"}}
        if operation.stream is not None:
            content[SSE] = self._stream(operation.forms[0], operation.stream)
        names = [*_ALWAYS, *(_ADAPTER if operation.leases else ()), *(LIMIT_HEADERS if operation.has_limits else ())]
        names += [UNBUFFERED] if operation.stream is not None else []
        headers = _headers(names) | {name: {"schema": {"type": "string"}} for name in operation.headers}
        return {"description": HTTPStatus.OK.phrase, "headers": headers, **({"content": content} if content else {})}

    def _stream(self, form: Form, stream: Stream) -> Schema:
        """Describe one event, as documents of OpenAPI before 3.2 do."""
        body = _either([self._schemas.of(stream.event), self._schemas.of(BODIES[form])])
        data: Schema = {"type": "string", "contentMediaType": JSON, "contentSchema": body}
        end = "The last one ends the stream."
        if stream.tells_done:
            data, end = {"anyOf": [{"const": DONE}, data]}, f"`{DONE}` is the data of the last one."
        text = f"A server-sent event. {end} An error after the first one is an event `error`, and ends the stream."
        properties = {"event": {"type": "string"}, "data": data}
        return {"schema": {"type": "object", "description": text, "properties": properties, "required": ["data"]}}


def cases_of(operation: Operation) -> list[ErrorCase]:
    """Return how requests of an operation may end at a pod other than well."""
    kinds: set[type[RequestError]] = {RequestError, *operation.errors}
    if not operation.is_open:
        kinds |= {Unauthorized, RateLimited} if operation.has_limits else {Unauthorized}
    if operation.takes:
        kinds |= {PayloadTooLarge, UnsupportedEncoding}
    refused = [ErrorCase("OpenAI", status, one.code, one.meaning) for status, one in REFUSALS.items()]
    return [*(case_of(form, kind, kind.status, kind.code) for form in operation.forms for kind in kinds), *refused]


def case_of(form: Form, kind: type, status: int, code: ErrorCode | None) -> ErrorCase:
    """Return how an error is answered that has a status and a code in OpenAI's API."""
    if form == "LoRAX":
        status, _ = lorax_answer("", status=status, code=code, param=None)
    return ErrorCase(form, status, code, cleandoc(kind.__doc__ or "").partition("\n")[0])


def _either(schemas: Sequence[Schema]) -> Schema:
    different = [one for number, one in enumerate(schemas) if one not in schemas[:number]]
    return different[0] if len(different) == 1 else {"anyOf": different}


def _headers(names: Iterable[str]) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
