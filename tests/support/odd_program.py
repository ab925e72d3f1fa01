"""A process of `text/workers.py` that does as its jobs say: `python -m support.odd_program`."""

import os
import signal
import sys
import time

from lorafleet_inference.text.frames import READY, read_frame, write_frame

MAX_CPU_SECONDS = 1.0


def main() -> None:
    """Work until standard input ends."""
    out = sys.stdout.buffer
    write_frame(out, READY)
    while (data := read_frame(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
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
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(out, data + b" %d" % os.getpid())


if __name__ == "__main__":
    main()
