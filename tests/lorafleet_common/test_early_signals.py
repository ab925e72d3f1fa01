"""A container that is told to end in its first second ends: the kernel drops a signal that PID 1 has no handler for."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.pod import SOURCES
from support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
TERM_BIT = 1 << (signal.SIGTERM - 1)


@contextmanager
def stopped_with_a_handler(package: str, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program and stop it as soon as it is seen to have a handler for SIGTERM."""
    path = os.pathsep.join(
        [*map(str, SOURCES), *(str(ROOT / part / "src") for part in ("operator", "gateway", "common"))]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", package, command],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def has_handler() -> bool:
        assert process.poll() is None, "ended before it had a handler"
        status = Path(f"/proc/{process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(line.split()[1], 16) & TERM_BIT)

    try:
        wait_for("a handler", has_handler, interval_seconds=0.001)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("package", "command"),
    [("lorafleet_inference", "serve"), ("lorafleet_gateway", "serve"), ("lorafleet_operator", "run")],
)
def test_sigterm_has_a_handler_before_anything_large_is_imported(package: str, command: str) -> None:
    for _ in range(20):  # on a busy machine it may come far between two looks at it
        with stopped_with_a_handler(package, command) as process:
            if "pydantic_core" not in Path(f"/proc/{process.pid}/maps").read_text():
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGCONT)
                assert process.wait(60) == 128 + signal.SIGTERM
                return
    raise AssertionError("something large is imported first")
