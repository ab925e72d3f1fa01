"""What a base allows LoraAdapters of other namespaces: `spec.lora.guests`."""

from typing import Annotated

from pydantic import Field

from lorafleet_contract.base import Observed


class GuestLimits(Observed):
    """What the LoraAdapters of one guest namespace may ask of a base; None is what the base says of all guests."""

    max_priority: int | None = None
    allow_pin: bool | None = None
    max_slots: Annotated[int, Field(ge=1)] | None = None
    served_names: list[str] | None = None

    def may_use(self, name: str) -> bool:
        """Whether a served name is one of `served_names`; no list allows all."""
        entries = self.served_names or ["*"]
        return any(name.startswith(entry[:-1]) if entry.endswith("*") else name == entry for entry in entries)


class GuestNamespace(GuestLimits):
    """Exceptions for one namespace."""

    name: str


class Guests(GuestLimits):
    """What LoraAdapters of other namespaces than the base's may ask of it."""

    namespaces: list[GuestNamespace] = []

    def limits_of(self, namespace: str) -> GuestLimits:
        """Return what holds for one namespace: without a word of the base no pin and no priority above 0."""
        own = next((entry for entry in self.namespaces if entry.name == namespace), None)
        limits = GuestLimits(max_priority=0, allow_pin=False)
        for said in (self, own):
            if said is not None:
                given = {field: getattr(said, field) for field in GuestLimits.model_fields}
                limits = limits.model_copy(update={k: v for k, v in given.items() if v is not None})
        return limits
