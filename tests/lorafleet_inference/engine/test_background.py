"""Nice threads are nice alone."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from lorafleet_inference.engine.background import NICENESS, yield_cores


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_threads_of_the_executor_yield() -> None:
    before = niceness()
    with ThreadPoolExecutor(1, initializer=yield_cores) as pool:
        assert pool.submit(niceness).result() == min(19, before + NICENESS)
    assert niceness() == before
