"""What the drivers of clients share: each case is a function of a URL; what came of it goes out as JSON.

Runs in the clients' environment, so it needs nothing of ours.
"""

import asyncio
import inspect
import json
import os
import sys
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

CASES: dict[str, Callable[[str], Any]] = {}
"""By name."""


def case(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """Register a case: a plain or an async function of the server's URL that returns what JSON can say."""
    CASES[function.__name__] = function
    return function


def outcome(runner: asyncio.Runner, function: Callable[[str], Any], url: str) -> dict[str, Any]:
    """Run a case; return `answer`, or `error` (the class), `message` and `traceback`."""
    try:
        result = function(url)
        return {"answer": runner.run(result) if inspect.iscoroutine(result) else result}
    except Exception as error:  # noqa: BLE001  the test says which one it has to be
        kind = f"{type(error).__module__}.{type(error).__name__}"
        return {"error": kind, "message": str(error), "traceback": traceback.format_exc()}


def closing(url: str) -> int:
    """The token of a closing brace: a model that knows no JSON ends soon where it likes that one best."""
    asked = {"model": "red", "prompt": "}", "add_special_tokens": False}
    request = urllib.request.Request(
        f"{url}/tokenize", json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        (token,) = json.load(response)["tokens"]
    return int(token)


def main() -> None:
    """Read `{name: {"url": URL, "cases": names, or none for all}}` from stdin; write `{name: {case: outcome}}` to stdout."""
    given = json.load(sys.stdin)
    # clients may print; only the result goes to the real stdout
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with asyncio.Runner() as runner:  # clients keep connections in the loop that made them
        told = {
            at: {name: outcome(runner, CASES[name], asked["url"]) for name in asked["cases"] or CASES}
            for at, asked in given.items()
        }
    json.dump(told, out)
    out.flush()


def near(one: list[float], other: list[float]) -> bool:
    """Whether two vectors are the same but for how they were summed."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4
