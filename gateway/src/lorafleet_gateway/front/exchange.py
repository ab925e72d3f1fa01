"""One request on its way through the gateway: what is known of it so far."""

import time
from dataclasses import dataclass, field

from aiohttp import web

from lorafleet_common.keys.guard import Caller
from lorafleet_common.tracing import RequestTrace
from lorafleet_gateway.errors import Overloaded
from lorafleet_gateway.front.dispatch import Route
from lorafleet_gateway.front.outcomes import Result
from lorafleet_gateway.front.state import Room
from lorafleet_gateway.front.usage import Bill


@dataclass(slots=True)
class Exchange:
    """One request on its way."""

    request: web.BaseRequest
    request_id: str
    began: float
    route: Route
    caller: Caller
    body: bytes | bytearray = b""
    room: Room | None = None
    status: int = 500
    """As the OpenAI routes have it; LoRAX's clients may be told another one."""
    pod: str = ""
    """Who answered."""
    answered_revision: str | None = None
    """What the pod says that it answered with."""
    first_byte_seconds: float | None = None
    """Until a pod began to answer."""
    result: Result | None = None
    """None: as the status says."""
    is_lorax: bool = False
    """LoRAX's API was asked."""
    bill: Bill | None = None
    """Its tokens, where they are counted."""
    trace: RequestTrace = field(default_factory=lambda: RequestTrace(None))

    def take_share(self) -> None:
        """Count it as one of its model's, which was found, in what this gateway may have in flight.

        Raises:
            Overloaded: there are too many of that model.
        """
        assert self.room is not None, "it is in flight"
        assert self.route.target is not None, "it was found"
        try:
            self.room.count_for(self.route.target.counts_as)
        except Overloaded:
            self.route.is_without_pod = True
            raise

    def let_go(self) -> None:
        """The request is not offered again: a long answer must not keep a large body in memory."""
        self.body = b""
        if self.room is not None:
            self.room.give_back()

    @property
    def elapsed_seconds(self) -> float:
        """Since it arrived."""
        return time.perf_counter() - self.began

    @property
    def seconds_with_pods(self) -> float:
        """As `elapsed_seconds`, without the time that it was held for want of a pod: that says nothing of any revision."""
        return self.elapsed_seconds - self.route.held_seconds
