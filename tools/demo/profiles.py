"""What differs between the local cluster and one that is at hand: images, volumes, and how the gateway is reached.

`LocalProfile` runs pods of a thin Python image with dependencies and source mounted from the node. `CurrentProfile` runs the images of the
Dockerfiles on whatever KUBECONFIG names.
"""

import contextlib
import copy
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Protocol

from demo.kube import Kube
from demo.needs import lacking, look
from demo.progress import DemoError

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
DEPS_MOUNT = "/opt/lorafleet/dependencies"
SOURCE_MOUNT = "/opt/lorafleet/source"
SYSTEM = "lorafleet-system"


class Profile(Protocol):
    """How to put the fleet on one kind of cluster."""

    name: str
    kube: Kube

    def chart_values(self) -> dict[str, Any]:
        """Values for charts/lorafleet."""

    def support_manifests(self) -> list[str]:
        """What the examples take for granted: the models' volume, an S3 server, a hub, their Secrets."""

    def patch_base(self, base: dict[str, Any]) -> dict[str, Any]:
        """The example's BaseModelDeployment with what this cluster needs."""

    def gateway_url(self) -> contextlib.AbstractContextManager[str]:
        """URL of the gateway as this machine reaches it, while the context lasts."""

    def environment(self) -> list[str]:
        """Lines for a shell that wants to talk to the cluster."""

    def lacking(self) -> list[str]:
        """What the cluster lacks for the demo."""


@dataclass(frozen=True, slots=True)
class LocalProfile:
    """tools/localcluster."""

    name: str
    kube: Kube
    image: str
    operator_dependencies: Path
    inference_dependencies: Path
    bin_dir: Path

    def lacking(self) -> list[str]:
        """Nothing: tools/localcluster has made it for the demo."""
        return []

    def chart_values(self) -> dict[str, Any]:
        """Thin image, hostPath dependencies and source."""
        local = {
            "image": {
                "repository": self.image.rpartition(":")[0],
                "tag": self.image.rpartition(":")[2],
                "pullPolicy": "Never",
            },
            "extraEnv": [
                {"name": "PYTHONPATH", "value": python_path()},
                {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
            ],
            "extraVolumes": volumes(self.operator_dependencies),
            "extraVolumeMounts": mounts(),
        }
        return {"operator": {**local, "engineImage": self.image}, "gateway": {**local, "replicas": 1}}

    def support_manifests(self) -> list[str]:
        """Volume first, then the servers; credentials are new each time they are made."""
        values = {
            "models": ROOT / "models",
            "image": self.image,
            "deps": self.inference_dependencies,
            "deps_mount": DEPS_MOUNT,
            "source": ROOT,
        }
        storage = Template((HERE / "local" / "storage.yaml").read_text()).substitute(values)
        return [storage, sources(self.kube, HERE / "local" / "sources.yaml", values)]

    def patch_base(self, base: dict[str, Any]) -> dict[str, Any]:
        """Engine pods run from the same mounts."""
        patched = copy.deepcopy(base)
        patched["spec"]["engine"].update({"image": self.image, "imagePullPolicy": "Never"})
        pod = patched["spec"]["podTemplate"]["spec"]
        pod["volumes"] = volumes(self.inference_dependencies)
        pod["containers"][0] |= {
            "env": [{"name": "PYTHONPATH", "value": python_path()}, {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
            "volumeMounts": mounts(),
        }
        return patched

    @contextlib.contextmanager
    def gateway_url(self) -> Iterator[str]:
        """The ClusterIP: kube-proxy serves it on the host too."""
        service = self.kube.get("service", "lorafleet-gateway", "-n", SYSTEM)
        yield f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def environment(self) -> list[str]:
        """PATH with kubectl and helm, KUBECONFIG."""
        return [f'export PATH="{self.bin_dir}:$PATH"', f'export KUBECONFIG="{self.kube.kubeconfig}"']


@dataclass(frozen=True, slots=True)
class CurrentProfile:
    """The cluster that kubectl talks to; `make images` made the images and the reader brought them there."""

    name: str
    kube: Kube
    registry: str
    tag: str

    def lacking(self) -> list[str]:
        """What no cluster can be assumed to have."""
        return lacking(look(self.kube))

    def chart_values(self) -> dict[str, Any]:
        """The Dockerfiles' images."""
        return {
            "operator": {"image": self._image("operator"), "engineImage": f"{self.registry}/inference:{self.tag}"},
            "gateway": {"image": self._image("gateway")},
        }

    def support_manifests(self) -> list[str]:
        """The same servers from the image `demo-sources`, which carries the models."""
        values = {"image": f"{self.registry}/demo-sources:{self.tag}"}
        return [sources(self.kube, HERE / "current" / "sources.yaml", values)]

    def patch_base(self, base: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the example is what a platform engineer applies."""
        return base

    @contextlib.contextmanager
    def gateway_url(self) -> Iterator[str]:
        """A port-forward for as long as the demo runs."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        forward = subprocess.Popen(
            [self.kube.kubectl_path, "port-forward", "-n", SYSTEM, "service/lorafleet-gateway", f"{port}:80"],
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for_port(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            forward.terminate()
            forward.wait()

    def environment(self) -> list[str]:
        """The shell has its own already."""
        return []

    def _image(self, name: str) -> dict[str, str]:
        return {"repository": f"{self.registry}/{name}", "tag": self.tag}


def load_profile(description: dict[str, Any]) -> Profile:
    """Build the profile from what the first half of the demo found.

    Raises:
        DemoError: kubectl or helm is missing for CLUSTER=current.
    """
    if description["cluster"] == "local":
        return LocalProfile(
            name=description["name"],
            kube=Kube(description["kubectl"], description["helm"], Path(description["kubeconfig"])),
            image=description["image"],
            operator_dependencies=Path(description["operator_dependencies"]),
            inference_dependencies=Path(description["inference_dependencies"]),
            bin_dir=Path(description["kubectl"]).parent,
        )
    found = {program: shutil.which(program) for program in ("kubectl", "helm")}
    if missing := [program for program, path in found.items() if path is None]:
        raise DemoError(f"CLUSTER=current needs {' and '.join(missing)} on the PATH")
    return CurrentProfile(
        name=description["name"],
        kube=Kube(str(found["kubectl"]), str(found["helm"]), None),
        registry=description["registry"],
        tag=description["tag"],
    )


def sources(kube: Kube, template: Path, values: dict[str, Any]) -> str:
    """The servers' manifests; credentials are new when they are first made."""
    credentials = {
        "access_key": secrets.token_hex(10),
        "secret_key": secrets.token_hex(20),
        "hub_token": f"hf_{secrets.token_hex(17)}",
    }
    manifest = Template(template.read_text()).substitute(values, **credentials)
    if kube.kubectl("get", "secret", "bucket-credentials", "-n", "numerals", "--ignore-not-found", "-o", "name"):
        # a second run keeps what running pods were started with
        return "---\n".join(part for part in manifest.split("---\n") if "kind: Secret" not in part)
    return manifest


def python_path() -> str:
    """Where Python finds dependencies and our packages inside a pod."""
    packages = ("contract", "common", "operator", "gateway", "inference")
    return ":".join([*(f"{SOURCE_MOUNT}/{package}/src" for package in packages), DEPS_MOUNT])


def volumes(dependencies: Path) -> list[dict[str, Any]]:
    """The node's folders as volumes."""
    return [
        {"name": "dependencies", "hostPath": {"path": str(dependencies), "type": "Directory"}},
        {"name": "source", "hostPath": {"path": str(ROOT), "type": "Directory"}},
    ]


def mounts() -> list[dict[str, Any]]:
    """Where the volumes appear."""
    return [
        {"name": "dependencies", "mountPath": DEPS_MOUNT, "readOnly": True},
        {"name": "source", "mountPath": SOURCE_MOUNT, "readOnly": True},
    ]


def wait_for_port(port: int, timeout_seconds: float = 15) -> None:
    """Wait until something listens.

    Raises:
        DemoError: nothing does in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise DemoError("kubectl port-forward did not come up")
