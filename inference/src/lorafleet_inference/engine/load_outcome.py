"""What comes of registering, loading and releasing adapters, for the engine to tell and to do."""

from dataclasses import dataclass, field

from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.messages import AdapterKey, AdapterStatus


@dataclass(frozen=True, slots=True)
class Refused:
    """The waiting requests of an adapter have to end."""

    key: AdapterKey
    reason: Reason
    message: str


@dataclass(slots=True)
class Outcome:
    """What changed, and what has to."""

    statuses: list[AdapterStatus] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    preempt: tuple[AdapterKey, ...] = ()
    """Adapters whose running requests have to be set back now, so that one that waits gets their room."""
