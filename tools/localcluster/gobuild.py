"""The Go programs: all of Kubernetes in one, helm, and the pause process, built from the pinned module in gomod/."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from localcluster.artifacts import Artifact, content_key
from localcluster.errors import LocalClusterError
from localcluster.paths import PACKAGE
from localcluster.progress import Note, run

MODULE = PACKAGE / "gomod"
HELM_PACKAGE = "helm.sh/helm/v3/cmd/helm"
MIN_GO = (1, 21)
COMPONENTS = (
    "certificates",
    "coredns",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
)
GO_FOLDERS = ("/usr/local/go/bin", "/usr/lib/go/bin", "/snap/bin")


def version_of(module: str, go_mod: str) -> str:
    """Return the version that go.mod pins for a module, without its v."""
    found = re.search(rf"^\s*(?:require )?{re.escape(module)} v(\S+)", go_mod, re.MULTILINE)
    assert found is not None, f"{module} is not in go.mod"
    return found[1]


def linker_flags(go_mod: str) -> str:
    """Return the flags that stamp the programs with the versions they were built from."""
    kubernetes, helm = version_of("k8s.io/kubernetes", go_mod), version_of("helm.sh/helm/v3", go_mod)
    major, minor, _ = kubernetes.split(".", 2)
    stamp = "k8s.io/component-base/version"
    return (
        f"-X {stamp}.gitVersion=v{kubernetes} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
        f" -X helm.sh/helm/v3/internal/version.version=v{helm}"
    )


def build_command(go: str, go_mod: str, target: Path) -> list[str]:
    """Return the build's command line. Without the optimiser it takes half the time, and nothing here waits for the CPU."""
    flags = ["-trimpath", "-gcflags", "all=-N -l", "-ldflags", linker_flags(go_mod)]
    return [go, "build", "-v", *flags, "-o", f"{target}{os.sep}", ".", "./pause", HELM_PACKAGE]


def find_go() -> str | None:
    """Return the Go program, from PATH or where it usually lies."""
    if found := shutil.which("go"):
        return found
    candidates = [Path(folder) / "go" for folder in GO_FOLDERS]
    candidates += sorted(Path("/usr/lib").glob("go-*/bin/go"), reverse=True)
    return next((str(path) for path in candidates if os.access(path, os.X_OK)), None)


def parse_go_version(text: str) -> tuple[int, int] | None:
    """Return (major, minor) of what `go version` prints."""
    found = re.search(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def go_problem() -> str | None:
    """Say in a sentence why Go cannot build this, or None."""
    advice = f"install Go {MIN_GO[0]}.{MIN_GO[1]} or newer from go.dev/dl into /usr/local/go"
    go = find_go()
    if go is None:
        return f"Go is not installed; {advice}."
    done = subprocess.run(
        [go, "version"], check=False, capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"}
    )
    version = parse_go_version(done.stdout)
    if version is None or version < MIN_GO:
        return f"{go} is too old ({done.stdout.strip() or done.stderr.strip()}); {advice}."
    return None


def programs(note: Note) -> Artifact:
    """Return the artifact: bin/ with kubectl and helm, libexec/ with the components and pause."""
    go_mod = (MODULE / "go.mod").read_text()

    def build(folder: Path) -> None:
        go = find_go()
        if go is None:
            raise LocalClusterError(str(go_problem()))
        compile_programs(go, go_mod, folder / "libexec", note)
        install(folder)

    flags = " ".join(build_command("go", go_mod, Path("out")))
    return Artifact("programs", content_key(MODULE, flags, " ".join(COMPONENTS), platform.machine()), build)


def compile_programs(go: str, go_mod: str, target: Path, note: Note) -> None:
    """Run the Go build."""
    # The settings of the user's own projects must not leak into this build; the proxy and cache settings may.
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "auto",
        "GOWORK": "off",
        "HOME": os.environ.get("HOME") or "/root",
    }
    note("fetching Go modules (770 MB the first time)")
    listed = run(
        [go, "list", "-deps", "-f", "{{.ImportPath}}", ".", "./pause", HELM_PACKAGE],
        environment=environment,
        folder=MODULE,
        on_line=lambda line: note(f"fetching Go modules, at {line.split()[-2]}") if "downloading" in line else None,
    )
    num_packages = sum("downloading" not in line for line in listed.splitlines())
    num_done = 0

    def on_line(_: str) -> None:
        nonlocal num_done
        num_done += 1
        note(f"compiling Kubernetes, {num_done} of {num_packages} packages")

    note("compiling Kubernetes")
    run(build_command(go, go_mod, target), environment=environment, folder=MODULE, on_line=on_line)


def install(folder: Path) -> None:
    """Give the programs their names and try one."""
    (folder / "bin").mkdir()
    libexec = folder / "libexec"
    for component in COMPONENTS:
        (libexec / component).symlink_to("localcluster")
    (folder / "bin" / "kubectl").symlink_to("../libexec/localcluster")
    (libexec / "helm").rename(folder / "bin" / "helm")
    run([folder / "bin" / "kubectl", "version", "--client"])
