"""The spec of a LoraAdapter: its base, its source, and where it is resident."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lorafleet_contract.admin import ServedName
from lorafleet_contract.base import Observed
from lorafleet_contract.rollout import RolloutSpec
from lorafleet_contract.sources import Digest, SourceRef
from lorafleet_contract.verify import VerifySpec


class PlacementMode(StrEnum):
    """On how many pods an adapter is resident."""

    ALL = "All"
    FIXED = "Fixed"
    ON_DEMAND = "OnDemand"
    AUTO = "Auto"
    """As many as its part of the tokens asks for."""


class PlacementSpec(Observed):
    """Where an adapter is resident."""

    mode: PlacementMode = PlacementMode.FIXED
    replicas: Annotated[int, Field(ge=1)] = 1
    """With mode Fixed."""
    min_replicas: Annotated[int, Field(ge=0)] | None = None
    """With mode Auto; None: 1; 0: on demand while it is quiet."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """With mode Auto; None: all pods."""
    pin: bool = False
    priority: int = 0
    """Higher comes first where not all fit."""

    @property
    def least(self) -> int:
        """With mode Auto: pods that keep it at least."""
        return 1 if self.min_replicas is None else self.min_replicas


class UnloadSpec(Observed):
    """How an adapter leaves a pod."""

    drain_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    force_after_seconds: Annotated[int, Field(ge=1)] = 900
    """After its deletion, and never before the drain: then it goes though a pod that does not answer may hold it."""


class BaseModelRef(Observed):
    """A BaseModelDeployment; another namespace needs its `allowedNamespaces`."""

    name: str
    namespace: str | None = None


class AdapterSpec(Observed):
    """Spec of a LoraAdapter."""

    base_model_ref: BaseModelRef
    served_name: ServedName | None = None
    source: SourceRef
    digest: Digest | None = None
    placement: PlacementSpec = PlacementSpec()
    unload: UnloadSpec = UnloadSpec()
    rollout: RolloutSpec = RolloutSpec()
    verify: VerifySpec | None = None
    """What a new revision has to answer before any request reaches it."""
    suspend: bool = False
    """Changes of source, digest and placement are not acted on while true; what serves goes on serving."""
