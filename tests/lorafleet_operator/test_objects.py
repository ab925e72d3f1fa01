"""The objects of a base, whole, against files: what a change of them does to pods is seen in review.

`LORAFLEET_TEST_GOLDEN=write` writes the files anew.
"""

import hashlib
import os
from pathlib import Path

import pytest
import yaml
from support import operator_views as v

from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator.decide.objects import admin_token, objects_of
from lorafleet_operator.decide.pod_template import pod_template, serve_arguments
from lorafleet_operator.errors import InvalidSpec

GOLDEN = Path(__file__).parent / "golden"
HUB = {
    "servedName": "llama",
    "model": {
        "huggingFace": {
            "repo": "acme/llama",
            "revision": "0123456789012345678901234567890123456789",
            "endpoint": "http://hub.example",
            "credentialsSecretRef": {"name": "hub-token"},
        }
    },
    "adapterSources": [
        {
            "name": "bucket",
            "s3": {
                "bucket": "adapters",
                "prefix": "prod",
                "endpoint": "http://s3.example",
                "region": "eu-1",
                "credentialsSecretRef": {"name": "s3-keys"},
            },
        },
        {
            "name": "hub",
            "huggingFace": {
                "endpoint": "http://hub.example",
                "repos": ["acme/*"],
                "credentialsSecretRef": {"name": "hub-token"},
            },
        },
        {
            "name": "registry",
            "oci": {
                "endpoint": "https://reg.example:5000",
                "repos": ["acme/*"],
                "credentialsSecretRef": {"name": "regcred"},
            },
        },
        {"name": "share", "volume": {"claimName": "adapters", "path": "prod"}},
    ],
    "engine": {
        "image": "registry.example/engine:2",
        "imagePullPolicy": "Always",
        "device": "Cuda",
        "dtype": "bfloat16",
        "maxModelLen": 8192,
        "maxBatchTokens": 4096,
        "kvCacheMemory": "10Gi",
        "tensorParallelSize": 4,
        "args": ["--num-threads=4"],
        "env": [{"name": "TOKENIZERS_PARALLELISM", "value": "false"}],
    },
    "lora": {
        "maxResidentAdapters": 16,
        "maxRank": 128,
        "adapterMemory": "6Gi",
        "hostCache": "8Gi",
        "diskCache": "50Gi",
        "loadOnDemand": "Disabled",
    },
    "replicas": 3,
    "drain": {"timeoutSeconds": 120},
    "podTemplate": {
        "metadata": {"labels": {"team": "nlp"}},
        "spec": {
            "nodeSelector": {"gpu": "l4"},
            "containers": [{"name": "engine", "resources": {"requests": {"memory": "20Gi"}}}],
            "volumes": [{"name": "cache", "hostPath": {"path": "/nvme/lorafleet"}}],
        },
    },
}


def documents(base: BaseModelResource) -> str:
    made = [child.body for child in objects_of(base, engine_image="registry.example/engine:1", key=b"k" * 32)]
    return yaml.safe_dump_all(made, sort_keys=True, width=120)


HOSTS = {
    "model": {"huggingFace": {"repo": "acme/llama"}},
    "engine": {"device": "Cuda", "tensorParallelSize": 16, "hosts": 2},
    "replicas": 2,
}


@pytest.mark.parametrize(("name", "spec"), [("volume", {}), ("hub", HUB), ("hosts", HOSTS)])
def test_objects_are_as_on_file(name: str, spec: dict) -> None:
    made, path = documents(v.base(**spec)), GOLDEN / f"{name}.yaml"
    if os.environ.get("LORAFLEET_TEST_GOLDEN") == "write":
        path.write_text(made)
    assert made == path.read_text()


def test_ad_hoc_adapters_are_an_option_of_pods_where_they_are_allowed() -> None:
    """And nothing of pods changes where they are not, so that no update replaces them."""
    assert "--ad-hoc-adapters=sources" in documents(v.base(lora={"adHoc": "Sources"}))
    assert documents(v.base(lora={"adHoc": "Forbidden"})) == documents(v.base())


def test_quantisation_is_an_option_of_pods_where_it_is_asked_for() -> None:
    """And nothing of pods changes where it is not."""
    assert "--quantization=nf4" in documents(v.base(engine={"quantization": "nf4"}))
    assert "--quantization" not in documents(v.base(engine={}))
    assert "--kv-cache-dtype=fp8" in documents(v.base(engine={"kvCacheDtype": "fp8"}))
    assert "--kv-cache-dtype" not in documents(v.base(engine={"kvCacheDtype": "auto"}))


def test_speculation_is_options_of_pods_where_it_is_asked_for() -> None:
    looked_up = documents(v.base(engine={"speculation": {"tokens": 8}}))
    assert "--speculative-tokens=8" in looked_up
    assert "--speculative-model" not in looked_up
    assert "--speculative-model=acme/small@v1" in documents(
        v.base(engine={"speculation": {"tokens": 8, "model": "acme/small@v1"}})
    )
    assert "--speculative" not in documents(v.base(engine={}))


CLAIM = {"persistentVolumeClaim": {"claimName": "base-models"}}


def with_cache(**cache) -> dict:
    return {**HUB, "model": {**HUB["model"], "cache": cache}, "podTemplate": {}}


def test_a_cache_of_models_is_a_volume_that_outlives_pods() -> None:
    """What of the pods changes, and nothing else: one volume where the download goes, and the limit of the rest is back."""
    before, after = template(**{**HUB, "podTemplate": {}})["spec"], template(**with_cache(**CLAIM))["spec"]
    mount = {"name": "model-cache", "mountPath": "/var/cache/lorafleet/models"}
    assert [one for one in after["volumes"] if one not in before["volumes"]] == [
        {"name": "cache", "emptyDir": {"sizeLimit": "56Gi"}},
        {"name": "model-cache", "persistentVolumeClaim": {"claimName": "base-models"}},
    ]
    assert mount in after["containers"][0]["volumeMounts"]
    assert after["securityContext"] == {**before["securityContext"], "fsGroupChangePolicy": "OnRootMismatch"}
    for spec in (before, after):
        del spec["volumes"], spec["securityContext"], spec["containers"][0]["volumeMounts"]
    assert before == after


def test_a_cache_that_is_only_read_is_mounted_so() -> None:
    claim = {"claimName": "base-models", "readOnly": True}
    made = template(**with_cache(persistentVolumeClaim=claim))["spec"]
    assert {"name": "model-cache", "persistentVolumeClaim": claim} in made["volumes"]
    mount = next(one for one in made["containers"][0]["volumeMounts"] if one["name"] == "model-cache")
    assert mount == {"name": "model-cache", "mountPath": "/var/cache/lorafleet/models", "readOnly": True}


def test_a_cache_on_the_node_has_to_exist() -> None:
    """The kubelet would make a folder of root's, in which no pod could write."""
    made = template(**with_cache(hostPath={"path": "/nvme/models"}))["spec"]
    assert {"name": "model-cache", "hostPath": {"path": "/nvme/models", "type": "Directory"}} in made["volumes"]
    assert "fsGroupChangePolicy" not in made["securityContext"]


BUCKET = {
    "bucket": "models",
    "prefix": "bases/llama/",
    "endpoint": "http://s3.example",
    "region": "eu-1",
    "credentialsSecretRef": {"name": "s3-keys"},
}


def test_a_model_of_a_bucket_is_downloaded_by_pods() -> None:
    spec = {"model": {"s3": BUCKET}}
    assert [one for one in serve_arguments(v.base(**spec), "0" * 64) if one.startswith("--model")] == [
        "--model=s3://models/bases/llama",
        "--model-s3-endpoint=http://s3.example",
        "--model-s3-region=eu-1",
    ]
    volumes = {one["name"]: one for one in template(**spec)["spec"]["volumes"]}
    keys = next(one for one in volumes.values() if one.get("secret", {}).get("secretName") == "s3-keys")
    mounts = {one["name"]: one["mountPath"] for one in template(**spec)["spec"]["containers"][0]["volumeMounts"]}
    assert mounts[keys["name"]] == "/var/run/lorafleet/credentials/_model"
    assert volumes["cache"] == {"name": "cache", "emptyDir": {}}, "of the size of a model that nobody declares"


def test_a_model_of_a_bucket_may_be_all_of_it_and_be_kept() -> None:
    spec = {"model": {"s3": {"bucket": "llama"}, "cache": CLAIM}}
    assert "--model=s3://llama" in serve_arguments(v.base(**spec), "0" * 64)
    volumes = template(**spec)["spec"]["volumes"]
    assert {"name": "model-cache", **CLAIM} in volumes
    assert not any("secret" in one for one in volumes), "the pod's environment gives the keys"


def test_same_spec_makes_the_same_objects() -> None:
    assert documents(v.base(**HUB)) == documents(v.base(**HUB))


def test_token_is_of_the_base_and_the_key() -> None:
    assert admin_token(b"k" * 32, "a") != admin_token(b"k" * 32, "b") != admin_token(b"l" * 32, "b")
    assert len(admin_token(b"k" * 32, "a")) == 64


def test_pods_are_given_the_hash_of_the_token_and_no_secret_is_made() -> None:
    """Whoever reads a pod's arguments cannot ask its admin port for anything."""
    token = admin_token(b"k" * 32, "uid-base")
    made = documents(v.base())
    assert token not in made
    assert f"--admin-token-sha256={hashlib.sha256(token.encode()).hexdigest()}" in made
    assert "Secret" not in {document["kind"] for document in yaml.safe_load_all(made)}


def template(**spec) -> dict:
    labels = {"lorafleet.io/base": "base"}
    return pod_template(v.base(**spec), engine_image="engine:1", labels=labels, token_sha256="0" * 64)


def limits(**spec) -> dict:
    return template(**spec)["spec"]["containers"][0].get("resources", {}).get("limits", {})


def test_cuda_asks_for_a_device_unless_the_template_does() -> None:
    amd = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"amd.com/gpu": "2", "cpu": "4"}}}]}}
    assert limits() == {}
    assert limits(engine={"device": "Cuda"}) == {"nvidia.com/gpu": "1"}
    assert limits(engine={"device": "Cuda"}, podTemplate=amd) == {"amd.com/gpu": "2", "cpu": "4"}


def test_a_model_on_several_gpus_asks_for_as_many_and_for_memory_that_they_share() -> None:
    two = {"device": "Cuda", "tensorParallelSize": 2}
    assert limits(engine=two) == {"nvidia.com/gpu": "2"}
    pod = template(engine=two)["spec"]
    assert "--tensor-parallel-size=2" in pod["containers"][0]["args"]
    shared = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert shared["shm"] == "/dev/shm"
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert "shm" not in {volume["name"] for volume in template()["spec"]["volumes"]}
    assert not any("tensor-parallel" in one for one in template()["spec"]["containers"][0]["args"])
    few = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}
    with pytest.raises(InvalidSpec, match=r"asks for 1 nvidia.com/gpu, and engine.tensorParallelSize is 2"):
        template(engine=two, podTemplate=few)


def groups(**spec) -> dict:
    """The LeaderWorkerSet of a base on two hosts."""
    engine = {"tensorParallelSize": 4, "hosts": 2, **spec.pop("engine", {})}
    first, *_ = objects_of(v.base(engine=engine, **spec), engine_image="engine:1", key=b"k" * 32)
    assert first.path == "/apis/leaderworkerset.x-k8s.io/v1/namespaces/team/leaderworkersets/base"
    return first.body["spec"]


def engines(spec: dict) -> list[dict]:
    """The engine containers of the pod that serves and of the others."""
    both = spec["leaderWorkerTemplate"]
    return [both[name]["spec"]["containers"][0] for name in ("leaderTemplate", "workerTemplate")]


def test_each_pod_of_several_has_its_part_of_the_gpus_and_the_same_options() -> None:
    first, other = engines(groups(engine={"device": "Cuda"}))
    assert first["resources"]["limits"] == other["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert first["args"] == other["args"]
    assert {"--tensor-parallel-size=4", "--hosts=2"} <= set(first["args"])
    assert (first["command"][-1], other["command"][-1]) == ("serve", "ranks")
    few = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": "4"}}}]}}
    with pytest.raises(InvalidSpec, match=r"asks for 4 nvidia.com/gpu, and engine.tensorParallelSize is 4 on 2 hosts"):
        groups(engine={"device": "Cuda"}, podTemplate=few)


def test_only_the_first_pod_of_several_is_found_as_a_pod_of_the_base() -> None:
    base = v.base(engine={"tensorParallelSize": 2, "hosts": 2})
    made = {(one.kind, one.name): one.body for one in objects_of(base, engine_image="engine:1", key=b"k" * 32)}
    both = made["LeaderWorkerSet", "base"]["spec"]["leaderWorkerTemplate"]
    first, other = (both[name]["metadata"]["labels"] for name in ("leaderTemplate", "workerTemplate"))
    services = [body["spec"]["selector"] for (kind, _), body in made.items() if kind == "Service"]
    assert len(services) == 2
    for selected in services:
        assert selected.items() <= first.items()
        assert not selected.items() <= other.items()
    budget = made["PodDisruptionBudget", "base"]["spec"]["selector"]["matchLabels"]
    assert budget.items() <= first.items()
    assert budget.items() <= other.items()


def test_pods_of_a_replica_know_each_other_by_a_secret_that_is_neither_the_token_nor_another_bases() -> None:
    def secrets(base: BaseModelResource) -> list[str]:
        first, *_ = objects_of(base, engine_image="engine:1", key=b"k" * 32)
        names = [{one["name"]: one.get("value") for one in engine["env"]} for engine in engines(first.body["spec"])]
        return [one["LORAFLEET_RANKS_SECRET"] for one in names]

    base = v.base(engine={"tensorParallelSize": 2, "hosts": 2})
    (mine, others) = secrets(base)
    assert mine == others
    assert len(mine) == 64
    assert mine != admin_token(b"k" * 32, base.metadata.uid)
    other = base.model_copy(update={"metadata": base.metadata.model_copy(update={"uid": "another"})})
    assert mine not in secrets(other)


def test_a_secret_of_ones_own_takes_the_place_of_the_operators() -> None:
    own = {"name": "LORAFLEET_RANKS_SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    for engine in engines(groups(engine={"env": [own]})):
        assert [one for one in engine["env"] if one["name"] == own["name"]] == [own]


def test_a_base_of_one_host_has_no_trace_of_several() -> None:
    made = documents(v.base())
    assert "LORAFLEET_RANKS_SECRET" not in made
    assert "ranks" not in made


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        ({"metadata": {"labels": {"lorafleet.io/base": "other"}}}, "lorafleet.io/base cannot be changed"),
        ({"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}}, "engine cannot be removed"),
    ],
)
def test_template_cannot_take_away_what_pods_are_found_by(patch: dict, problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        template(podTemplate=patch)


def test_long_source_names_make_legal_and_different_volume_names() -> None:
    names = ["a" * 62 + "x", "a" * 62 + "y"]
    sources = [{"name": name, "volume": {"claimName": "c"}} for name in names]
    volumes = [volume["name"] for volume in template(adapterSources=sources)["spec"]["volumes"]]
    assert len(set(volumes)) == len(volumes)
    assert all(len(name) <= 63 for name in volumes)


def test_every_argument_is_an_option_of_serve() -> None:
    """The engine stops at an option that it does not know."""
    from lorafleet_inference.options import OPTIONS

    known = {option.flag for option in OPTIONS} | {f"--no-{option.name}" for option in OPTIONS if option.is_flag}
    for spec in ({}, HUB, {"model": {"s3": BUCKET}}):
        assert {argument.split("=")[0] for argument in serve_arguments(v.base(**spec), "0" * 64)} <= known


def test_pods_are_told_what_to_do_with_unknown_fields_of_configs_and_of_requests() -> None:
    told = serve_arguments(v.base(lora={"unknownConfigFields": "Ignore"}), "0" * 64)
    assert "--unknown-config-fields=ignore" in told
    lenient = serve_arguments(v.base(engine={"unknownFields": "Ignore"}), "0" * 64)
    assert "--unknown-fields=ignore" in lenient
    assert not any("unknown" in argument for argument in serve_arguments(v.base(), "0" * 64))


def test_rollout_is_that_of_the_spec() -> None:
    """A cluster without a spare device has to let a pod go first."""

    def strategy(**spec) -> dict:
        made = list(yaml.safe_load_all(documents(v.base(**spec))))
        found: dict = next(one for one in made if one["kind"] == "Deployment")["spec"]["strategy"]["rollingUpdate"]
        return found

    assert strategy() == {"maxSurge": 1, "maxUnavailable": 0}
    assert strategy(rollout={"maxSurge": 0, "maxUnavailable": "25%"}) == {"maxSurge": 0, "maxUnavailable": "25%"}
