"""`make images`: the images of the Dockerfiles, with docker, podman or buildah, whichever is there and works.

BASE=local makes them on a thin Debian that tools/localcluster makes from Debian's packages, where no registry is reached.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bootstrap
from localcluster.images import PYTHON_IMAGE, python_image

ROOT = Path(__file__).resolve().parent.parent
BUILDERS = ("docker", "podman", "buildah")
LOCAL_BUILD_IMAGE = "localhost/lorafleet-build:local"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
EPOCH = "315532800"
"""Time of all files in the layers, 1980: the same lock and sources make the same layers, which need no second push."""
FILES = {
    "operator": "Dockerfile.operator",
    "gateway": "Dockerfile.operator",
    "demo-sources": "Dockerfile.operator",
    "inference": "Dockerfile.inference",
}
"""Target and image name -> file."""
LOCAL_ARGUMENTS = {"inference": ("DRIVER_PACKAGES=gcc libc6-dev libpython3-dev", "TRITON_DRIVER=optional")}
"""Target -> what it needs besides on the base from Debian's packages, whose build steps may reach no network."""


@dataclass(frozen=True, slots=True)
class Builder:
    """A program that builds images."""

    program: str

    def build(self, tag: str, context: Path, *arguments: str) -> None:
        """Build one image. Its RUN steps see a file limit that unpacking many packages at once needs."""
        own = {
            "docker": ["build"],
            "podman": ["build", "--layers", "--timestamp", EPOCH],
            "buildah": ["build", "--layers", "--timestamp", EPOCH, "--isolation", "chroot"],
        }[self.program]
        run(self.program, *own, "--ulimit", "nofile=20000:20000", "--tag", tag, *arguments, str(context))

    def load(self, archive: Path) -> None:
        """Take in an image from a `docker save` archive."""
        if self.program == "buildah":
            run("buildah", "pull", "--quiet", f"docker-archive:{archive}")
        else:
            run(self.program, "load", "--quiet", "--input", str(archive))


def find_builder(wanted: str | None) -> Builder:
    """Return the first builder that works; a docker client without its daemon does not."""
    for program in [wanted] if wanted else BUILDERS:
        if (
            shutil.which(program)
            and subprocess.run([program, "info"], check=False, capture_output=True).returncode == 0
        ):
            return Builder(program)
    missing = f"{wanted} does not work here" if wanted else "Neither docker nor podman nor buildah works here"
    sys.exit(f"{missing}. On Debian: apt-get install buildah")


def local_base(builder: Builder) -> list[str]:
    """Make the two base images from Debian's packages; return the build arguments that name them."""
    builder.load(python_image(lambda text: print(f"images: {text}", flush=True)).prepare() / "image.tar")
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copy(bootstrap.find_uv(), context / "uv")
        lines = [f"FROM {PYTHON_IMAGE}", "COPY uv /usr/local/bin/uv"]
        if CERTIFICATES.exists():  # whom this machine trusts; only build stages see it
            shutil.copy(CERTIFICATES, context / "certificates")
            lines.append(f"COPY certificates {CERTIFICATES}")
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        builder.build(LOCAL_BUILD_IMAGE, context, "--file", str(context / "Dockerfile"))
    return ["--build-arg", f"PYTHON_IMAGE={PYTHON_IMAGE}", "--build-arg", f"BUILD_IMAGE={LOCAL_BUILD_IMAGE}"]


def run(*command: str) -> None:
    """Run a command that must succeed; its own words explain a failure."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", "SOURCE_DATE_EPOCH": EPOCH}
    if subprocess.run(command, check=False, env=environment).returncode != 0:
        sys.exit(f"this failed: {' '.join(command)}")


def main() -> None:
    """Parse and build."""
    parser = argparse.ArgumentParser(prog="tools/images.py", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *FILES], help=f"default: all of {', '.join(FILES)}")
    parser.add_argument(
        "--registry", default="localhost/lorafleet", help="what names begin with (default: %(default)s)"
    )
    parser.add_argument("--tag", default="dev", help="default: %(default)s")
    parser.add_argument("--base", choices=["registry", "local"], default="registry")
    parser.add_argument("--builder", choices=BUILDERS, help="default: the first that works")
    arguments = parser.parse_args()
    builder = find_builder(arguments.builder)
    local = arguments.base == "local"
    base = local_base(builder) if local else []
    for target in arguments.targets or FILES:
        name = f"{arguments.registry}/{target}:{arguments.tag}"
        print(f"images: {name} with {builder.program}", flush=True)
        more = [word for value in LOCAL_ARGUMENTS.get(target, ()) if local for word in ("--build-arg", value)]
        builder.build(name, ROOT, "--file", str(ROOT / FILES[target]), "--target", target, *base, *more)
        print(f"images: {name} is ready", flush=True)


if __name__ == "__main__":
    main()
