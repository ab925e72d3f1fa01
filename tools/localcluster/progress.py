"""Steps that run side by side, each with progress and elapsed time."""

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from localcluster.errors import LocalClusterError

HEARTBEAT_SECONDS = 20
Note = Callable[[str], None]
T = TypeVar("T")


@dataclass(slots=True)
class Progress:
    """Prints a line when a step starts, now and then while it runs, and when it ends."""

    quiet: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, name: str, text: str) -> None:
        """Print one line about a step."""
        if not self.quiet:
            with self._lock:
                print(f"  {name + ':':<22} {text}", file=sys.stderr, flush=True)

    def step(self, name: str, action: Callable[[Note], T]) -> T:
        """Run a step; what it last noted is repeated with the time while it runs."""
        begin = time.monotonic()
        noted = ""
        done = threading.Event()

        def note(text: str) -> None:
            nonlocal noted
            if not noted:
                self.say(name, text)
            noted = text

        def heartbeat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                self.say(name, f"{noted or 'at it'}, {elapsed(begin)}")

        thread = threading.Thread(target=heartbeat, daemon=True)
        thread.start()
        try:
            result = action(note)
        except BaseException:
            self.say(name, f"failed after {elapsed(begin)}")
            raise
        finally:
            done.set()
            thread.join()
        if noted:
            self.say(name, f"done in {elapsed(begin)}")
        return result

    def side_by_side(self, steps: Mapping[str, Callable[[Note], T]]) -> dict[str, T]:
        """Run steps at the same time and return their results by name; the first failure is raised when all have ended."""
        with ThreadPoolExecutor(len(steps)) as pool:
            futures = {name: pool.submit(self.step, name, action) for name, action in steps.items()}
        return {name: future.result() for name, future in futures.items()}


def elapsed(begin: float) -> str:
    """Return the time since `begin` (monotonic seconds), as a person reads it."""
    seconds = time.monotonic() - begin
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Run a command that must succeed and return what it printed, stdout and stderr together.

    Raises:
        LocalClusterError: it failed or is missing; carries its last lines.
    """
    last: deque[str] = deque(maxlen=12)
    lines = []
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise LocalClusterError(f"{command[0]} is not installed; install it and run the same command again.") from None
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            last.append(line.rstrip())
            lines.append(line)
            if on_line is not None:
                on_line(line.rstrip())
    if process.returncode != 0:
        shown = " ".join(str(word) for word in command)
        raise LocalClusterError(
            f"`{shown}` failed with status {process.returncode}; mend what it says and run the same command again:\n"
            + "\n".join(f"    {line}" for line in last)
        )
    return "".join(lines)
