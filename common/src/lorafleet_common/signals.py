"""SIGTERM and SIGINT as events of the running loop."""

import asyncio
import signal


class StopSignals:
    """The first signal asks to drain, the second one to end at once; made inside the running event loop."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.told_again = asyncio.Event()
        self.by_router = False
        """Whether load balancers have to notice the shutdown first: yes for SIGTERM, no for Ctrl-C."""
        self.install()

    def install(self) -> None:
        """Take the signals, also back from a library that took them since."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._told, number)

    def _told(self, number: signal.Signals) -> None:
        if self.told.is_set():
            self.told_again.set()
        self.by_router = number == signal.SIGTERM
        self.told.set()
