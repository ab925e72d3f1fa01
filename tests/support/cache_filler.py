"""A program that asks a cache of base models for some: ROOT REPO HOLDER REVISION...; it prints folders, and its log."""

import logging
import os
import sys
from pathlib import Path

from lorafleet_common.errors import ConfigError
from lorafleet_inference.model_cache import ModelCache, Patience
from lorafleet_inference.model_hub import HubModel

PATIENCE = Patience(look_seconds=0.05, say_seconds=0.2, beat_seconds=0.1, lost_seconds=1.5)


def main() -> int:
    root, repo, holder, *revisions = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    cache = ModelCache(Path(root), holder=holder, patience=PATIENCE)
    try:
        for revision in revisions:
            model = HubModel(repo, revision, endpoint=os.environ["HF_ENDPOINT"])
            sys.stdout.write(f"{cache.get(model)}\n")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
