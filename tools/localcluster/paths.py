"""Where things lie on the machine."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PACKAGE = Path(__file__).resolve().parent
STATE_ROOT = Path("/var/lib/lorafleet")
"""State of the running clusters: one folder a name, and allocations.json; gone after the last `down`."""


def cache_root() -> Path:
    """Return the cache, which outlives `down`: what was built or downloaded, keyed by what it was made from."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "lorafleet" / "localcluster"


def env_file(name: str) -> Path:
    """Return the file of the checkout that a shell sources to talk to the cluster."""
    return CHECKOUT / ".local" / ("env" if name == DEFAULT_NAME else f"env-{name}")


DEFAULT_NAME = "demo"
