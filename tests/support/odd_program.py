"""A process of `text/workers.py` that does as its jobs say: `python -m support.odd_program`."""

import os
import time

from lorafleet_inference.text.confined import Work, serve

MAX_CPU_SECONDS = 1.0
HURRIED_CPU_SECONDS = 0.1


def work(data: bytes, _: bool) -> tuple[bytes, bool]:
    """Do it."""
    match data:
        case b"endless":
            while True:
                pass
        case b"long":
            begun = time.process_time()
            while time.process_time() < begun + MAX_CPU_SECONDS / 2:
                pass
        case b"death":
            os._exit(3)
    return data + b" %d" % os.getpid(), False


if __name__ == "__main__":
    serve(
        Work(work, lambda _, is_hurried: HURRIED_CPU_SECONDS if is_hurried else MAX_CPU_SECONDS),
        max_memory_bytes=64 << 20,
    )
