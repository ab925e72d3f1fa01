"""The user's pod template over the operator's, as kubectl would merge it."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_operator.decide.strategic_merge import merge
from lorafleet_operator.errors import InvalidSpec

BUILT = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "containers": [
            {
                "name": "engine",
                "image": "engine:1",
                "args": ["--x"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                "ports": [{"containerPort": 8000, "protocol": "TCP"}],
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
            }
        ],
        "volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "tmp", "emptyDir": {}}],
        "securityContext": {"runAsUser": 65532, "runAsNonRoot": True},
    },
}


def engine(merged: dict) -> dict:
    return next(c for c in merged["spec"]["containers"] if c["name"] == "engine")


def patched(**container) -> dict:
    return engine(merge(BUILT, {"spec": {"containers": [{"name": "engine", **container}]}}))


def test_container_is_merged_by_name() -> None:
    made = merge(BUILT, {"spec": {"containers": [{"name": "engine", "tty": True}, {"name": "sidecar", "image": "s"}]}})
    assert [c["name"] for c in made["spec"]["containers"]] == ["engine", "sidecar"]
    assert engine(made) == {**BUILT["spec"]["containers"][0], "tty": True}


def test_plain_lists_are_replaced() -> None:
    assert patched(args=["--y"])["args"] == ["--y"]


def test_environment_and_mounts_are_merged_by_key() -> None:
    env = patched(env=[{"name": "A", "value": "2"}, {"name": "C", "value": "3"}])["env"]
    assert [(e["name"], e.get("value")) for e in env] == [("A", "2"), ("B", None), ("C", "3")]
    mounts = patched(volumeMounts=[{"name": "mine", "mountPath": "/cache"}, {"name": "x", "mountPath": "/x"}])[
        "volumeMounts"
    ]
    assert mounts == [{"name": "mine", "mountPath": "/cache"}, {"name": "x", "mountPath": "/x"}]
    assert len(patched(ports=[{"containerPort": 8000, "name": "http"}])["ports"]) == 1


def test_another_source_replaces_a_volume_or_a_variable() -> None:
    made = merge(BUILT, {"spec": {"volumes": [{"name": "cache", "hostPath": {"path": "/nvme"}}]}})
    assert made["spec"]["volumes"][0] == {"name": "cache", "hostPath": {"path": "/nvme"}}
    grown = merge(BUILT, {"spec": {"volumes": [{"name": "cache", "emptyDir": {"medium": "Memory"}}]}})
    assert grown["spec"]["volumes"][0] == {"name": "cache", "emptyDir": {"sizeLimit": "1Gi", "medium": "Memory"}}
    assert patched(env=[{"name": "B", "value": "plain"}])["env"][1] == {"name": "B", "value": "plain"}


def test_null_and_patch_delete_take_away() -> None:
    made = merge(BUILT, {"spec": {"securityContext": None, "volumes": [{"name": "tmp", "$patch": "delete"}]}})
    assert "securityContext" not in made["spec"]
    assert [volume["name"] for volume in made["spec"]["volumes"]] == ["cache"]


def test_patch_replace_replaces() -> None:
    made = merge(BUILT, {"spec": {"securityContext": {"$patch": "replace", "runAsUser": 0}}})
    assert made["spec"]["securityContext"] == {"runAsUser": 0}


@pytest.mark.parametrize(
    ("patch", "where"),
    [
        ({"spec": {"containers": [{"image": "x"}]}}, "podTemplate.spec.containers[0]: lacks name"),
        ({"spec": {"containers": {"name": "x"}}}, "podTemplate.spec.containers: is a list"),
        ({"spec": {"containers": ["x"]}}, "podTemplate.spec.containers[0]: is an object"),
        ({"spec": "x"}, "podTemplate.spec: is an object"),
        ({"$patch": "delete"}, "podTemplate: $patch 'delete' is not possible here"),
        ({"spec": {"affinity": {"$patch": "delete"}}}, "podTemplate.spec.affinity: there is nothing to delete"),
    ],
)
def test_what_means_nothing_is_refused_by_its_path(patch: dict, where: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        merge(BUILT, patch)
    assert str(error.value) == where


DOCUMENTS = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), DOCUMENTS, max_size=4)


@given(OBJECTS)
def test_nothing_changes_nothing_and_twice_is_once(document: dict) -> None:
    assert merge(document, {}) == document
    assert merge({}, document) == document
    assert merge(document, document) == document


@given(OBJECTS)
def test_arguments_stay_as_they_are(document: dict) -> None:
    before = copy.deepcopy(BUILT)
    merge(BUILT, {"spec": {"securityContext": document}})
    assert before == BUILT
