"""`python -m lorafleet_operator.kubectl`."""

import sys

from lorafleet_operator.kubectl.cli import main

if __name__ == "__main__":
    sys.exit(main())
