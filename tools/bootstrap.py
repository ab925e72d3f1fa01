#!/usr/bin/env python3
"""Makes `.venv` from requirements/dev.txt: the environment of make demo, make test and make lint.

With the argument `clients` it makes `.venv/clients` from requirements/clients.txt instead: other servers' clients, which the tests run.

Needs nothing but Python 3.11 or newer: uv is taken from PATH, else unpacked, pinned by hash, into the cache. Runs again only when the
lock, the interpreter or a pyproject.toml changed; an interrupted run is repaired by the next.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements" / "dev.txt"
CLIENTS = VENV / "clients"
CLIENTS_LOCK = ROOT / "requirements" / "clients.txt"
UV_LOCK = ROOT / "requirements" / "uv.txt"
PACKAGES = ("contract", "common", "operator", "gateway", "inference")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet"
NEEDED_BYTES = 12 << 30


def main() -> None:
    """Make the environment, or leave it alone when it is up to date."""
    if sys.version_info < (3, 11):  # noqa: UP036  whoever runs this may have an older one
        sys.exit(
            f"lorafleet needs Python 3.11 or newer; this is {sys.version.split()[0]}. On Debian 12: apt-get install python3"
        )
    stamp = VENV / "lorafleet.stamp"
    key = fingerprint()
    with (ROOT / ".bootstrap.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # make test and make demo may start together
        if stamp.exists() and stamp.read_text() == key and (VENV / "bin" / "python").exists():
            return
        check_disk()
        uv = find_uv()
        print(
            "environment: installing the locked packages into .venv (about 5 GB, half a minute on a fast line)",
            flush=True,
        )
        stamp.unlink(missing_ok=True)
        run(uv, "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, str(VENV))
        run(uv, "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK))
        editable = [argument for package in PACKAGES for argument in ("-e", str(ROOT / package))]
        run(uv, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *editable)
        stamp.write_text(key)
        print("environment: ready", flush=True)


def make_clients() -> None:
    """Make the environment of the clients, or leave it alone when it is up to date."""
    stamp, key = CLIENTS / "lorafleet.stamp", hashlib.sha256(CLIENTS_LOCK.read_bytes()).hexdigest()
    with (ROOT / ".bootstrap.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == key and (CLIENTS / "bin" / "python").exists():
            return
        uv = find_uv()
        run(uv, "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, str(CLIENTS))
        python = str(CLIENTS / "bin" / "python")
        run(uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", str(CLIENTS_LOCK))
        stamp.write_text(key)


def fingerprint() -> str:
    """What the environment was made from."""
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n".encode())
    for path in (LOCK, *(ROOT / package / "pyproject.toml" for package in PACKAGES)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_disk() -> None:
    """Stop with one sentence when the packages cannot fit."""
    free = shutil.disk_usage(ROOT).free
    if free < NEEDED_BYTES and not VENV.exists():
        sys.exit(
            f"lorafleet needs {NEEDED_BYTES >> 30} GiB of free disk for its packages; {ROOT} has {free / 2**30:.1f}."
        )


def find_uv() -> str:
    """Return the path of uv, from PATH or unpacked into the cache."""
    if found := shutil.which("uv"):
        return found
    folder = CACHE / "uv" / hashlib.sha256(UV_LOCK.read_bytes()).hexdigest()[:16]
    binary = folder / "bin" / "uv"
    if not binary.exists():
        if subprocess.run([sys.executable, "-m", "pip", "--version"], check=False, capture_output=True).returncode != 0:
            install_pip()
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--require-hashes")
        run(*pip, "--target", str(folder), "-r", str(UV_LOCK))
    return str(binary)


def install_pip() -> None:
    """Debian's python3 comes without pip."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit("lorafleet needs uv or pip. On Debian 12: apt-get install python3-pip")
    with apt_lock():
        run("apt-get", "update", "-qq")
        run(
            "apt-get", "install", "-y", "-qq", "-o", "DPkg::Lock::Timeout=120", "--no-install-recommends", "python3-pip"
        )


@contextlib.contextmanager
def apt_lock() -> Iterator[None]:
    """Let one of our tools at a time use apt, which refuses to run twice."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str) -> None:
    """Run a command that must succeed; its own words explain a failure."""
    environment = {**os.environ, "VIRTUAL_ENV": str(VENV), "DEBIAN_FRONTEND": "noninteractive"}
    if subprocess.run(command, check=False, env=environment).returncode != 0:
        sys.exit(f"this failed: {' '.join(command)}\nMend what it says and run the same command again.")


if __name__ == "__main__":
    make_clients() if sys.argv[1:] == ["clients"] else main()
