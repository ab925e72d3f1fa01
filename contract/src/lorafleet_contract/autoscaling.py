"""How the number of pods of a base follows what they have to do: `spec.autoscaling` and its status."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, model_validator

from lorafleet_contract.base import Observed

Replicas = Annotated[int, Field(ge=0, le=10_000)]


class ScaleToZero(Observed):
    """How a base does without pods while nobody asks for anything."""

    idle_seconds: Annotated[int, Field(ge=1, le=604_800)] = 600
    """For how long nothing has to be asked before the last pod goes."""
    hold_seconds: Annotated[int, Field(ge=1, le=3_600)] = 300
    """For how long a gateway holds a request until a pod is ready."""
    max_held_requests: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Requests that one gateway holds at the same time."""


class AutoscalingSpec(Observed):
    """Bounds and target of the number of pods."""

    min_replicas: Replicas = 1
    max_replicas: Annotated[int, Field(ge=1, le=10_000)]
    target_sequences: Annotated[int, Field(ge=1, le=100_000)]
    """Sequences, running and waiting, that a pod should have."""
    scale_down_after_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """For how long fewer pods have to be enough before there are fewer."""
    scale_to_zero: ScaleToZero | None = None
    """With `min_replicas` 0 only; None: its defaults."""

    @property
    def zero(self) -> ScaleToZero | None:
        """How the base does without pods; None where it always has some."""
        return (self.scale_to_zero or ScaleToZero()) if self.min_replicas == 0 else None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("minReplicas is above maxReplicas")
        if self.scale_to_zero is not None and self.min_replicas > 0:
            raise ValueError("scaleToZero needs minReplicas 0")
        return self


class AutoscalingStatus(Observed):
    """What autoscaling asks for, and why that changed last."""

    desired_replicas: Replicas
    reason: str
    """A Reason."""
    message: str = ""
    last_scale_time: datetime
    """When `desired_replicas` became what it is."""
