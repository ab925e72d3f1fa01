"""The two images of the local cluster, made without a registry: a thin Debian with Python, and the pause process."""

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from localcluster.artifacts import Artifact, content_key
from localcluster.debian import KEYRING, unpacked
from localcluster.progress import Note, run

PYTHON_IMAGE = "docker.io/library/lorafleet-python:local"
PAUSE_IMAGE = "docker.io/library/lorafleet-pause:local"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "libgomp1", "python3")
UNNEEDED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def python_image(note: Note) -> Artifact:
    """Return the artifact whose image.tar is `PYTHON_IMAGE`: Debian's Python 3.11, and nothing of ours."""

    def build(folder: Path) -> None:
        root = folder / "root"
        note("making the base image")
        debootstrap(root, note)
        slim(root)
        layer = folder / "layer.tar"
        with tarfile.open(layer, "w", format=tarfile.GNU_FORMAT) as archive:
            archive.add(root, arcname=".")
        shutil.rmtree(root)
        write_image(layer, folder / "image.tar", PYTHON_IMAGE, {"Cmd": ["python3"]})
        layer.unlink()

    return Artifact("python-image", content_key(SUITE, *PACKAGES, *UNNEEDED, PYTHON_IMAGE, platform.machine()), build)


def debootstrap(root: Path, note: Note) -> None:
    """Unpack a minimal Debian below `root`."""
    packages = ["debootstrap"] if KEYRING.exists() else ["debian-archive-keyring", "debootstrap"]
    tools = unpacked(tuple(packages), lambda _: None).prepare()
    keyring = KEYRING if KEYRING.exists() else tools / KEYRING.relative_to("/")
    command = [
        # In a mount namespace of its own, so that an interrupted run leaves no /proc mounted in the tree.
        *("unshare", "--mount", "--propagation", "private", "sh", str(tools / "usr" / "sbin" / "debootstrap")),
        *("--variant=minbase", f"--include={','.join(PACKAGES)}", f"--keyring={keyring}", SUITE, str(root)),
    ]
    if mirror := apt_mirror():
        command.append(mirror)
    environment = {**os.environ, "DEBOOTSTRAP_DIR": str(tools / "usr" / "share" / "debootstrap")}

    def on_line(line: str) -> None:
        note(f"making the base image: {line.removeprefix('I: ').rstrip('.').lower()}")

    run(command, environment=environment, on_line=on_line)


def apt_mirror() -> str | None:
    """Return the mirror that this machine uses for the suite, if it is the same Debian."""
    done = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)",
            f"Codename: {SUITE}",
            "Created-By: Packages",
            "Label: Debian",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    return next(iter(done.stdout.split()), None)


def slim(root: Path) -> None:
    """Remove what no pod reads."""
    for path in UNNEEDED:
        shutil.rmtree(root / path, ignore_errors=True)
        (root / path).mkdir(parents=True)
    for name in ("resolv.conf", "hostname"):
        (root / "etc" / name).unlink(missing_ok=True)


def pause_image(program: Path, target: Path) -> None:
    """Write `PAUSE_IMAGE`, which holds nothing but the pause program, as an archive."""
    layer = target.with_suffix(".layer")
    with tarfile.open(layer, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(program, arcname="pause")
    write_image(layer, target, PAUSE_IMAGE, {"Entrypoint": ["/pause"], "User": "65535:65535"})
    layer.unlink()


def write_image(layer: Path, target: Path, name: str, config: Mapping[str, object]) -> None:
    """Write an image of one layer in the archive format of `docker save`, which containerd imports."""
    with layer.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    description = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            **config,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "lorafleet localcluster"}],
    }
    encoded = json.dumps(description).encode()
    config_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(layer, arcname=f"{digest}/layer.tar")
        for file_name, blob in ((config_name, encoded), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(file_name)
            entry.size = len(blob)
            archive.addfile(entry, io.BytesIO(blob))
