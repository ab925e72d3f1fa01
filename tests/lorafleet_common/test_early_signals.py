"""A container that is told to end in its first second ends: the kernel drops a signal that PID 1 has no handler for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.pod import SOURCES
from support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
TERM_BIT = 1 << (signal.SIGTERM - 1)


@pytest.mark.parametrize(
    ("package", "command"),
    [("lorafleet_inference", "serve"), ("lorafleet_gateway", "serve"), ("lorafleet_operator", "run")],
)
def test_sigterm_has_a_handler_before_anything_large_is_imported(package: str, command: str) -> None:
    path = os.pathsep.join(
        [*map(str, SOURCES), *(str(ROOT / part / "src") for part in ("operator", "gateway", "common"))]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", package, command],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    proc = Path("/proc") / str(process.pid)

    def has_handler() -> bool:
        assert process.poll() is None, "ended before it had a handler"
        line = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("SigCgt"))
        return bool(int(line.split()[1], 16) & TERM_BIT)

    try:
        wait_for("a handler", has_handler, timeout_seconds=60, interval_seconds=0.001)
        process.send_signal(signal.SIGSTOP)
        assert "pydantic_core" not in (proc / "maps").read_text()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
