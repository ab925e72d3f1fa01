"""Which of several operators a base model belongs to: the one that its status names, until that one is gone. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from lorafleet_contract.names import ANNOTATION_OPERATOR
from lorafleet_contract.resources import BaseModelResource

GONE_SECONDS: Final = 30.0
"""A base is taken over from an operator whose Lease has not existed for this long: it was uninstalled."""
SILENT_SECONDS: Final = 300.0
"""The same of one whose Lease is there and is not renewed: its pod may be moved, or scaled to zero for a while."""


class Turn(StrEnum):
    """What an operator does about a base."""

    OURS = "ours"
    TAKE = "take"
    """Nobody has it, or whoever has it is gone."""
    THEIRS = "theirs"


@dataclass(frozen=True, slots=True)
class Heard:
    """What is seen of another operator's Lease."""

    exists: bool
    unchanged_seconds: float
    """For how long this has been so, and the Lease has not been renewed."""

    @property
    def is_over(self) -> bool:
        """Whether nobody operates under this Lease any more."""
        return self.unchanged_seconds >= (SILENT_SECONDS if self.exists else GONE_SECONDS)


def turn_of(base: BaseModelResource, me: str, other: Heard | None) -> Turn:
    """Return whose turn it is.

    Args:
        base: the base; its status names who operates it, an annotation who is to.
        me: `namespace/Lease` of this operator.
        other: of the operator that status names, if it is another one.
    """
    holder, wanted = base.status.operator or None, wanted_operator(base)
    if holder == me:
        return Turn.OURS  # until whoever is to have it has taken it
    if wanted is not None:
        return Turn.TAKE if wanted == me else Turn.THEIRS
    return Turn.TAKE if holder is None or other is None or other.is_over else Turn.THEIRS


def wanted_operator(base: BaseModelResource) -> str | None:
    """Return which operator the base is to have, if somebody says so."""
    return base.metadata.annotations.get(ANNOTATION_OPERATOR) or None
