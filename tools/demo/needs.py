"""What a cluster has to have before anything is applied to it: a list of checks, each with what to do."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from demo.kube import Kube

MIN_VERSION: Final = (1, 31)
"""The charts' kubeVersion."""
API_VERSIONS: Final = (
    "apiextensions.k8s.io/v1",
    "apps/v1",
    "coordination.k8s.io/v1",
    "discovery.k8s.io/v1",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
    "storage.k8s.io/v1",
)
GROUP: Final = "lorafleet.io"
SERVED: Final = "v1alpha1"
DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What kubectl said of the cluster."""

    version: str
    api_versions: frozenset[str]
    storage_classes: list[dict[str, Any]]
    crds: list[dict[str, Any]]
    may_make_crds: bool


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that has to be so."""

    lacks: Callable[[Cluster], str]
    """Returns what is missing; empty when nothing is."""
    hint: str


def look(kube: Kube) -> Cluster:
    """Ask the API server.

    Raises:
        DemoError: it does not answer.
    """
    version = json.loads(kube.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    allowed = kube.kubectl("auth", "can-i", "create", "customresourcedefinitions", check=False)
    crds = kube.get("customresourcedefinitions")["items"] if allowed.strip() == "yes" else []
    return Cluster(
        version=version,
        api_versions=frozenset(kube.kubectl("api-versions").split()),
        storage_classes=kube.get("storageclasses")["items"],
        crds=[crd for crd in crds if crd["spec"]["group"] == GROUP],
        may_make_crds=allowed.strip() == "yes",
    )


def lacking(cluster: Cluster) -> list[str]:
    """Return what a cluster lacks, one sentence each with what to do."""
    return [f"{problem}. {need.hint}" for need in NEEDS if (problem := need.lacks(cluster))]


def _old_version(cluster: Cluster) -> str:
    found = re.match(r"v(\d+)\.(\d+)", cluster.version)
    if found is not None and (int(found[1]), int(found[2])) >= MIN_VERSION:
        return ""
    return f"The cluster is Kubernetes {cluster.version}"


def _apis(cluster: Cluster) -> str:
    absent = [version for version in API_VERSIONS if version not in cluster.api_versions]
    return f"The API server does not serve {', '.join(absent)}" if absent else ""


def _rights(cluster: Cluster) -> str:
    return "" if cluster.may_make_crds else "You may not create CustomResourceDefinitions in this cluster"


def _crds(cluster: Cluster) -> str:
    other = [
        crd["metadata"]["name"]
        for crd in cluster.crds
        if not any(version["name"] == SERVED and version["served"] for version in crd["spec"]["versions"])
    ]
    return f"{', '.join(other)} of another version of lorafleet do not serve {SERVED}" if other else ""


def _default_class(cluster: Cluster) -> str:
    defaults = [
        item
        for item in cluster.storage_classes
        if (item["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true"
    ]
    if defaults:
        return ""
    names = ", ".join(item["metadata"]["name"] for item in cluster.storage_classes) or "none at all"
    return f"No StorageClass is the default one, and the demo claims a volume; there are: {names}"


NEEDS: Final = (
    Need(_old_version, f"It has to be {MIN_VERSION[0]}.{MIN_VERSION[1]} or newer."),
    Need(_apis, "Look at `kubectl api-versions` and at API services that are not available."),
    Need(_rights, "Ask for cluster-admin, or for somebody who installs charts/lorafleet-crds."),
    Need(_crds, "Uninstall that version, or upgrade its CRDs first."),
    Need(_default_class, f"Set the annotation {DEFAULT_CLASS}=true on one of them."),
)
