"""`python -m lorafleet_inference`."""

import os
import signal
import sys

# the kernel drops a signal that the first process of a container has no handler for: what comes before the program takes
# its signals itself, while it imports and opens its ports, ends it at once
signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))

from lorafleet_inference.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
