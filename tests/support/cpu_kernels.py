"""The CPU's kernels, compiled once for all processes of a run: `python -m support.cpu_kernels` does it, if nobody has.

It takes 30 seconds of a core, and processes that need them at the same time would each take that.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = Path(tempfile.gettempdir()) / f"lorafleet-test-kernels-{os.getuid()}"
"""Where Numba keeps what it has compiled, for tests and what they start: outside the checkout, and kept between runs."""
_SOURCES = ROOT / "inference/src/lorafleet_inference/kernels"
_COMPILE = [sys.executable, "-m", "support.cpu_kernels"]


@cache
def compiled() -> Path:
    """Return KERNELS when they are there: whoever comes first compiles them, and the others wait.

    Raises:
        subprocess.CalledProcessError: they cannot be compiled.
    """
    KERNELS.mkdir(parents=True, exist_ok=True)
    with (KERNELS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _done().exists():
            subprocess.run([*_COMPILE, "now"], check=True, env=_environment())
            _done().touch()
    return KERNELS


def with_kernels(folder: Path) -> dict[str, str]:
    """Return an environment in which a benchmark finds its kernels, in a cache in this folder."""
    kept = folder / "cache/lorafleet/benchmarks/kernels"
    kept.parent.mkdir(parents=True)
    kept.symlink_to(compiled())
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}


def compile_meanwhile() -> "subprocess.Popen[bytes]":
    """Start compiling them in a process, which ends at once if they are there."""
    return subprocess.Popen(_COMPILE, env=_environment())


def _done() -> Path:
    """A file that is there when these sources are compiled. Numba, too, goes by their place, time and size."""
    files = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(_SOURCES.glob("*.py"))]
    known = repr((sys.version, version("numba"), files))
    return KERNELS / f".compiled-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


def _environment() -> dict[str, str]:
    paths = [str(ROOT / part) for part in ("contract/src", "common/src", "inference/src", "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NUMBA_CACHE_DIR": str(KERNELS)}


def _compile() -> None:
    from lorafleet_inference.kernels.cpu import load_kernels

    assert load_kernels(str(KERNELS)) is not None


if __name__ == "__main__":
    _compile() if "now" in sys.argv else compiled()
