"""Asks a pod over HTTP, and says whether an answer is one that the reference page promises."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

ANSWER_SECONDS = 180.0
"""Whatever is sent, an answer begins and ends within this."""
CODES: dict[int, frozenset[str | None]] = {
    400: frozenset({"invalid_value", "unsupported_parameter", "context_length_exceeded"}),
    404: frozenset({"model_not_found", "revision_not_found", None}),
    405: frozenset({None}),
    408: frozenset({"invalid_value"}),
    413: frozenset({"invalid_value"}),
    415: frozenset({"invalid_value"}),
    424: frozenset({"adapter_failed", "not_finite"}),
    429: frozenset({"overloaded"}),
    503: frozenset({"adapter_loading"}),
}
"""What the public port of a pod that serves may answer beside 200, as in docs/reference/api.md."""
ADMIN_STATUSES = frozenset({200, 204, 400, 403, 404, 405, 409, 413, 415, 422})
RETRYABLE = frozenset({"SourceUnavailable", "DiskFull", "OutOfMemory", "LoadFailed"})


@dataclass(frozen=True)
class Answer:
    """`status` 0: none came, and `text` says why."""

    status: int
    text: str
    headers: dict[str, str]
    seconds: float
    first_seconds: float
    """Until the first byte of the body."""

    @property
    def events(self) -> list[str]:
        """The data of server-sent events."""
        return [line.removeprefix("data: ") for line in self.text.splitlines() if line.startswith("data: ")]

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def error(self) -> dict[str, Any] | None:
        """The `error` object, also of a stream that ended with one; None where there is none in OpenAI's shape."""
        last = self.text
        if self.is_stream:
            if not self.text.rstrip().rpartition("\n\n")[2].startswith("event: error"):
                return None
            last = self.events[-1]
        try:
            found = json.loads(last)
        except ValueError:
            return None
        error = found.get("error") if isinstance(found, dict) else None
        return error if isinstance(error, dict) else None

    @property
    def outcome(self) -> str:
        """For counting: status, and the code of an error."""
        error = self.error
        if self.status == 0:
            return "none"
        return str(self.status) if error is None else f"{self.status} {error.get('code')}"


def undocumented(answer: Answer) -> str | None:
    """Return what is wrong with an answer of the public port; None if it is as the reference page says."""
    error = answer.error
    if answer.status == 0:
        return f"no answer: {answer.text}"
    if answer.status == 200 and error is None:
        last = (answer.events or [""])[-1]
        whole = not answer.is_stream or last == "[DONE]" or '"type":"response.' in last
        return None if whole else f"a stream ends without its last event and without an error: …{answer.text[-200:]!r}"
    if answer.status == 200:
        assert error is not None
        codes = frozenset({one for each in CODES.values() for one in each})
    else:
        codes = CODES.get(answer.status, frozenset())
    if error is None:
        return f"{answer.status} without an error in OpenAI's shape: {answer.text[:200]!r}"
    if error.get("code") not in codes:
        return f"{answer.status} {error.get('code')}: {str(error.get('message'))[:300]}"
    if answer.status in (429, 503) and "retry-after" not in answer.headers:
        return f"{answer.status} without Retry-After"
    return None


LORAX_CODES: dict[int, frozenset[str | None]] = {
    413: CODES[413],
    415: CODES[415],
    408: CODES[408],
    422: CODES[400],
    424: CODES[424] | CODES[404] - {None},
    429: CODES[429],
    503: CODES[503],
}
"""As `CODES`, of LoRAX's routes, as in docs/reference/lorax.md."""


def undocumented_lorax(answer: Answer) -> str | None:
    """As `undocumented`, of LoRAX's routes."""
    if answer.status == 0:
        return f"no answer: {answer.text}"
    try:
        found = json.loads((answer.events or [""])[-1] if answer.is_stream else answer.text)
    except ValueError:
        return f"{answer.status} with what is no JSON at its end: …{answer.text[-200:]!r}"
    error = found if isinstance(found, dict) and "error_type" in found else {}
    if answer.status == 200 and not error:
        return None
    codes = frozenset({one for each in LORAX_CODES.values() for one in each})
    if error.get("code") not in (codes if answer.status == 200 else LORAX_CODES.get(answer.status, frozenset())):
        return f"{answer.status} {answer.text[-300:]}"
    return None


def undocumented_admin(answer: Answer) -> str | None:
    """As `undocumented`, of the admin port."""
    if answer.status in ADMIN_STATUSES:
        return None
    if answer.status == 503 and any(f'"{reason}"' in answer.text for reason in RETRYABLE):
        return None
    return f"{answer.status}: {answer.text[:300]}"


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes | None,
    *,
    method: str = "POST",
    seconds: float = ANSWER_SECONDS,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send a request and read all of its answer; never raises for what the pod does."""
    began = time.monotonic()
    first = 0.0
    given = {"content-type": "application/json", **(headers or {})}
    try:
        async with asyncio.timeout(seconds), session.request(method, url, data=body, headers=given) as response:
            parts = []
            async for chunk in response.content.iter_any():
                first = first or time.monotonic() - began
                parts.append(chunk)
            text = b"".join(parts).decode(errors="replace")
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, text, found, time.monotonic() - began, first)
    except TimeoutError:
        return Answer(0, f"none within {seconds:g} s", {}, time.monotonic() - began, 0)
    except (aiohttp.ClientError, OSError) as error:
        return Answer(0, f"{type(error).__name__}: {error}", {}, time.monotonic() - began, 0)
