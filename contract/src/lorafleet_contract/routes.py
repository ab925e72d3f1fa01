"""What a pod tells gateways on its public port."""

from lorafleet_contract.admin import RevisionRef, ServedName, Tier
from lorafleet_contract.base import Observed
from lorafleet_contract.sources import AdapterFacts, Revision


class RouteAdapter(Observed):
    """One answerable revision in the routes document."""

    name: ServedName
    revision: Revision
    stable: bool
    tier: Tier
    facts: AdapterFacts | None = None


class Routes(Observed):
    """`GET /v1/routes[?after=N&boot_id=B&wait_seconds=S[&since=N]]` on the public port: what a gateway needs to know of a pod."""

    boot_id: str
    generation: int
    base: str
    """Served name of the base model."""
    ready: bool
    draining: bool
    max_model_len: int
    adapters: list[RouteAdapter] | None = None
    """None: as in generation N of boot B, which whoever asks has."""
    since: int | None = None
    """Given, where it was asked for and is known: `adapters` has only those that are another than in this generation."""
    removed: list[RevisionRef] = []
    """With `since`: what was answerable then and is no more."""
    num_running: int = 0
    num_waiting: int = 0
