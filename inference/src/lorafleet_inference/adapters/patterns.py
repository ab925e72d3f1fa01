"""Regular expressions that strangers write: limited in length, and all those of one adapter together in time.

Python's own `re` cannot be stopped, and while it matches no other thread runs: one adapter with `(a|a)*b` in its config would
stop a pod. `regex` means the same by its patterns and can be stopped.
"""

import time
from collections.abc import Callable

import regex  # type: ignore[import-untyped]

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError

MAX_CHARACTERS = 4000
PATIENCE_SECONDS = 2.0
"""For all matches of one adapter; honest patterns need milliseconds."""


class Patience:
    """The time that is left for the patterns of one adapter."""

    def __init__(self, seconds: float = PATIENCE_SECONDS) -> None:
        self.seconds = seconds

    def compile(self, field: str, pattern: str) -> "Pattern":
        """Return a pattern.

        Raises:
            AdapterError: ARTIFACT_INVALID: it is too long, or none; names the field.
        """
        if len(pattern) > MAX_CHARACTERS:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"{field}: a pattern has more than {MAX_CHARACTERS} characters")
        try:
            return Pattern(field, regex.compile(pattern), self)
        except (regex.error, OverflowError, RecursionError, ValueError) as error:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"{field}: {pattern!r} is no pattern: {error}") from error


class Pattern:
    """One pattern, which uses up the patience of its adapter."""

    def __init__(self, field: str, compiled: "regex.Pattern[str]", patience: Patience) -> None:
        self._field = field
        self._compiled = compiled
        self._patience = patience

    def match(self, text: str) -> "regex.Match[str] | None":
        """As `re.match`.

        Raises:
            AdapterError: ARTIFACT_INVALID: it takes too long; names the field.
        """
        return self._try(self._compiled.match, text)

    def fullmatch(self, text: str) -> "regex.Match[str] | None":
        """As `re.fullmatch`; raises as `match`."""
        return self._try(self._compiled.fullmatch, text)

    def _try(self, method: "Callable[..., regex.Match[str] | None]", text: str) -> "regex.Match[str] | None":
        began = time.monotonic()
        try:
            return method(text, timeout=max(self._patience.seconds, 0.001))
        except TimeoutError:
            message = f"{self._field}: {self._compiled.pattern!r} takes too long to match {text}"
            raise AdapterError(Reason.ARTIFACT_INVALID, message) from None
        finally:
            self._patience.seconds -= time.monotonic() - began
