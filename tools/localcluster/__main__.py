"""`python3 tools/localcluster COMMAND`, from anywhere and with any Python from 3.11 on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from localcluster.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
