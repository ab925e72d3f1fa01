"""What the API server makes of the two kinds: every rule accepted and refused, defaults, columns, scale, apply.

Rules are asked by dry run, so that no operator acts on what is only a question. What has to exist is suspended, or names
a base that there is none of.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from demo.kube import Kube
from demo.progress import DemoError
from support.fleet import Fleet
from support.waiting import wait_for

pytestmark = pytest.mark.cluster
NAMESPACE = "crd-rules"
Json = dict[str, Any]
VOLUME = {"volume": {"claimName": "models"}}
DIGEST = "sha256:" + "0" * 64
ANALYSIS = {"maxErrorPercent": 2, "maxErrorPercentOverStable": 1, "maxLatencyPercentOverStable": 20}
STEPS = [{"setWeight": 5}, {"pause": {"durationSeconds": 300}}]
CHAT = [{"role": "system", "content": "x" * 4096}] * 8
CHECK = {"name": "four", "prompt": "4 =", "expect": {"equals": "IV"}}
VERIFY = {
    "prompts": [
        {**CHECK, "maxTokens": 4},
        {
            "name": "polite",
            "messages": [{"role": "user", "content": "Hello"}],
            "expect": {"matches": "(?i)hello|good day"},
        },
        {**CHECK, "name": "part", "expect": {"contains": "V"}},
    ]
}
MOST_PROMPTS = [
    {"name": f"p{number}", "messages": CHAT, "maxTokens": 256, "expect": {"matches": "[a-z]{1,9}|" * 23 + "x"}}
    for number in range(16)
]


@pytest.fixture(scope="module")
def kube(fleet: Fleet) -> Iterator[Kube]:
    fleet.kube.kubectl("create", "namespace", NAMESPACE)
    yield fleet.kube
    fleet.kube.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")


def body(kind: str, name: str, spec: Json) -> Json:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "lorafleet.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def base(name: str = "base", **spec: Any) -> Json:
    full = {"model": VOLUME, "suspend": True, **spec}
    return body("BaseModelDeployment", name, {key: value for key, value in full.items() if value is not None})


def lora(name: str = "french", **spec: Any) -> Json:
    full = {"baseModelRef": {"name": "nobody"}, "source": {"name": "models", "path": "french"}, **spec}
    return body("LoraAdapter", name, {key: value for key, value in full.items() if value is not None})


def ask(kube: Kube, document: Json) -> Json:
    """What the object would be; raises DemoError with the server's words."""
    made = kube.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=yaml.safe_dump(document))
    found: Json = json.loads(made)
    return found


def apply(kube: Kube, document: Json, *, manager: str = "git") -> Json:
    arguments = ["apply", "--server-side", f"--field-manager={manager}", "-o", "json", "-f", "-"]
    found: Json = json.loads(kube.kubectl(*arguments, stdin=yaml.safe_dump(document)))
    return found


def source(**place: Any) -> Json:
    return base(adapterSources=[{"name": "x", **place}])


HUB = {"huggingFace": {"repo": "acme/llama"}}
BUCKET = {"s3": {"bucket": "models", "prefix": "bases/llama/"}}


def cached(model: Json = HUB, **cache: Any) -> Json:
    return base(model={**model, "cache": cache})


def measure(**more: Any) -> Json:
    query = 'sum(rate(good{model="$(adapter)",revision="$(revision)"}[$(window)])) / sum(rate(all{}[5m]))'
    return {"name": "good-answers", "query": query, "thresholdRange": {"min": 0.95, "max": 1}, **more}


def measured(**more: Any) -> Json:
    return lora(rollout={"analysis": {"prometheus": [measure(**more)]}})


ACCEPTED = {
    "base from a volume": base(),
    "models kept on a claim": cached(persistentVolumeClaim={"claimName": "c"}),
    "models read from a claim": cached(persistentVolumeClaim={"claimName": "c", "readOnly": True}),
    "models kept on the node": cached(hostPath={"path": "/mnt/nvme.0/models"}),
    "base from a hub": base(model={"huggingFace": {"repo": "acme/llama", "revision": "main", "credentialsSecretRef": {"name": "t"}}}),
    "base from a bucket": base(
        model={"s3": {**BUCKET["s3"], "endpoint": "http://s3", "region": "eu-1", "credentialsSecretRef": {"name": "keys"}}}
    ),
    "base from the root of a bucket, kept on a claim": cached({"s3": {"bucket": "llama"}}, persistentVolumeClaim={"claimName": "c"}),
    "base from a folder of a volume": base(model={"volume": {"claimName": "models", "path": "a/b-c.d"}}),
    "sources of all kinds": base(
        adapterSources=[
            {"name": "a", "volume": {"claimName": "c", "path": ""}},
            {"name": "b", "s3": {"bucket": "abc", "prefix": "p/q", "endpoint": "http://s3", "region": "eu-1"}},
            {"name": "c", "huggingFace": {"repos": ["acme/*", "solo/one"], "endpoint": "https://hub.example"}},
            {"name": "d", "huggingFace": {}},
            {"name": "e", "oci": {"endpoint": "https://reg.example:5000"}},
            {"name": "f", "oci": {"endpoint": "http://reg", "repos": ["a/b/*", "a__b/c-d.e"], "credentialsSecretRef": {"name": "r"}}},
        ]
    ),
    "engine with everything": base(
        engine={
            "image": "x",
            "imagePullPolicy": "Never",
            "device": "Cuda",
            "dtype": "bfloat16",
            "quantization": "nf4",
            "maxModelLen": 1,
            "maxBatchTokens": 1,
            "kvCacheDtype": "fp8",
            "kvCacheMemory": "1.5Gi",
            "tensorParallelSize": 4,
            "hosts": 2,
            "speculation": {"tokens": 64, "model": "acme/small@main"},
            "args": ["--x"],
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        }
    ),
    "budget at its limits": base(lora={"maxResidentAdapters": 4096, "maxRank": 256, "loadOnDemand": "Disabled"}),
    "unknown fields of requests": base(engine={"unknownFields": "Ignore"}),
    "quantised, and split among many": base(engine={"device": "Cpu", "quantization": "nf4", "tensorParallelSize": 64}),
    "unknown config fields": base(lora={"unknownConfigFields": "Ignore"}),
    "adapters that requests name": base(lora={"adHoc": "Sources"}),
    "limits of guests": base(
        lora={
            "guests": {
                "maxPriority": 5,
                "allowPin": True,
                "maxSlots": 4,
                "servedNames": ["team-*", "one"],
                "namespaces": [{"name": "a", "maxPriority": 10, "servedNames": ["*"]}],
            }
        }
    ),
    "no surge": base(rollout={"maxSurge": 0, "maxUnavailable": 1}),
    "rollout in percent": base(rollout={"maxSurge": "25%", "maxUnavailable": "0%"}),
    "autoscaling": base(autoscaling={"maxReplicas": 1, "targetSequences": 1}),
    "autoscaling at its limits": base(
        replicas=1, autoscaling={"minReplicas": 10000, "maxReplicas": 10000, "targetSequences": 100000, "scaleDownAfterSeconds": 86400}
    ),
    "no pods while nothing is asked": base(autoscaling={"minReplicas": 0, "maxReplicas": 1, "targetSequences": 1}),
    "limits of that": base(
        autoscaling={
            "minReplicas": 0,
            "maxReplicas": 1,
            "targetSequences": 1,
            "scaleToZero": {"idleSeconds": 604800, "holdSeconds": 3600, "maxHeldRequests": 10000},
        }
    ),
    "inference pool": base(routing={"inferencePool": {"endpointPickerRef": {"name": "b-epp", "failureMode": "FailOpen"}}}),
    "inference pool that is told weights": base(
        routing={"inferencePool": {"endpointPickerRef": {"name": "b-epp"}, "modelRewrite": "Managed"}}
    ),
    "any pod template": base(podTemplate={"spec": {"nodeSelector": {"a": "b"}, "anything": [1, {"x": None}]}}),
    "all namespaces": base(allowedNamespaces=["*", "team-a"]),
    "no pods": base(replicas=0),
    "name of 50": base("b" * 50),
    "adapter by path": lora(),
    "adapter by repo": lora(source={"name": "hub", "repo": "acme/x", "revision": "v1"}),
    "adapter by repo and digest": lora(source={"name": "reg", "repo": "acme/team/x", "revision": DIGEST}),
    "adapter of another namespace's base": lora(baseModelRef={"name": "b", "namespace": "other"}),
    "adapter with a digest": lora(digest=DIGEST),
    "adapter on all pods": lora(placement={"mode": "All", "pin": True, "priority": -5}),
    "adapter on three pods": lora(placement={"mode": "Fixed", "replicas": 3}),
    "adapter on demand": lora(placement={"mode": "OnDemand"}),
    "adapter by its load": lora(placement={"mode": "Auto", "pin": True, "priority": 3}),
    "adapter by its load within bounds": lora(placement={"mode": "Auto", "minReplicas": 0, "maxReplicas": 1}),
    "deadline of a day": lora(rollout={"progressDeadlineSeconds": 86400}),
    "steps of all kinds": lora(rollout={"steps": [*STEPS, {"setWeight": 5}, {"pause": {}}], "onFailure": "Pause"}),
    "analysis": lora(rollout={"analysis": ANALYSIS}),
    "analysis at its limits": lora(rollout={"analysis": {"windowSeconds": 10, "maxErrorPercent": 0, "failureLimit": 100}}),
    "analysis by Prometheus": lora(rollout={"analysis": {"prometheus": [measure(), measure(name="b", thresholdRange={"max": 3})]}}),
    "questions": lora(verify=VERIFY),
    "questions at their limits": lora(verify={"prompts": MOST_PROMPTS, "timeoutSeconds": 600}),
    "no steps though its base has some": lora(rollout={"steps": []}),
    "sixteen steps": lora(rollout={"steps": [{"setWeight": number} for number in range(1, 17)]}),
    "steps for all adapters": base(lora={"rollout": {"steps": STEPS, "analysis": ANALYSIS, "onFailure": "Rollback"}}),
    "long name with a served one": lora("a" * 64, servedName="short"),
    "long name without a served one": lora("a" * 64),
    "served name as people write them": lora(servedName="acme/Llama-3_sql:v2.1"),
    "served name of 253": lora(servedName="a" * 253),
    "base with such a name": base(servedName="meta-llama/Llama-3.2-1B"),
    "path as object stores hold them": lora(source={"name": "a", "path": "dt=2026-01-01/epoch=1-step=100 a+b@c/x"}),
    "folders likewise": source(volume={"claimName": "c", "path": "runs/lr=1e-4 b"}),
}  # fmt: skip


@pytest.mark.parametrize("what", ACCEPTED)
def test_accepted(kube: Kube, what: str) -> None:
    asked = ACCEPTED[what]
    assert ask(kube, asked)["metadata"]["name"] == asked["metadata"]["name"]


REFUSED = {
    "base without a model": (base(model=None), "spec.model: Required"),
    "model of two kinds": (base(model={**VOLUME, "huggingFace": {"repo": "a/b"}}), "exactly one of huggingFace, s3, volume"),
    "cache of two kinds": (
        cached(persistentVolumeClaim={"claimName": "c"}, hostPath={"path": "/m"}),
        "exactly one of persistentVolumeClaim, hostPath",
    ),
    "cache of none": (cached(), "exactly one of persistentVolumeClaim, hostPath"),
    "cache of a volume": (cached(VOLUME, hostPath={"path": "/m"}), "cache goes with huggingFace or s3"),
    "cache in the root of the node": (cached(hostPath={"path": "/"}), "path"),
    "cache in a relative folder": (cached(hostPath={"path": "models"}), "path"),
    "cache above a folder": (cached(hostPath={"path": "/a/../b"}), "no '.' or '..' component"),
    "model of none": (base(model={}), "exactly one of huggingFace, s3, volume"),
    "model folder above the volume": (base(model={"volume": {"claimName": "c", "path": "a/../b"}}), "no empty, '.' or '..' component"),
    "model of a bucket and a hub": (base(model={**BUCKET, **HUB}), "exactly one of huggingFace, s3, volume"),
    "model above the bucket": (base(model={"s3": {"bucket": "models", "prefix": "a/../b"}}), "no empty, '.' or '..' component"),
    "model below a gap": (base(model={"s3": {"bucket": "models", "prefix": "a//b"}}), "no empty, '.' or '..' component"),
    "model of a bucket without one": (base(model={"s3": {"prefix": "a"}}), "spec.model.s3.bucket: Required"),
    "model folder with a gap": (base(model={"volume": {"claimName": "c", "path": "a//b"}}), "no empty, '.' or '..' component"),
    "replicas beside autoscaling": (
        base(replicas=2, autoscaling={"maxReplicas": 3, "targetSequences": 9}),
        "for a HorizontalPodAutoscaler or KEDA leave autoscaling out",
    ),
    "autoscaling without a target": (base(autoscaling={"maxReplicas": 3}), "spec.autoscaling.targetSequences: Required"),
    "autoscaling with its bounds the other way round": (
        base(autoscaling={"minReplicas": 2, "maxReplicas": 1, "targetSequences": 1}),
        "minReplicas must not be above maxReplicas",
    ),
    "scale to zero with a lower bound": (
        base(autoscaling={"maxReplicas": 1, "targetSequences": 1, "scaleToZero": {"idleSeconds": 60}}),
        "scaleToZero needs minReplicas 0",
    ),
    "bad repository": (base(model={"huggingFace": {"repo": "a/b/c"}}), "spec.model.huggingFace.repo"),
    "endpoint that is no URL": (base(model={"huggingFace": {"repo": "a/b", "endpoint": "hub"}}), "endpoint"),
    "name with a dot": (base("a.b"), "must be a DNS label"),
    "name that begins with a digit": (base("1b"), "must be a DNS label"),
    "name of 51": (base("b" * 51), "at most 50 characters"),
    "served name with a revision": (base(servedName="big@1"), "spec.servedName"),
    "served name with a gap": (lora(servedName="a//b"), "spec.servedName"),
    "served name that leads up": (lora(servedName="a/../b"), "spec.servedName"),
    "served name of 254": (lora(servedName="a" * 254), "spec.servedName"),
    "empty served name": (lora(servedName=""), "spec.servedName"),
    "source of no kind": (source(), "exactly one of huggingFace, oci, s3, volume"),
    "source of two kinds": (source(s3={"bucket": "abc"}, huggingFace={}), "exactly one of huggingFace, oci, s3, volume"),
    "source with a bad name": (base(adapterSources=[{"name": "A", "huggingFace": {}}]), "adapterSources[0].name"),
    "two sources of one name": (base(adapterSources=2 * [{"name": "a", "huggingFace": {}}]), "Duplicate value"),
    "source folder above the volume": (source(volume={"claimName": "c", "path": "a/.."}), "no empty, '.' or '..' component"),
    "bucket with capitals": (source(s3={"bucket": "Adapters"}), "bucket"),
    "prefix with a leading slash": (source(s3={"bucket": "abc", "prefix": "/x"}), "prefix"),
    "everybody's repositories": (source(huggingFace={"repos": ["*"]}), "repos"),
    "registry without an endpoint": (source(oci={"repos": ["a/*"]}), "oci.endpoint: Required"),
    "registry with a path": (source(oci={"endpoint": "https://reg.example/team"}), "oci.endpoint"),
    "registry with a login in its URL": (source(oci={"endpoint": "https://me:pass@reg.example"}), "oci.endpoint"),
    "repository with capitals": (source(oci={"endpoint": "https://reg", "repos": ["Team/a"]}), "repos"),
    "unknown device": (base(engine={"device": "Gpu"}), "engine.device"),
    "unknown number format": (base(engine={"dtype": "int4"}), "engine.dtype"),
    "unknown quantisation": (base(engine={"quantization": "int3"}), "engine.quantization"),
    "unknown way with requests": (base(engine={"unknownFields": "warn"}), "engine.unknownFields"),
    "no tokens": (base(engine={"maxModelLen": 0}), "maxModelLen"),
    "no hosts": (base(engine={"hosts": 0}), "engine.hosts"),
    "ranks that hosts cannot share evenly": (
        base(engine={"tensorParallelSize": 4, "hosts": 3}), "tensorParallelSize must be a multiple of hosts"
    ),
    "more hosts than ranks": (base(engine={"hosts": 2}), "tensorParallelSize must be a multiple of hosts"),
    "no ranks": (base(engine={"tensorParallelSize": 0}), "tensorParallelSize"),
    "unknown format of keys and values": (base(engine={"kvCacheDtype": "fp8_e5m2"}), "engine.kvCacheDtype"),
    "speculation without tokens": (base(engine={"speculation": {"model": "acme/small"}}), "speculation.tokens: Required"),
    "too many draft tokens": (base(engine={"speculation": {"tokens": 65}}), "speculation.tokens"),
    "memory that is no quantity": (base(engine={"kvCacheMemory": "lots"}), "kvCacheMemory"),
    "rank above 256": (base(lora={"maxRank": 257}), "lora.maxRank"),
    "room for no adapter": (base(lora={"maxResidentAdapters": 0}), "lora.maxResidentAdapters"),
    "cache that is no quantity": (base(lora={"diskCache": "-1Gi"}), "lora.diskCache"),
    "unknown way with fields": (base(lora={"unknownConfigFields": "ignore"}), "lora.unknownConfigFields"),
    "unknown way with adapters that requests name": (base(lora={"adHoc": "Anywhere"}), "lora.adHoc"),
    "rollout that never moves": (base(rollout={"maxSurge": 0}), "maxSurge and maxUnavailable cannot both be 0"),
    "rollout in words": (base(rollout={"maxSurge": "many"}), "rollout.maxSurge"),
    "inference pool without a picker": (base(routing={"inferencePool": {}}), "endpointPickerRef: Required"),
    "picker's port that is none": (
        base(routing={"inferencePool": {"endpointPickerRef": {"name": "epp", "port": 0}}}),
        "endpointPickerRef.port",
    ),
    "weights told in a way that there is none of": (
        base(routing={"inferencePool": {"endpointPickerRef": {"name": "epp"}, "modelRewrite": "Always"}}),
        "inferencePool.modelRewrite",
    ),
    "guests without a name": (base(lora={"guests": {"namespaces": [{"allowPin": True}]}}), "namespaces[0].name"),
    "guests with no slot": (base(lora={"guests": {"maxSlots": 0}}), "guests.maxSlots"),
    "negative replicas": (base(replicas=-1), "spec.replicas"),
    "drain for ever": (base(drain={"timeoutSeconds": 3601}), "drain.timeoutSeconds"),
    "bad namespace": (base(allowedNamespaces=["a_b"]), "allowedNamespaces"),
    "unknown field of a base": (base(autoscaling={"minReplicas": 1}), "autoscaling"),
    "adapter without a base": (lora(baseModelRef=None), "spec.baseModelRef: Required"),
    "adapter without a source": (lora(source=None), "spec.source: Required"),
    "path and repo": (lora(source={"name": "a", "path": "x", "repo": "y/z"}), "exactly one of repo, path"),
    "neither path nor repo": (lora(source={"name": "a"}), "exactly one of repo, path"),
    "revision of a path": (lora(source={"name": "a", "path": "x", "revision": "main"}), "revision goes with repo only"),
    "path above the source": (lora(source={"name": "a", "path": "x/../../y"}), "no empty, '.' or '..' component"),
    "absolute path": (lora(source={"name": "a", "path": "/etc"}), "spec.source.path"),
    "short digest": (lora(digest="sha256:00"), "spec.digest"),
    "replicas on all pods": (lora(placement={"mode": "All", "replicas": 2}), "replicas goes with mode Fixed only"),
    "no replicas": (lora(placement={"replicas": 0}), "placement.replicas"),
    "fewest on a fixed number": (
        lora(placement={"mode": "Fixed", "minReplicas": 1}),
        "minReplicas and maxReplicas go with mode Auto only",
    ),
    "most on all pods": (
        lora(placement={"mode": "All", "maxReplicas": 1}),
        "minReplicas and maxReplicas go with mode Auto only",
    ),
    "replicas by load": (lora(placement={"mode": "Auto", "replicas": 1}), "replicas goes with mode Fixed only"),
    "fewest above most": (
        lora(placement={"mode": "Auto", "minReplicas": 3, "maxReplicas": 2}),
        "minReplicas must not be greater than maxReplicas",
    ),
    "no replicas at most": (lora(placement={"mode": "Auto", "maxReplicas": 0}), "should be greater than or equal to 1"),
    "pinned on demand": (lora(placement={"mode": "OnDemand", "pin": True}), "pin does not go with mode OnDemand"),
    "unknown placement": (lora(placement={"mode": "Sometimes"}), "placement.mode"),
    "no time to drain": (lora(unload={"drainTimeoutSeconds": 0}), "drainTimeoutSeconds"),
    "no time for progress": (lora(rollout={"progressDeadlineSeconds": 0}), "rollout.progressDeadlineSeconds"),
    "step that does nothing": (lora(rollout={"steps": [{}]}), "exactly one of setWeight, pause"),
    "step of two": (lora(rollout={"steps": [{"setWeight": 5, "pause": {}}]}), "exactly one of setWeight, pause"),
    "weight that falls": (lora(rollout={"steps": [*STEPS, {"setWeight": 4}]}), "a weight must not be lower than one before"),
    "weight of all": (lora(rollout={"steps": [{"setWeight": 100}]}), "should be less than or equal to 99"),
    "weight of none": (lora(rollout={"steps": [{"setWeight": 0}]}), "should be greater than or equal to 1"),
    "pause of no time": (lora(rollout={"steps": [{"pause": {"durationSeconds": 0}}]}), "durationSeconds"),
    "too many steps": (lora(rollout={"steps": [{"pause": {}}] * 17}), "must have at most 16 items"),
    "query without a range": (measured(thresholdRange={}), "at least one of min, max"),
    "query whose range is empty": (measured(thresholdRange={"min": 2, "max": 1.5}), "min must not be above max"),
    "query of a variable that there is none of": (measured(query='x{a="$(pod)"}'), "query"),
    "analysis by no query": (lora(rollout={"analysis": {"prometheus": []}}), "prometheus"),
    "analysis of nothing": (lora(rollout={"analysis": {}}), "at least one of maxErrorPercent"),
    "window of no time": (lora(rollout={"analysis": {**ANALYSIS, "windowSeconds": 9}}), "windowSeconds"),
    "more errors than requests": (lora(rollout={"analysis": {"maxErrorPercent": 101}}), "maxErrorPercent"),
    "no questions": (lora(verify={"prompts": []}), "verify.prompts"),
    "too many questions": (lora(verify={"prompts": [*MOST_PROMPTS, {**CHECK, "name": "last"}]}), "must have at most 16 items"),
    "two questions of a name": (lora(verify={"prompts": [CHECK, CHECK]}), "Duplicate value"),
    "question without a prompt": (lora(verify={"prompts": [{"name": "a", "expect": {"equals": "x"}}]}), "exactly one of prompt, messages"),
    "question of two": (lora(verify={"prompts": [{**CHECK, "messages": CHAT}]}), "exactly one of prompt, messages"),
    "expectation of nothing": (lora(verify={"prompts": [{**CHECK, "expect": {}}]}), "exactly one of equals, contains, matches"),
    "expectation of two": (
        lora(verify={"prompts": [{**CHECK, "expect": {"equals": "x", "contains": "x"}}]}),
        "exactly one of equals, contains, matches",
    ),
    "no pattern of RE2": (lora(verify={"prompts": [{**CHECK, "expect": {"matches": "(?=x)"}}]}), "matches"),
    "unclosed pattern": (lora(verify={"prompts": [{**CHECK, "expect": {"matches": "("}}]}), "matches"),
    "long answer": (lora(verify={"prompts": [{**CHECK, "maxTokens": 257}]}), "maxTokens"),
    "message of a tool": (
        lora(verify={"prompts": [{"name": "a", "messages": [{"role": "tool", "content": "x"}], "expect": {"equals": "x"}}]}),
        "role",
    ),
    "unknown failure": (lora(rollout={"onFailure": "Panic"}), "rollout.onFailure"),
    "weight that falls for all": (base(lora={"rollout": {"steps": [*STEPS, {"setWeight": 4}]}}), "a weight must not be lower"),
    "unknown field of an adapter": (lora(canary={}), "canary"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_words_that_help(kube: Kube, what: str) -> None:
    asked, words = REFUSED[what]
    with pytest.raises(DemoError) as error:
        ask(kube, asked)
    assert words in str(error.value)


def test_defaults(kube: Kube) -> None:
    spec = ask(kube, base(suspend=None, engine=None))["spec"]
    assert spec.pop("model") == {"volume": {"claimName": "models"}}
    assert spec == {
        "engine": {
            "device": "Auto",
            "dtype": "auto",
            "kvCacheDtype": "auto",
            "tensorParallelSize": 1,
            "hosts": 1,
            "unknownFields": "Refuse",
        },
        "lora": {
            "maxResidentAdapters": 32,
            "maxRank": 64,
            "hostCache": "4Gi",
            "diskCache": "20Gi",
            "loadOnDemand": "Enabled",
            "adHoc": "Forbidden",
            "unknownConfigFields": "Refuse",
        },
        "replicas": 1,
        "drain": {"timeoutSeconds": 60},
        "rollout": {"maxSurge": 1, "maxUnavailable": 0},
        "suspend": False,
    }
    spec = ask(kube, lora())["spec"]
    assert spec["placement"] == {"mode": "Fixed", "pin": False, "priority": 0}
    assert spec["unload"] == {"drainTimeoutSeconds": 60, "forceAfterSeconds": 900}
    assert spec["rollout"] == {"progressDeadlineSeconds": 600}
    assert spec["suspend"] is False
    spec = ask(kube, lora(rollout={"analysis": {"maxErrorPercent": 2}}))["spec"]
    assert spec["rollout"]["analysis"] == {
        "windowSeconds": 120,
        "minRequests": 50,
        "maxErrorPercent": 2,
        "failureLimit": 0,
    }


@pytest.mark.parametrize("document", [base(), lora()], ids=["base", "adapter"])
def test_status_says_unknown_before_any_operator_has_looked(kube: Kube, document: Json) -> None:
    """kstatus takes an object without a Ready condition for done."""
    condition = ask(kube, document)["status"]["conditions"][0]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Ready", "Unknown", "Pending")


def test_what_may_not_change(kube: Kube) -> None:
    apply(kube, base("fixed", servedName="one"))
    apply(kube, base("unnamed"))
    apply(kube, lora("fixed"))
    for document, words in (
        (base("fixed", servedName="two"), "servedName is immutable"),
        (base("fixed"), "servedName is immutable"),
        (base("unnamed", servedName="one"), "servedName is immutable"),
        (lora("fixed", servedName="one"), "servedName is immutable"),
        (lora("fixed", baseModelRef={"name": "other"}), "baseModelRef is immutable"),
        (lora("fixed", baseModelRef={"name": "nobody", "namespace": "x"}), "baseModelRef is immutable"),
    ):
        with pytest.raises(DemoError, match=words):
            apply(kube, document)
    apply(kube, lora("fixed", source={"name": "models", "path": "french-v2"}))


def test_columns(kube: Kube) -> None:
    apply(kube, base("columns"))
    apply(kube, lora("columns"))

    def header(kind: str, *more: str) -> list[str]:
        return kube.kubectl("get", kind, "columns", "-n", NAMESPACE, *more).splitlines()[0].split()

    assert header("bmd") == [
        "NAME",
        "REPLICAS",
        "UP",
        "SCALED-TO",
        "ADAPTERS",
        "READY-ADAPTERS",
        "READY",
        "REASON",
        "SUSPENDED",
        "AGE",
    ]
    assert header("bmd", "-o", "wide")[-5:] == ["OPERATOR", "URL", "STATUS", "SLOTS", "USED-SLOTS"]
    assert header("lora") == [
        "NAME",
        "BASE",
        "MODEL",
        "REVISION",
        "WEIGHT",
        "RESIDENT",
        "READY",
        "REASON",
        "SUSPENDED",
        "AGE",
    ]
    assert header("lora", "-o", "wide")[-6:] == ["SOURCE", "RANK", "DIGEST", "ROLLOUT", "LAST-USED", "MESSAGE"]
    assert "columns" in kube.kubectl("get", "llm", "-n", NAMESPACE, "-o", "name")


def test_scale_is_refused_beside_autoscaling(kube: Kube) -> None:
    """Or a HorizontalPodAutoscaler would set a number that nobody counts."""
    apply(kube, base("by-load", autoscaling={"maxReplicas": 3, "targetSequences": 9}))
    with pytest.raises(DemoError, match="leave autoscaling out"):
        kube.kubectl("scale", "bmd/by-load", "-n", NAMESPACE, "--replicas=2")


def test_scale(kube: Kube) -> None:
    apply(kube, base("scaled", replicas=2))
    kube.kubectl("scale", "bmd/scaled", "-n", NAMESPACE, "--replicas=3")
    assert kube.get("bmd", "scaled", "-n", NAMESPACE)["spec"]["replicas"] == 3
    wait_for(
        "the operator has said how its pods are found",
        lambda: kube.get("bmd", "scaled", "-n", NAMESPACE)["status"].get("selector"),
    )
    path = f"/apis/lorafleet.io/v1alpha1/namespaces/{NAMESPACE}/basemodeldeployments/scaled/scale"
    scale = json.loads(kube.kubectl("get", "--raw", path))
    assert scale["spec"]["replicas"] == 3
    assert scale["status"]["selector"] == "lorafleet.io/base=scaled"


def test_adapters_are_found_by_their_base(kube: Kube) -> None:
    apply(kube, lora("mine", baseModelRef={"name": "this-one"}))
    apply(kube, lora("other"))
    found = kube.kubectl(
        "get", "lora", "-n", NAMESPACE, "--field-selector=spec.baseModelRef.name=this-one", "-o", "name"
    )
    assert found.split() == ["loraadapter.lorafleet.io/mine"]


def test_apply_again_changes_nothing(kube: Kube) -> None:
    """Also after the operator has written status and finalizers: GitOps sees no drift."""
    document = base("again", adapterSources=[{"name": "a", "s3": {"bucket": "abc"}}])
    first = apply(kube, document)
    wait_for(
        "the operator has looked", lambda: "observedGeneration" in kube.get("bmd", "again", "-n", NAMESPACE)["status"]
    )
    second = apply(kube, document)
    assert second["metadata"]["generation"] == first["metadata"]["generation"] == 1
    assert apply(kube, document)["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    assert second["spec"] == first["spec"]


def test_sources_of_two_owners_are_merged_by_name(kube: Kube) -> None:
    """A platform team and a tool of its own each own the sources that they list."""
    name = "owners"
    apply(kube, base(name, adapterSources=[{"name": "a", "s3": {"bucket": "abc"}}]), manager="git")
    other = base(name, adapterSources=[{"name": "b", "huggingFace": {}}])
    both = apply(kube, copy.deepcopy(other), manager="tool")["spec"]["adapterSources"]
    assert [found["name"] for found in both] == ["a", "b"]
    with pytest.raises(DemoError, match="conflict"):
        apply(kube, base(name, adapterSources=[{"name": "a", "s3": {"bucket": "xyz"}}]), manager="tool")


def test_status_is_a_subresource(kube: Kube) -> None:
    """Whoever may write spec cannot say that something is ready."""
    said = {**lora("liar"), "status": {"stableRevision": "0123456789ab"}}
    assert "stableRevision" not in apply(kube, said).get("status", {})
    wait_for("the operator says what is true", lambda: _reason(kube, "liar") == "BaseNotFound")


def _reason(kube: Kube, name: str) -> str:
    conditions = kube.get("lora", name, "-n", NAMESPACE)["status"]["conditions"]
    return str(next(c["reason"] for c in conditions if c["type"] == "Ready"))
