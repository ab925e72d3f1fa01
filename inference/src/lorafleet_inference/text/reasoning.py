"""What a model thinks before it answers, told from the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorafleet_inference.text.tool_calls.parts import Part, Said, num_kept


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around reasoning."""

    begin: str
    end: str


KINDS: Sequence[Tags] = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
)


def tags_of(template: str) -> Tags | None:
    """Return the tags that a chat template knows; None where it knows none."""
    return next((one for one in KINDS if one.end in template or one.begin in template), None)


class ReasoningSplitter:
    """Splits one answer as it grows; the parts do not depend on how the text was cut.

    Reasoning stands at the beginning of an answer. `inside`: the prompt has opened it already. Line breaks next to the
    tags belong to neither.
    """

    def __init__(self, tags: Tags, *, inside: bool) -> None:
        self._tags = tags
        self._text = ""
        self._inside = inside
        self._over = False
        self._at_start = inside

    def push(self, text: str) -> list[Thought | Part]:
        """Take in more text; return what it completes."""
        self._text += text
        parts: list[Thought | Part] = []
        while self._text and self._step(parts):
            pass
        return parts

    def finish(self) -> list[Thought | Part]:
        """Return what was kept back: no more text comes."""
        text, self._text = self._text, ""
        if self._inside:
            text = text.rstrip("\n")
        elif self._over and self._at_start:
            text = text.lstrip("\n")
        return [Thought(text) if self._inside else Said(text)] if text else []

    def _step(self, parts: list[Thought | Part]) -> bool:
        if self._at_start:
            self._text = self._text.lstrip("\n")
            self._at_start = not self._text
            return bool(self._text)
        if self._over:
            parts.append(Said(self._text))
            self._text = ""
            return False
        return self._think(parts) if self._inside else self._look(parts)

    def _look(self, _: list[Thought | Part]) -> bool:
        """Find out whether the answer begins with reasoning."""
        bare = self._text.lstrip()
        if bare.startswith(self._tags.begin):
            self._text, self._inside, self._at_start = bare[len(self._tags.begin) :], True, True
            return True
        if self._tags.begin.startswith(bare):
            return False
        self._over = True
        return True

    def _think(self, parts: list[Thought | Part]) -> bool:
        thought, found, after = self._text.partition(self._tags.end)
        kept = 0 if found else num_kept(thought, self._tags.end)
        shown = thought[: len(thought) - kept].rstrip("\n")
        if shown:
            parts.append(Thought(shown))
        self._text = after if found else self._text[len(shown) :]
        if found:
            self._inside, self._over, self._at_start = False, True, True
        return bool(found)
