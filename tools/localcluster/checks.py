"""What a machine must have, each as one sentence that says what to do when it has not."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from localcluster.artifacts import Artifact
from localcluster.cgroups import hierarchies
from localcluster.errors import LocalClusterError
from localcluster.gobuild import go_problem, programs
from localcluster.images import ARCHITECTURES, python_image
from localcluster.paths import STATE_ROOT, cache_root

MIN_KERNEL = (5, 4)
MIN_MEMORY_BYTES = 4 << 30
GIB = 1 << 30
BUILD_BYTES = 6 * GIB
"""Go modules, Go's build cache and the programs."""
IMAGE_BYTES = GIB
PACKAGES_BYTES = 6 * GIB
"""The pods' Python packages and what was downloaded for them."""
STATE_BYTES = 2 * GIB
"""A running cluster: the unpacked image, etcd, logs."""


def check_machine(packages: list[Artifact]) -> None:
    """Stop when a cluster cannot run here.

    Raises:
        LocalClusterError: with one sentence for each thing that is missing.
    """
    checks: tuple[Callable[[], str | None], ...] = (
        check_system,
        check_root,
        check_kernel,
        check_memory,
        check_cgroups,
        check_namespaces,
        check_go,
        lambda: check_disk(packages),
    )
    problems = []
    for check in checks:
        if problem := check():
            problems.append(problem)
            if check in {check_system, check_root}:
                break
    if problems:
        raise LocalClusterError("\n".join(problems))


def check_system() -> str | None:
    """Linux on a processor that Debian's packages exist for."""
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        return f"The local cluster runs on Linux on x86_64 or aarch64; this is {platform.system()} on {platform.machine()}."
    return None


def check_root() -> str | None:
    """Namespaces, devices and mounts need root."""
    return None if os.geteuid() == 0 else "The local cluster needs root; run the same command with `sudo -E`."


def check_kernel() -> str | None:
    """What kubelet and kube-proxy need."""
    version = parse_kernel(platform.release())
    if version < MIN_KERNEL:
        return f"The kernel is too old ({platform.release()}); Linux {MIN_KERNEL[0]}.{MIN_KERNEL[1]} or newer is needed, as in Debian 12."
    filesystems = Path("/proc/filesystems").read_text().split()
    if (
        "overlay" not in filesystems
        and subprocess.run(["modprobe", "overlay"], check=False, capture_output=True).returncode != 0
    ):
        return "The kernel has no overlay file system; load it with `modprobe overlay`."
    return None


def parse_kernel(release: str) -> tuple[int, int]:
    """Return (major, minor) of a kernel release such as 6.1.0-38-amd64."""
    major, minor = release.split("-", maxsplit=1)[0].split(".")[:2]
    return int(major), int("".join(character for character in minor if character.isdigit()))


def check_memory() -> str | None:
    """The components take about one GiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total < MIN_MEMORY_BYTES:
        return f"The machine has {total / GIB:.1f} GiB of memory; {MIN_MEMORY_BYTES // GIB} GiB are needed."
    return None


def check_cgroups() -> str | None:
    """Kubelet needs them writable."""
    found = hierarchies()
    if not found or not all(os.access(path, os.W_OK) for path in found):
        return "/sys/fs/cgroup is not mounted writable; in a container, run it with `--privileged`."
    return None


def check_namespaces() -> str | None:
    """A container without privileges may be root and still get none."""
    if not shutil.which("unshare"):
        return None  # installed on the way
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "true"],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        return f"This root may not make namespaces ({done.stderr.strip()}); in a container, run it with `--privileged`."
    return None


def check_go() -> str | None:
    """Only when there is something to build."""
    return None if programs(lambda _: None).folder.exists() else go_problem()


def check_disk(packages: list[Artifact]) -> str | None:
    """Room for what is not in the cache yet, and for the cluster."""
    needed = missing_bytes(packages)
    for folder, num_bytes, what in (
        (cache_root(), needed, "the cache"),
        (STATE_ROOT, STATE_BYTES, "the cluster's state"),
    ):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < num_bytes:
            have = f"{folder} has {free / GIB:.1f} GiB of free disk, and {num_bytes / GIB:.0f} GiB are needed"
            return f"{have} for {what}; make room{_or_elsewhere(folder)}."
    return None


def missing_bytes(packages: list[Artifact]) -> int:
    """Return the bytes that preparing everything still takes."""
    needed = 0 if programs(lambda _: None).folder.exists() else BUILD_BYTES
    needed += 0 if python_image(lambda _: None).folder.exists() else IMAGE_BYTES
    return needed + (0 if all(artifact.folder.exists() for artifact in packages) else PACKAGES_BYTES)


def _or_elsewhere(folder: Path) -> str:
    return " or set XDG_CACHE_HOME to a folder of a larger disk" if folder == cache_root() else ""
