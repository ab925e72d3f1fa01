"""How far pods are with their start, as far as their base says so in its status. Pure."""

from typing import Final

from lorafleet_contract.admin import StartProgress

MIN_SECONDS: Final = 3.0
MIN_PERCENT: Final = 5
"""A status is written no more often, and for no less: who watches it is not told each per cent."""


def is_worth_telling(told: StartProgress | None, now: StartProgress, seconds_since: float) -> bool:
    """Whether a base should say how far a pod is `now`, where it said `told` so long ago."""
    if told is None:
        return True
    if told == now or seconds_since < MIN_SECONDS:
        return False
    return told.step is not now.step or now.percent < told.percent or now.percent - told.percent >= MIN_PERCENT
