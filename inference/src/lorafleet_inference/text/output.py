"""From the engine's token events to what a client may see of one choice: text, tokens, log-probabilities, the end."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from lorafleet_inference.engine.token_events import TokenEvent, TokenLogprobs
from lorafleet_inference.text.detokenizer import Detokenizer
from lorafleet_inference.text.stopping import StopStrings


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One token of the answer with its log-probabilities; `offset` is where its text begins, in characters."""

    token_id: int
    logprobs: TokenLogprobs
    offset: int
    num_chars: int
    """Of its text; the last one may have more, which only the end of the answer shows."""

    @property
    def end(self) -> int:
        """Where its text ends."""
        return self.offset + self.num_chars


@dataclass(frozen=True, slots=True)
class Shown:
    """What one event adds to the answer."""

    text: str
    tokens: tuple[ShownToken, ...]
    """Empty unless log-probabilities were asked for."""
    num_tokens: int
    """Tokens of the event up to the one that completed a stop string; all of them where none did."""
    stopped: bool
    """A stop string was met: nothing more will be shown."""
    token_ids: tuple[int, ...] = ()
    """All of the event up to the end, where token ids are asked for."""


class Output:
    """Builds the visible answer of one choice.

    Log-probabilities show together with their text, and not at all if it is cut off; token ids show as they come.
    `show_stop`: the stop string or the text of the end token is part of the answer.
    """

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str], *, show_stop: bool = False, show_ids: bool = False
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops, shown=show_stop)
        self._show_stop = show_stop
        self._show_ids = show_ids
        self._pending: deque[ShownToken] = deque()
        self._num_decoded = 0
        self._num_shown = 0

    def push(self, event: TokenEvent) -> Shown:
        """Add the tokens of an event."""
        if event.logprobs is None and not event.with_end and not self._stops:
            text, num_tokens, met = self._detokenizer.push(event.token_ids), len(event.token_ids), False
            self._num_decoded += len(text)
        else:
            text, num_tokens, met = self._push_each(event)
        if not met and event.finish is not None:
            rest = self._stops.push(self._detokenizer.finish())
            text += rest.text + ("" if rest.met else self._stops.finish())
            met = rest.met
        self._num_shown += len(text)
        tokens = self._release(final=event.finish is not None and not met)
        return Shown(text, tokens, num_tokens, met, event.token_ids[:num_tokens] if self._show_ids else ())

    def _push_each(self, event: TokenEvent) -> tuple[str, int, bool]:
        """Add token after token, up to the one that completes a stop string; return text, tokens, whether one did."""
        text, num_seen, num_tokens = "", 0, len(event.token_ids)
        logprobs = event.logprobs or (None,) * num_tokens
        for token_id, entry in zip(event.token_ids, logprobs, strict=True):
            num_seen += 1
            is_end = event.with_end and num_seen == num_tokens
            is_hidden = is_end and not self._show_stop
            piece = "" if is_hidden else self._detokenizer.push((token_id,))
            if entry is not None and not (is_end and self._hides_end):
                self._pending.append(ShownToken(token_id, entry, self._num_decoded, len(piece)))
            if is_hidden:
                break
            self._num_decoded += len(piece)
            stopped = self._stops.push(piece)
            text += stopped.text
            if stopped.met:
                return text, num_seen, True
        return text, num_seen, False

    @property
    def _hides_end(self) -> bool:
        """Whether an end token is not among the tokens of the answer, although the engine tells it."""
        return not (self._show_stop or self._show_ids)

    def _release(self, *, final: bool) -> tuple[ShownToken, ...]:
        ready = []
        while self._pending and (final or self._pending[0].offset < self._num_shown):
            ready.append(self._pending.popleft())
        return tuple(ready)


def spelled(detokenizer: Detokenizer, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Return the text of tokens, and where that of each begins; takes time as there are tokens."""
    offsets, parts, num_chars = list[int](), list[str](), 0
    for token_id in token_ids:
        offsets.append(num_chars)
        parts.append(detokenizer.push((token_id,)))
        num_chars += len(parts[-1])
    return "".join((*parts, detokenizer.finish())), tuple(offsets)
