"""Draft tokens: how many are tried, whether they pay, and what is looked up in what an answer and its prompt have had so far. Pure.

A step computes them as if they followed, and chooses a token after each. As far as these are the draft tokens they stand, with the
token after the last of them, so that one step gives several tokens; each is chosen from the same logits, and with the same draw, as
without a draft. What a wrong draft costs is its computation.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.pace import Pace

GRAMS = (3, 2)
"""So many tokens have to have occurred before, in this order of preference."""
FIRST_LENGTH = 4
"""Draft tokens at first, at most."""
MAX_PAUSE = 64
"""Tokens without a draft after drafts of which nothing was right."""
PATIENCE = 2
"""Wrong drafts in a row after which a draft model pauses; what it says the next time has nothing to do with what it said before."""
HOPE = 0.01
"""Part of what is known of wrong drafts that each step without any takes away."""
MEMORY = 0.8
"""Weight of a draft beside the one after it in what part of them is right."""
HOPE_OF_REQUESTS = 0.05
"""Part of what is known of an adapter's wrong drafts that each of its requests takes away."""
MAX_ADAPTERS = 1024
"""Of so many is remembered what part of their drafts is right."""
UNKNOWN_PACE_REQUESTS = 8
"""As long as nothing is known of what a token costs, drafts are made where no more answers than this go on."""


class DraftLength:
    """Of one sequence: how many draft tokens are worth a try, by how many of its earlier ones were right."""

    def __init__(
        self, max_draft_tokens: int, *, first: int = FIRST_LENGTH, patience: int = 0, right_part: float = 1.0
    ) -> None:
        """`first`: tokens of the first draft, at most. `patience`: drafts in a row of which nothing may be right before
        there are none for a while. `right_part`: of the draft tokens, as far as others tell."""
        self._most = max_draft_tokens
        self._length = min(first, max_draft_tokens)
        self._patience = patience
        self._num_wrong = 0
        """Drafts in a row of which nothing was right."""
        self._pause = 0
        self._paused_until = 0
        """With fewer tokens there are no drafts."""
        self.right_part = right_part
        """Of the draft tokens, lately."""

    def is_likely(self, token_ids: Sequence[int]) -> bool:
        """Whether there would be a draft, by tokens of which the newest may be missing."""
        return not self._rests(token_ids)

    def number(self, token_ids: Sequence[int], most: int) -> int:
        """Return how many tokens to draft after these, at most `most`."""
        return 0 if self._rests(token_ids) else max(0, min(self._length, most))

    def told(self, num_draft: int, num_right: int, num_known: int) -> None:
        """Take in how many of the draft tokens after `num_known` tokens were right."""
        self.right_part = MEMORY * self.right_part + (1 - MEMORY) * num_right / num_draft
        if num_right == num_draft:
            self._length = min(self._most, max(self._length, 2 * num_draft))
        else:
            self._length = max(1, num_right)
        if num_right:
            self._num_wrong = self._pause = 0
            return
        self._num_wrong += 1
        if self._num_wrong > self._patience:
            self._rest(num_known + 1)

    def hope(self) -> None:
        """Forget a little of what was wrong: who makes no drafts learns nothing new of them."""
        self.right_part += HOPE * (1.0 - self.right_part)

    def _rest(self, num_tokens: int) -> None:
        """Make no drafts for a while from so many tokens on, and for twice as long the next time."""
        self._pause = min(MAX_PAUSE, max(1, 2 * self._pause))
        self._paused_until = num_tokens + self._pause

    def _rests(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) < self._paused_until


class RightParts:
    """By adapter, what part of a draft model's tokens is right: so not each request has to find out by itself."""

    def __init__(self) -> None:
        self._parts: dict[AdapterKey | None, float] = {}
        """The one that was touched the longest ago first."""

    def begin(self, adapter: AdapterKey | None) -> float:
        """Return with what part a request begins; after some requests that had no drafts, one tries again."""
        part = self._parts.get(adapter, 1.0)
        self._keep(adapter, part + HOPE_OF_REQUESTS * (1.0 - part))
        return part

    def told(self, adapter: AdapterKey | None, num_draft: int, num_right: int) -> None:
        """Take in how many of the draft tokens of an answer were right."""
        part = self._parts.get(adapter, 1.0)
        self._keep(adapter, MEMORY * part + (1 - MEMORY) * num_right / num_draft)

    def _keep(self, adapter: AdapterKey | None, part: float) -> None:
        self._parts.pop(adapter, None)
        self._parts[adapter] = part
        if len(self._parts) > MAX_ADAPTERS:
            del self._parts[next(iter(self._parts))]


class DraftSource(DraftLength, ABC):
    """Has the draft tokens of one sequence, too."""

    _is_announced = False
    """`is_likely` has said so, and no draft was asked for since."""

    def is_likely(self, token_ids: Sequence[int]) -> bool:
        """Whether there would be a draft, by tokens of which the newest may be missing.

        Whoever waits for that one because of this waits in vain where it leads elsewhere; then it is a while until the next time.
        """
        if self._rests(token_ids):
            return False
        self._is_announced = self._announces(token_ids)
        return self._is_announced

    def draft(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Return what may follow these tokens, at most `most`."""
        is_announced, self._is_announced = self._is_announced, False
        number = self.number(token_ids, most)
        if number < 1:
            return []
        draft = self._next(token_ids, number)
        if not draft and is_announced:
            self._rest(len(token_ids))
        return draft

    @abstractmethod
    def _announces(self, token_ids: Sequence[int]) -> bool:
        """Whether there would be a draft if the tokens that are not known yet were as drafts have them."""

    @abstractmethod
    def _next(self, token_ids: Sequence[int], number: int) -> list[int]:
        """Return what may follow these tokens, at most `number`, of which there is at least one."""


class Speculator(DraftSource):
    """Looks draft tokens up in the sequence itself: what followed its last ones where they occurred before.

    Where that was so near that less than enough followed, they repeat themselves, and are taken to go on with it.
    """

    def __init__(self, max_draft_tokens: int) -> None:
        super().__init__(max_draft_tokens)
        self._follows: dict[tuple[int, ...], int] = {}
        """Position after the latest occurrence of some tokens that others follow."""
        self._num_seen = 0
        """Tokens whose occurrences are in there."""

    def _announces(self, token_ids: Sequence[int]) -> bool:
        return self._found(token_ids) is not None

    def _next(self, token_ids: Sequence[int], number: int) -> list[int]:
        at = self._found(token_ids)
        if at is None:
            return []
        draft = list(token_ids[at : at + number])
        while len(draft) < number:
            draft.append(draft[len(draft) - (len(token_ids) - at)])
        return draft

    def _found(self, token_ids: Sequence[int]) -> int | None:
        """Return the position after the latest occurrence of the last tokens before; None where they have none."""
        self._see(token_ids)
        for size in GRAMS:
            at = self._follows.get(tuple(token_ids[-size:])) if len(token_ids) > size else None
            if at is not None:
                return at
        return None

    def _see(self, token_ids: Sequence[int]) -> None:
        """Note where the tokens before the last one end."""
        for end in range(max(1, self._num_seen), len(token_ids)):
            for size in GRAMS:
                if end >= size:
                    self._follows[tuple(token_ids[end - size : end])] = end
        self._num_seen = max(self._num_seen, len(token_ids))


def is_worthwhile(pace: Pace | None, num_answers: int, right_part: float, round_seconds: float = 0.0) -> bool:
    """Whether a draft token gives more than it takes, in a step that continues so many answers.

    A right one spares an answer a place in some step: the token's own cost there, and its part of what any step costs. It takes
    what a token of a prompt takes, and its part of the round of the draft model that makes one for each answer, where there is such
    a model. The more answers a step continues, the less it spares: so large batches have no drafts.
    """
    if pace is None or not (pace.prompt_token and (pace.fixed or pace.answer_token)):
        return num_answers <= UNKNOWN_PACE_REQUESTS
    num_answers = max(1, num_answers)
    return right_part * (pace.answer_token + pace.fixed / num_answers) > pace.prompt_token + round_seconds / num_answers
