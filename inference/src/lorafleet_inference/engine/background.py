"""The thread that reads and copies adapters leaves the cores to the steps of running requests.

It is for the engine process only. In the API process a nice thread that holds Python's lock would, while it waits for a
core, keep the event loop from passing tokens on: gaps became longer by that, not shorter.
"""

import os
import sys
import threading

NICENESS = 10
"""Where threads want the same core, one of this niceness gets a tenth of it: so a step lasts a tenth longer at most."""


def yield_cores() -> None:
    """Make the calling thread, and threads that it starts, nice; for the `initializer` of an executor."""
    if sys.platform == "linux":  # elsewhere it would concern the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
