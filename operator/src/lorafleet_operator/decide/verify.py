"""Whether a revision answers as its owner says it must, before any request reaches it. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import re2

from lorafleet_contract.names import ANNOTATION_RETRY
from lorafleet_contract.resources import AdapterResource, ArtifactStatus
from lorafleet_contract.verify import VerifyPrompt, VerifyResult, VerifyStatus

HASH_LENGTH: Final = 12
MAX_ANSWER: Final = 200
MAX_EXPECTED: Final = 120
MAX_PATTERN: Final = 256
MAX_PATTERN_BYTES: Final = 1 << 20
"""Of memory for one expression. Patterns and answers are other people's: RE2 takes time in proportion to both, whatever they are."""


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """What a verdict is about."""

    adapter_uid: str
    name: str
    revision: str
    checks: str
    """Hash of the questions, and of the try."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a revision that has to answer questions."""

    is_passed: bool | None = None
    """None: it could not be asked yet."""
    check: str = ""
    """The first question that was not answered as it must be."""
    message: str = ""
    """Why it failed, or could not be asked; empty while it is asked for the first time."""

    @property
    def words(self) -> str:
        """Why it holds the revision back."""
        if self.is_passed is False:
            return f"check {self.check}: {self.message}"
        return self.message or "a pod is asked what the revision answers"


PENDING: Final = Verdict()


def verify_key(adapter: AdapterResource, revision: str) -> VerifyKey:
    """Return what a verdict on a revision is about, as the adapter stands."""
    checks = hashlib.sha256(try_of(adapter).encode()).hexdigest()[:HASH_LENGTH]
    return VerifyKey(adapter.metadata.uid, adapter.served_name, revision, checks)


def try_of(adapter: AdapterResource) -> str:
    """Return what makes another try of the same revision: the annotation, and other questions."""
    retry, verify = adapter.metadata.annotations.get(ANNOTATION_RETRY, ""), adapter.spec.verify
    if verify is None:
        return retry
    asked = json.dumps([prompt.model_dump(mode="json", exclude_defaults=True) for prompt in verify.prompts])
    return f"{retry}\0{asked}"


def verdict_of(
    adapter: AdapterResource,
    desired: ArtifactStatus | None,
    published: str | None,
    verdicts: Mapping[VerifyKey, Verdict],
) -> Verdict | None:
    """Return what is known of the desired revision; None where nothing is asked of it, as of one that answers already."""
    if adapter.spec.verify is None or desired is None or desired.revision == published:
        return None
    key = verify_key(adapter, desired.revision)
    if (told := _told(adapter, key)) is not None:
        return Verdict(told.result is VerifyResult.PASSED, told.check or "", told.message or "")
    return verdicts.get(key, PENDING)


def is_told(adapter: AdapterResource, key: VerifyKey) -> bool:
    """Whether status says what came of the questions."""
    return _told(adapter, key) is not None


def verify_after(
    adapter: AdapterResource, desired: ArtifactStatus | None, verdict: Verdict | None, now: datetime
) -> VerifyStatus | None:
    """Return what status says from now on of the desired revision; None while nothing is known of it."""
    told = adapter.status.verify
    if adapter.spec.verify is None or desired is None:
        return None
    if verdict is None:
        return told if told is not None and told.revision == desired.revision else None
    if verdict.is_passed is None:
        return None
    key = verify_key(adapter, desired.revision)
    if (known := _told(adapter, key)) is not None:
        return known
    return VerifyStatus(
        revision=key.revision,
        checks_hash=key.checks,
        result=VerifyResult.PASSED if verdict.is_passed else VerifyResult.FAILED,
        check=verdict.check or None,
        message=verdict.message or None,
        time=now,
    )


def _told(adapter: AdapterResource, key: VerifyKey) -> VerifyStatus | None:
    told = adapter.status.verify
    is_of_it = told is not None and (told.revision, told.checks_hash) == (key.revision, key.checks)
    return told if is_of_it else None


def problem_of(prompt: VerifyPrompt, answer: str) -> str | None:
    """Return in words in what an answer is not as it must be; None where it is."""
    expect = prompt.expect
    if expect.equals is not None:
        is_so, wanted = answer.strip() == expect.equals.strip(), f"equal to {_shown(expect.equals, MAX_EXPECTED)}"
    elif expect.contains is not None:
        is_so, wanted = expect.contains in answer, f"with {_shown(expect.contains, MAX_EXPECTED)} in it"
    else:
        pattern = expect.matches or ""
        try:
            is_so = _compiled(pattern).search(answer) is not None
        except ValueError as error:
            return f"matches: {error}"
        wanted = f"that matches {_shown(pattern, MAX_EXPECTED)}"
    return None if is_so else f"expected an answer {wanted}, and it is {_shown(answer, MAX_ANSWER)}"


def _compiled(pattern: str) -> "re2._Regexp[str]":
    """Return an expression.

    Raises:
        ValueError: it is none, or too large.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"{len(pattern)} characters, and at most {MAX_PATTERN} are taken")
    options = re2.Options()
    options.max_mem, options.log_errors = MAX_PATTERN_BYTES, False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        told = error.args[0] if error.args else ""
        raise ValueError(told.decode(errors="replace") if isinstance(told, bytes) else str(told)) from None


def _shown(text: str, most: int) -> str:
    """Return a text as one line in quotes, cut where it is long."""
    cut = text if len(text) <= most else f"{text[:most]}…"
    return json.dumps(cut, ensure_ascii=False)
