"""On what a result was measured."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "peft", "numba", "numpy", "uvicorn")


def describe(device: str) -> dict[str, str | int]:
    """Return hardware, versions and commit."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    found: dict[str, str | int] = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit_of(ROOT),
        "cpu": cpu[1].strip() if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else 0,
        "load_at_start": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    }
    found |= {name: metadata.version(name) for name in PACKAGES}
    if device == "cuda":
        import torch  # noqa: PLC0415  only these lines need it

        found["triton"] = metadata.version("triton")
        found["gpu"] = torch.cuda.get_device_name()
    return found


def commit_of(checkout: Path) -> str:
    """Return what is checked out, and whether it was changed; nothing where there is no git."""
    commit = _git(checkout, "rev-parse", "--short=12", "HEAD")
    return commit + ("+changes" if _git(checkout, "status", "--porcelain", "-uno") else "")


def _git(checkout: Path, *arguments: str) -> str:
    """Return what git says; nothing where there is no git."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *arguments], cwd=checkout, check=False, capture_output=True, text=True)
    return done.stdout.strip()
