"""LeaderWorkerSet for a cluster: its controller built from its Go module, and the manifests that the module has.

Nothing that the demo needs is here: what asks for it builds it, once for the machine.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any, Final

import yaml

from localcluster.artifacts import Artifact, content_key
from localcluster.errors import LocalClusterError
from localcluster.gobuild import find_go, go_problem
from localcluster.paths import PACKAGE
from localcluster.progress import Note, run

MODULE: Final = PACKAGE / "lws"
PROGRAM: Final = "sigs.k8s.io/lws/cmd"
OF_MODULE: Final = "sigs.k8s.io/lws"
FLAGS: Final = ("-trimpath", "-gcflags", "all=-N -l")
"""As those of Kubernetes, of which it shares packages in the same versions, so that these are compiled once."""
NAMESPACE: Final = "lws-system"
MOUNT: Final = "/opt/lws"
MANIFESTS: Final = "manifests.yaml"


def controller(kubectl: Path, note: Note) -> Artifact:
    """Return the artifact: the controller as `manager`, and the manifests that install it."""

    def build(folder: Path) -> None:
        go = find_go()
        if go is None:
            raise LocalClusterError(str(go_problem()))
        environment = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=readonly",
            "GOTOOLCHAIN": "auto",
            "GOWORK": "off",
            "HOME": os.environ.get("HOME") or "/root",
        }
        note("compiling LeaderWorkerSet")
        run([go, "build", *FLAGS, "-o", str(folder / "manager"), PROGRAM], environment=environment, folder=MODULE)
        found = run([go, "list", "-m", "-json", OF_MODULE], environment=environment, folder=MODULE)
        config = Path(json.loads(found)["Dir"]) / "config" / "default"
        (folder / MANIFESTS).write_text(run([kubectl, "kustomize", config]))

    return Artifact("lws", content_key(MODULE, " ".join(FLAGS), platform.machine()), build)


def manifests(artifact: Path, image: str) -> str:
    """Return what installs the controller: the module's own manifests, with the program mounted from the node into `image`."""
    documents: list[dict[str, Any]] = list(yaml.safe_load_all((artifact / MANIFESTS).read_text()))
    deployment = next(one for one in documents if one["kind"] == "Deployment")
    deployment["spec"]["replicas"] = 1
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container |= {"image": image, "imagePullPolicy": "Never", "command": [f"{MOUNT}/manager"]}
    container.pop("resources", None)
    container.setdefault("volumeMounts", []).append({"name": "program", "mountPath": MOUNT, "readOnly": True})
    pod.setdefault("volumes", []).append({"name": "program", "hostPath": {"path": str(artifact), "type": "Directory"}})
    pod["securityContext"] = {**pod.get("securityContext", {}), "runAsUser": 65532}
    return yaml.safe_dump_all(documents)
