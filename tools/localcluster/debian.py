"""What the machine lacks, from Debian packages: unpacked into the cache, and a few small tools installed."""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import bootstrap

from localcluster.artifacts import Artifact, content_key
from localcluster.errors import LocalClusterError
from localcluster.progress import Note, run

INSTALLED = {"ip": "iproute2", "iptables": "iptables", "nsenter": "util-linux", "unshare": "util-linux", "wget": "wget"}
"""Programs that must be the machine's own, and the packages they come from."""
CONTAINERD_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
CNI_PLUGINS = ("host-local", "loopback", "ptp")
CNI_FOLDERS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "DPkg::Lock::Timeout=120")


@dataclass(frozen=True, slots=True)
class ContainerTools:
    """Where the container runtime's programs lie: search path of the programs, folder of the CNI plug-ins."""

    search_path: str
    cni_folder: Path


def containerd_fits(version_text: str) -> bool:
    """Whether kubelet and our configuration take the containerd that prints this version: 1.6 or 1.7."""
    return re.search(r"\sv?1\.[67]\.\d", version_text) is not None


def host_has_containerd() -> bool:
    """Whether the machine's own containerd and runc serve."""
    if not all(shutil.which(program, path=SYSTEM_PATH) for program in CONTAINERD_PROGRAMS):
        return False
    done = subprocess.run(
        ["containerd", "--version"], check=False, capture_output=True, text=True, env={"PATH": SYSTEM_PATH}
    )
    return containerd_fits(done.stdout)


def host_cni_folder() -> Path | None:
    """Return the machine's own folder with all the CNI plug-ins that are needed."""
    return next((f for f in CNI_FOLDERS if all(os.access(f / name, os.X_OK) for name in CNI_PLUGINS)), None)


def container_tools(note: Note) -> ContainerTools:
    """Find the container runtime: the machine's own where it fits, else unpacked into the cache."""
    cni_folder = host_cni_folder()
    missing = [] if host_has_containerd() else ["containerd", "runc"]
    if cni_folder is None:
        missing.append("containernetworking-plugins")
    if not missing:
        assert cni_folder is not None
        return ContainerTools(SYSTEM_PATH, cni_folder)
    folder = unpacked(tuple(missing), note).prepare()
    search_path = f"{folder}/usr/sbin:{folder}/usr/bin:{SYSTEM_PATH}" if "containerd" in missing else SYSTEM_PATH
    tools = ContainerTools(search_path, cni_folder or folder / "usr" / "lib" / "cni")
    version = run(["containerd", "--version"], environment={"PATH": search_path})
    if not containerd_fits(version):
        raise LocalClusterError(
            f"This machine's package source has {version.strip()}, and containerd 1.6 or 1.7 is needed: use Debian 12."
        )
    return tools


def unpacked(packages: tuple[str, ...], note: Note) -> Artifact:
    """Return the artifact that holds the packages' files, as below /."""

    def build(folder: Path) -> None:
        note(f"unpacking {', '.join(packages)} into the cache")
        need_apt(packages)
        downloads = folder / "downloads"
        downloads.mkdir()
        with bootstrap.apt_lock():
            try:
                run([*APT, "download", *packages], folder=downloads)
            except LocalClusterError:
                run([*APT, "update"])
                run([*APT, "download", *packages], folder=downloads)
        for package in sorted(downloads.glob("*.deb")):
            run(["dpkg", "-x", package, folder])
        shutil.rmtree(downloads)

    return Artifact(
        "debian", content_key(" ".join(packages), platform.machine(), platform.freedesktop_os_release()["ID"]), build
    )


def install_missing(note: Note) -> None:
    """Install the small tools that the machine must have itself."""
    packages = sorted(
        {package for program, package in INSTALLED.items() if not shutil.which(program, path=SYSTEM_PATH)}
    )
    if not packages:
        return
    need_apt(tuple(packages))
    note(f"installing {', '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = [*APT, "install", "-y", "--no-install-recommends", *packages]
    with bootstrap.apt_lock():
        try:
            run(command, environment=environment)
        except LocalClusterError:
            run([*APT, "update"])
            run(command, environment=environment)


def need_apt(packages: tuple[str, ...]) -> None:
    """Stop on a machine that has no apt.

    Raises:
        LocalClusterError: it has none.
    """
    if not shutil.which("apt-get", path=SYSTEM_PATH):
        raise LocalClusterError(
            f"This machine has no apt-get; install {', '.join(packages)} by its own means and run again."
        )
