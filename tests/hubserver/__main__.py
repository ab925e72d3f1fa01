"""`python -m hubserver --root DIR --organisation ORG [--host --port]`; HUB_TOKEN: the token that is asked for."""

import argparse
import os
from pathlib import Path

import uvicorn

from hubserver.app import hub_app
from hubserver.repositories import Repositories


def main() -> None:
    parser = argparse.ArgumentParser(prog="hubserver", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--organisation", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    parsed = parser.parse_args()
    repositories = Repositories(parsed.root, parsed.organisation)
    app = hub_app(repositories, token=os.environ.get("HUB_TOKEN") or None)
    uvicorn.run(app, host=parsed.host, port=parsed.port, log_level="warning")


if __name__ == "__main__":
    main()
