"""Fill-in-the-middle: prompts of a text with a hole, for models whose vocabulary has tokens for it."""

from collections.abc import Callable
from dataclasses import dataclass

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """How the models of a family were trained to see a hole: the tokens before its parts, in words."""

    prefix: str
    suffix: str
    middle: str | None
    """Behind all; None where the text before the hole comes last."""


FAMILIES = (
    Family("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    Family("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, Stable Code
    Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    Family("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    Family("[PREFIX]", "[SUFFIX]", None),  # Codestral
)
ENDS = ("▁<EOT>", "<|fim_pad|>", "<|file_sep|>", "<|file_separator|>", "<|repo_name|>", "<file_sep>")
"""Beside the tokens of the family, what a model writes when it has filled the hole."""


@dataclass(frozen=True, slots=True)
class Infill:
    """The tokens of a family in one vocabulary."""

    prefix: int
    suffix: int
    middle: int | None
    ends: TokenIds
    """They end an answer that fills a hole."""

    def arranged(self, first: TokenIds, before: TokenIds, after: TokenIds) -> TokenIds:
        """Return the prompt of a hole between two texts; `first` is what every prompt begins with."""
        if self.middle is None:
            return (*first, self.suffix, *after, self.prefix, *before)
        return (*first, self.prefix, *before, self.suffix, *after, self.middle)


def infill_of(token_to_id: Callable[[str], int | None]) -> Infill | None:
    """Return how a vocabulary writes a hole; None if it has no tokens for it."""
    for family in FAMILIES:
        prefix, suffix = token_to_id(family.prefix), token_to_id(family.suffix)
        middle = None if family.middle is None else token_to_id(family.middle)
        if prefix is None or suffix is None or (family.middle is not None and middle is None):
            continue
        others = (token_to_id(one) for one in ENDS)
        ends = [one for one in (prefix, suffix, middle, *others) if one is not None]
        return Infill(prefix, suffix, middle, tuple(dict.fromkeys(ends)))
    return None
