"""A process of `text/workers.py` that begins when it is nicer than who started it, and says if it is not within a while."""

import os
import time

from lorafleet_inference.text.confined import Work, serve

MAX_CPU_SECONDS = 1.0
PATIENCE_SECONDS = 5.0


def _is_nicer() -> bool:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while os.getpriority(os.PRIO_PROCESS, 0) <= os.getpriority(os.PRIO_PROCESS, os.getppid()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


if __name__ == "__main__":
    said = b"nicer" if _is_nicer() else b"not nicer"
    serve(Work(lambda *_: (said, False), lambda *_: MAX_CPU_SECONDS), max_memory_bytes=64 << 20)
