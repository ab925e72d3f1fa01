"""While the demo waits it says why, and what a cluster lacks it says before it applies anything."""

from dataclasses import replace
from typing import Any

import pytest
from demo.fleet import what_is_missing
from demo.needs import API_VERSIONS, DEFAULT_CLASS, Cluster, lacking


def item(kind: str, name: str, status: str, reason: str, message: str) -> dict[str, Any]:
    ready = {"type": "Ready", "status": status, "reason": reason, "message": message}
    return {"kind": kind, "metadata": {"name": name}, "status": {"conditions": [ready]}}


def test_base_and_adapters_that_are_not_ready_say_why() -> None:
    waiting = [item("LoraAdapter", name, "False", "NoReadyPods", "the base has no ready pod") for name in "abc"]
    unbound = "p0: Unschedulable: unbound PersistentVolumeClaims"
    base = item("BaseModelDeployment", "numerals", "False", "RollingOut", unbound)
    ready = item("LoraAdapter", "d", "True", "Serving", "revision 1 answers")
    assert what_is_missing([base, *waiting, ready]).splitlines() == [
        f"    bmd/numerals: RollingOut: {unbound}",
        "    lora/a and 2 more: NoReadyPods: the base has no ready pod",
    ]
    assert what_is_missing([ready]) == ""
    assert "lora/e: Pending" in what_is_missing([{"kind": "LoraAdapter", "metadata": {"name": "e"}}])


CLASSES = [{"metadata": {"name": "fast", "annotations": {DEFAULT_CLASS: "true"}}}]
CRD = {
    "metadata": {"name": "loraadapters.lorafleet.io"},
    "spec": {"versions": [{"name": "v1alpha1", "served": True}]},
}
OLD_CRD = {**CRD, "spec": {"versions": [{"name": "v0", "served": True}, {"name": "v1alpha1", "served": False}]}}
FINE = Cluster("v1.31.0", frozenset(API_VERSIONS), CLASSES, [CRD], may_make_crds=True)


def test_cluster_that_has_everything_lacks_nothing() -> None:
    assert lacking(FINE) == []
    assert lacking(replace(FINE, version="v2.0.1+k3s1", crds=[])) == []


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        (replace(FINE, version="v1.30.9"), "The cluster is Kubernetes v1.30.9. It has to be 1.31 or newer."),
        (replace(FINE, api_versions=FINE.api_versions - {"policy/v1"}), "does not serve policy/v1."),
        (replace(FINE, may_make_crds=False), "You may not create CustomResourceDefinitions"),
        (
            replace(FINE, crds=[OLD_CRD]),
            "loraadapters.lorafleet.io of another version of lorafleet do not serve v1alpha1",
        ),
        (replace(FINE, storage_classes=[]), "there are: none at all. Set the annotation"),
        (replace(FINE, storage_classes=[{"metadata": {"name": "slow"}}]), "there are: slow."),
    ],
)
def test_what_a_cluster_lacks_is_said_with_what_to_do(cluster: Cluster, problem: str) -> None:
    (said,) = lacking(cluster)
    assert problem in said
