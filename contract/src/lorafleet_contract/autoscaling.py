"""How the number of pods of a base follows what they have to do: `spec.autoscaling` and its status."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, model_validator

from lorafleet_contract.base import Observed

Replicas = Annotated[int, Field(ge=0, le=10_000)]


class AutoscalingSpec(Observed):
    """Bounds and target of the number of pods."""

    min_replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=10_000)]
    target_sequences: Annotated[int, Field(ge=1, le=100_000)]
    """Sequences, running and waiting, that a pod should have."""
    scale_down_after_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """For how long fewer pods have to be enough before there are fewer."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("minReplicas is above maxReplicas")
        return self


class AutoscalingStatus(Observed):
    """What autoscaling asks for, and why that changed last."""

    desired_replicas: Replicas
    reason: str
    """A Reason."""
    message: str = ""
    last_scale_time: datetime
    """When `desired_replicas` became what it is."""
