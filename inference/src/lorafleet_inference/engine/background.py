"""Who goes first where threads want the same core: events, then the steps, then what is prepared beside them.

Told to the scheduler as niceness, which counts inside a container alone. Without it the event loop, whose work is a fifth of a
core, waits four fifths of the time behind threads that compute without end, and with it all streams and probes.

Inside the API process no thread is nicer than another: one that holds Python's lock would, while it waits for a core, keep the
event loop from passing tokens on: gaps became longer by that, not shorter.
"""

import os
import sys
import threading

ENGINE_NICENESS = 5
"""Of an engine that computes with the cores, beside the API process: a third of a core that both want."""
NICENESS = 10
"""Beyond that of the steps, of threads that prepare: a tenth of a core that both want, so that a step lasts a tenth longer at
most."""


def yield_to_events() -> None:
    """Have the engine give way to the API process; to be called before it has threads, which are as nice."""
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + ENGINE_NICENESS)


def yield_cores() -> None:
    """Make the calling thread, and threads that it starts, nice; for the `initializer` of an executor."""
    if sys.platform == "linux":  # elsewhere it would concern the whole process
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICENESS)
