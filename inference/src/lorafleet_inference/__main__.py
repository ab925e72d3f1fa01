"""`python -m lorafleet_inference`."""

import sys

from lorafleet_inference.cli import main

sys.exit(main())
