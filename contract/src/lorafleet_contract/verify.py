"""What a revision has to answer before any request reaches it: `spec.verify` of a LoraAdapter, and what came of it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from lorafleet_contract.admin import MAX_ASK_CHARS, MAX_ASK_MESSAGES, MAX_ASK_TOKENS, AskMessage
from lorafleet_contract.base import Observed
from lorafleet_contract.sources import Revision


class Expectation(Observed):
    """What holds of an answer; exactly one of its fields is given."""

    equals: str | None = None
    """White space around either is passed over."""
    contains: str | None = None
    matches: str | None = None
    """A regular expression of RE2, anywhere in the answer."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.equals, self.contains, self.matches].count(None) != 2:
            raise ValueError("exactly one of equals, contains, matches")
        return self


class VerifyPrompt(Observed):
    """One question, and what has to come of it."""

    name: str
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_ASK_CHARS)] | None = None
    """A text that goes on; exactly one of this and `messages`."""
    messages: Annotated[list[AskMessage], Field(min_length=1, max_length=MAX_ASK_MESSAGES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_ASK_TOKENS)] = 16
    expect: Expectation

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt, messages")
        return self


class VerifySpec(Observed):
    """`spec.verify`."""

    prompts: Annotated[list[VerifyPrompt], Field(min_length=1, max_length=16)]
    timeout_seconds: Annotated[int, Field(ge=1, le=600)] = 60
    """For all of them together; what takes longer is asked again."""


class VerifyResult(StrEnum):
    """What came of the questions."""

    PASSED = "Passed"
    FAILED = "Failed"


class VerifyStatus(Observed):
    """`status.verify`: a revision is asked once, for as long as the questions are the same."""

    revision: Revision
    checks_hash: str
    """Of the questions, and of the try."""
    result: VerifyResult
    check: str | None = None
    """The first that failed."""
    message: str | None = None
    """What was expected, and the begin of the answer."""
    time: datetime
