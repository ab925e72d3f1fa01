"""When everything is listed again."""

import asyncio
import contextlib

from support.virtual_time import VirtualLoop

from lorafleet_common.kube.client import Listed
from lorafleet_common.kube.errors import KubeUnavailable
from lorafleet_operator.cluster.scope import Scope
from lorafleet_operator.cluster.store import Store
from lorafleet_operator.process.resync import Resync

SECONDS = 30.0


class ApiServer:
    """Nothing is there; while it is away lists fail."""

    def __init__(self) -> None:
        self.is_away = False
        self.asked_at: list[float] = []

    async def list(self, path: str, *, labels: str | None = None) -> Listed:
        if "basemodeldeployments" in path:
            self.asked_at.append(asyncio.get_running_loop().time())
        if self.is_away:
            raise KubeUnavailable(503, "ServiceUnavailable", "away")
        return Listed([], 1)


class Applier:
    def forget_applied(self) -> None:
        """Nothing was applied."""


def test_a_list_that_fails_is_tried_again_soon_and_then_later_each_time() -> None:
    api = ApiServer()

    async def run() -> None:
        async def tell(_: object) -> None:
            pass

        resync = Resync(
            api, Scope(()), seconds=SECONDS, store=Store(), applier=Applier(), wake=lambda _: None, tell=tell
        )
        loop = asyncio.get_running_loop()
        loop.call_at(SECONDS - 1, setattr, api, "is_away", True)
        loop.call_at(SECONDS + 50, setattr, api, "is_away", False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(150):
                await resync.for_ever()

    loop = VirtualLoop()
    loop.run_until_complete(run())
    loop.close()
    # 1, 2, 4, 8, 16 s after the one before, then as ever; the first that succeeds ends it
    assert api.asked_at == [30, 31, 33, 37, 45, 61, 91, 121]
