"""A body of JSON becomes what a route wants of it, or an error that names the field as its client writes it."""

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lorafleet_common.json_values import TooManyValues, check_num_values
from lorafleet_inference.errors import InvalidValue, RequestError
from lorafleet_inference.server.bodies import FREE_BYTES

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Some editors on Windows begin a file with it."""
_NAMED = re.compile(r"^([a-z_]+)\b")
AT_ONCE_BYTES = 4 << 10
"""Bodies up to this size are read by the event loop, in less time than it takes to have another thread do it."""
ModelT = TypeVar("ModelT", bound=BaseModel)
ReadT = TypeVar("ReadT")


class Readers:
    """Threads that read bodies beside the event loop: one for large bodies, one for those that do not wait for large ones."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(1, thread_name_prefix="body")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large-body")

    async def read(self, parse: Callable[[bytes], ReadT], body: bytes) -> ReadT:
        """Return what `parse` makes of a body, and raise what it raises."""
        if len(body) <= AT_ONCE_BYTES:
            return parse(body)
        thread = self._small if len(body) <= FREE_BYTES else self._large
        return await asyncio.get_running_loop().run_in_executor(thread, parse, body)

    def close(self) -> None:
        """End the threads; what waits is not read."""
        for thread in (self._small, self._large):
            thread.shutdown(cancel_futures=True)


def read_json(kind: type[ModelT], body: bytes) -> ModelT:
    """Read any body.

    Raises:
        InvalidValue: it is not what `kind` says, or has too many values; `param` names the field.
    """
    try:
        check_num_values(body)
    except TooManyValues as error:
        raise InvalidValue(str(error)) from None
    try:
        return kind.model_validate_json(body.removeprefix(BYTE_ORDER_MARK))
    except ValidationError as error:
        raise _as_request_error(error) from None


def validated(kind: type[ModelT], fields: Mapping[str, Any]) -> ModelT:
    """As `read_json`, of fields that were read before."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _as_request_error(error) from None


def _as_request_error(error: ValidationError) -> RequestError:
    """Name the first offending field as a client writes it, never its value."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return InvalidValue(f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    field = first["loc"][:1]
    first = max((entry for entry in errors if entry["loc"][:1] == field), key=_aptness)
    path = _field_path(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not path:  # what fields say of each other begins with the name of one
        named = _NAMED.match(message)
        return InvalidValue(message, param=named[1] if named else None)
    return InvalidValue(f"{path}: {message}", param=path)


def _aptness(error: ErrorDetails) -> tuple[bool, int]:
    """Return how well a complaint fits: of a union's, one about a value is about the member that was meant, then the deepest."""
    depth = len(_field_path(error["loc"]).replace("[", ".").split("."))
    return not error["type"].endswith("_type"), depth


def _field_path(location: tuple[int | str, ...]) -> str:
    """Return `messages[2].content` for ("messages", 2, "content", …): names of union members are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not path:
            path = part
        elif part.isidentifier() and part not in ("str", "int"):
            path += f".{part}"
    return path
