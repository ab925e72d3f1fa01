"""Answers that have to match a form, and the draft tokens that follow from one. Pure."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from lorafleet_inference.engine.speculation import PATIENCE, DraftSource


class Form(Protocol):
    """What an answer has to match."""

    def accept(self, token_id: int) -> bool:
        """Take in the next token of the answer; return whether more may follow."""

    def forced(self) -> Sequence[int]:
        """Return tokens that most likely come next, as the form leaves no choice about their text."""

    def allowed(self, token_ids: Sequence[int]) -> int:
        """Return how many of these tokens may follow, one after the other."""

    @property
    def problem(self) -> str | None:
        """Why it cannot be followed any more; None where it can, or where the answer is complete."""


class FormDrafts(DraftSource):
    """Drafts what the form of an answer leaves no choice about.

    The text is certain, its tokens are not: a model may write the same text in others. So they are tried as long as they are right.
    """

    def __init__(self, max_draft_tokens: int, form: Form, num_tokens: int) -> None:
        """`num_tokens`: that the model can compute; tokenizers may have more."""
        super().__init__(max_draft_tokens, first=max_draft_tokens, patience=PATIENCE)
        self._form = form
        self._num_tokens = num_tokens

    def has_some(self, token_ids: Sequence[int]) -> bool:
        """Whether there is a draft after these tokens, which are all that are known."""
        return not self._rests(token_ids) and bool(self._forced())

    def _announces(self, token_ids: Sequence[int]) -> bool:  # noqa: ARG002  the form has taken them in
        return len(self._forced()) > 1

    def _next(self, token_ids: Sequence[int], number: int) -> list[int]:  # noqa: ARG002
        return self._forced()[:number]

    def _forced(self) -> list[int]:
        return list(takewhile(lambda token_id: 0 <= token_id < self._num_tokens, self._form.forced()))
