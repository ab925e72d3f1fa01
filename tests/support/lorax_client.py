"""LoRAX's own client from its package, unmodified, in the environment of the clients."""

import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from support.client_programs import python

SECONDS = 300


@dataclass(frozen=True)
class Call:
    """One call of a client; `fields` are the keyword arguments."""

    prompt: str
    fields: dict[str, Any] = field(default_factory=dict)
    method: Literal["generate", "generate_stream", "embed"] = "generate"
    is_async: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def run(url: str, *calls: Call) -> list[dict[str, Any]]:
    """Run calls one after the other in a process; return `answer`, or `error` and `message`, of each."""
    given = json.dumps({"url": url, "calls": [asdict(call) for call in calls]})
    # the client's use of pydantic is deprecated, which is its own affair
    command = [str(python()), "-W", "ignore", str(Path(__file__).with_name("lorax_driver.py"))]
    done = subprocess.run(command, input=given, check=True, capture_output=True, text=True, timeout=SECONDS)
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)
    return outcomes


def answers(url: str, *calls: Call) -> list[Any]:
    """As `run`, where every call has to succeed."""
    outcomes = run(url, *calls)
    assert all("answer" in one for one in outcomes), outcomes
    return [one["answer"] for one in outcomes]
