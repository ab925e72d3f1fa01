"""Chains of checks: refusals and readiness as visible lists, walked in order until one of them finds something. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lorafleet_contract.reasons import Reason

I = TypeVar("I")  # noqa: E741
F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Check(Generic[I, F]):
    """One thing that has to be so."""

    expects: str
    """What has to be so, as a sentence of the reference page."""
    reasons: tuple[Reason, ...]
    """What it may find; empty when the reason is a pod's."""
    hint: str
    """What to do about it."""
    find: Callable[[I], F | None]
    """Returns what is wrong, None when nothing is."""


Chain = Sequence[Check[I, F]]


def first_found(chain: Chain[I, F], given: I) -> tuple[Check[I, F], F] | None:
    """Return the first check that finds something, and what; None when all is well."""
    for check in chain:
        found = check.find(given)
        if found is not None:
            return check, found
    return None
