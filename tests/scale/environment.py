"""On what a run was measured."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("aiohttp", "kopf", "kubernetes", "pydantic")


def describe() -> dict[str, Any]:
    """Return hardware, versions and commit."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    modules = (ROOT / "tools" / "localcluster" / "gomod" / "go.mod").read_text()
    kubernetes = re.search(r"k8s.io/kubernetes v(\S+)", modules)
    changes = "+changes" if _git("status", "--porcelain", "-uno") else ""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short=12", "HEAD") + changes,
        "cpu": cpu[1].strip() if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else 0,
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "kube_apiserver": f"{kubernetes[1] if kubernetes else ''}, built without the optimiser (tools/localcluster), GOGC=400",
        **{name: metadata.version(name) for name in PACKAGES},
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip()
