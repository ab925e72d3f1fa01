"""How an adapter comes from one revision to the next: what its spec says of it, and what its status."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from lorafleet_contract.base import Observed, Wire


class RolloutSpec(Observed):
    """`spec.rollout` of a LoraAdapter."""

    progress_deadline_seconds: Annotated[int, Field(ge=1)] = 600
    """A new revision that does not become the stable one is reported after so long without progress."""


class RolloutStatus(Wire):
    """`status.rollout`: the desired revision while it is not the stable one and the base has pods that could load it."""

    revision: str
    start_time: datetime
    last_progress_time: datetime
    """When one more pod than ever before was ready with the revision; at first the start."""
    ready_pods: int = 0
    """The most pods that were ready with it at the same time."""
