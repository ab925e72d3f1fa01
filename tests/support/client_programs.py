"""Clients of other servers, unmodified, as programs in their own environment; each runs its cases at several URLs."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).with_name("clients")
INSTALL_SECONDS = 600
SECONDS = 600
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "HF_HUB_OFFLINE": "1"}
"""What keeps clients from asking servers of their own for something."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    answer: Any = None
    error: str = ""
    """Class of the client's exception; empty where there is an answer."""
    message: str = ""
    traceback: str = ""


@cache
def python() -> Path:
    """Make the environment, where it is not there."""
    command = [sys.executable, ROOT / "tools" / "bootstrap.py", "clients"]
    subprocess.run(command, check=True, timeout=INSTALL_SECONDS)
    return ROOT / ".venv" / "clients" / "bin" / "python"


def run_cases(
    client: str, asked: dict[str, tuple[str, tuple[str, ...]]], variables: Mapping[str, str] | None = None
) -> dict[str, dict[str, Outcome]]:
    """Run cases of a client, or all of them where none are named, each at its URL.

    Args:
        client: the one whose driver it is.
        asked: name of a place -> its URL, and cases.
        variables: of its environment.

    Returns:
        What came of them, by the place and the case's name.
    """
    given = json.dumps({at: {"url": url, "cases": cases} for at, (url, cases) in asked.items()})
    # what of the clients' own code is deprecated is their affair
    command = [str(python()), "-W", "ignore", str(FOLDER / f"{client}_driver.py")]
    environment = {**os.environ, **OFFLINE, **(variables or {})}
    done = subprocess.run(
        command, input=given, check=False, capture_output=True, text=True, timeout=SECONDS, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(done.stdout)
    return {at: {name: Outcome(**outcome) for name, outcome in cases.items()} for at, cases in found.items()}


def check_answered(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return the answers, of cases that all have to have one."""
    failed = {name: outcome.traceback for name, outcome in outcomes.items() if outcome.error}
    assert not failed, "\n".join(f"{name}:\n{text}" for name, text in failed.items())
    return {name: outcome.answer for name, outcome in outcomes.items()}
