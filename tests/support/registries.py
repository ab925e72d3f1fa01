"""A real container registry, distribution's, and the `oras` that pushes to it: built from Go modules once a machine."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from localcluster.artifacts import Artifact, content_key
from localcluster.gobuild import find_go, go_problem
from localcluster.progress import run

MODULE = Path(__file__).parent / "registry"
ORAS = "oras.land/oras/cmd/oras"
FLAGS = ("-trimpath", "-gcflags", "all=-N -l")
"""Without the optimiser it takes half the time."""
USERNAME, PASSWORD = "robot", "secret-of-tests"
HTPASSWD = f"{USERNAME}:$2b$05$abcdefghijklmnopqrstuuw96Ltup7pGh2qN94fVvgzzZyRtkpRBq\n"
START_SECONDS = 60.0
LISTENING = re.compile(r"listening on ([\d.]+:\d+)")


@cache
def programs() -> Path:
    """Return the folder with `registry` and `oras`, built if need be: about 80 seconds of CPU time, and 20 MB to download."""

    def build(folder: Path) -> None:
        go = find_go()
        assert go is not None, go_problem()
        environment = {
            **os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "auto", "GOWORK": "off",
        }  # fmt: skip
        run([go, "build", *FLAGS, "-o", f"{folder}{os.sep}", ".", ORAS], environment=environment, folder=MODULE)

    return Artifact("registry", content_key(MODULE, " ".join(FLAGS), platform.machine()), build).prepare()


@dataclass(frozen=True)
class ServedRegistry:
    """A registry that keeps its blobs below `root`."""

    address: str
    """Host and port."""
    root: Path
    options: tuple[str, ...]
    """Of `oras`, to be let in."""
    authorities: str | None = None
    """PEM of who has signed its certificate; None: it speaks plain http."""

    @property
    def url(self) -> str:
        return f"{'http' if self.authorities is None else 'https'}://{self.address}"

    def push(self, reference: str, folder: Path, *files: str, options: tuple[str, ...] = ()) -> str:
        """Push files of a folder, as `PATH` or `PATH:MEDIA_TYPE`, and return the digest of the manifest."""
        command = ["push", *self.options, "--format", "json", *options]
        return str(json.loads(oras(*command, f"{self.address}/{reference}", *files, folder=folder))["digest"])

    def blob(self, digest: str) -> Path:
        """Return the file of a blob."""
        hexadecimal = digest.removeprefix("sha256:")
        return self.root / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"


def oras(*arguments: str, folder: Path) -> str:
    """Run `oras` and return what it prints."""
    environment = {**os.environ, "DOCKER_CONFIG": str(folder / "no-docker-config")}
    command = [str(programs() / "oras"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serve_registry(root: Path, *, is_private: bool = False, has_tls: bool = False) -> Iterator[ServedRegistry]:
    """Serve a registry as a process; a private one lets USERNAME in with PASSWORD, and one with TLS has signed for itself."""
    root.mkdir(parents=True)
    http: dict[str, object] = {"addr": "127.0.0.1:0"}
    options = ["--username", USERNAME, "--password", PASSWORD] if is_private else []
    certificate = root / "tls.crt"
    if has_tls:
        http["tls"] = {"certificate": str(certificate), "key": str(new_certificate(certificate))}
    options += ["--ca-file", str(certificate)] if has_tls else ["--plain-http"]
    log, configuration = root / "log", root / "config.yml"
    document: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(root)}},
        "http": http,
    }
    if is_private:
        (root / "htpasswd").write_text(HTPASSWD)
        document["auth"] = {"htpasswd": {"realm": "tests", "path": str(root / "htpasswd")}}
    configuration.write_text(json.dumps(document))
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    with log.open("wb") as output:
        command = [str(programs() / "registry"), "serve", str(configuration)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        authorities = certificate.read_text() if has_tls else None
        yield ServedRegistry(_wait_listening(process, log), root, tuple(options), authorities)
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def new_certificate(target: Path) -> Path:
    """Write a certificate for the loopback that signs itself, and return its key."""
    key = target.with_suffix(".key")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-subj",
        "/CN=registry",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(target),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return key


def _wait_listening(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while (found := LISTENING.search(log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"the registry does not listen\n{log.read_text()}"
        time.sleep(0.02)
    return found[1]
