"""The pod template of a base model: what `lorafleet-inference serve` is started with, and what it finds in its pod."""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from lorafleet_common.paths import Json
from lorafleet_contract.base_spec import ModelCache
from lorafleet_contract.names import (
    ADMIN_PORT,
    CACHE_DIR,
    CREDENTIALS_DIR,
    ENGINE_CONTAINER,
    MODEL_MOUNT,
    MODELS,
    PUBLIC_PORT,
    RANKS_PORT,
    VOLUMES_DIR,
)
from lorafleet_contract.quantities import quantity_bytes
from lorafleet_contract.resources import BaseModelResource
from lorafleet_contract.sources import AdapterSource
from lorafleet_operator.decide.strategic_merge import merge
from lorafleet_operator.errors import InvalidSpec

USER: Final = 65532
HOME: Final = "/home/lorafleet"
END_MARGIN_SECONDS: Final = 15
"""After the drain: grace for routers that have not heard, and the end of the engine."""
START_SECONDS: Final = 3600
"""How long a pod may take to download and load a base model."""
GPU: Final = "nvidia.com/gpu"
SECRET_VARIABLE: Final = "LORAFLEET_RANKS_SECRET"


@dataclass(frozen=True, slots=True)
class Group:
    """What a pod is in a replica of several pods."""

    secret: str
    """By which they know each other."""
    is_first: bool
    """Whether it is the one that serves."""


def pod_template(
    base: BaseModelResource, *, engine_image: str, labels: dict[str, str], token_sha256: str, group: Group | None = None
) -> Json:
    """Return the template of a base's pods: the operator's with `spec.podTemplate` merged over it.

    `group`: where a replica is of several pods.

    Raises:
        InvalidSpec: `spec.podTemplate` cannot be merged, or touches what has to stay.
    """
    built = _built(base, engine_image, labels, token_sha256, group)
    merged = merge(built, base.spec.pod_template)
    for label, value in labels.items():
        if merged["metadata"].get("labels", {}).get(label) != value:
            raise InvalidSpec(f"podTemplate.metadata.labels: {label} cannot be changed")
    containers = merged["spec"].get("containers", [])
    engine = next((c for c in containers if c["name"] == ENGINE_CONTAINER), None)
    if engine is None:
        raise InvalidSpec(f"podTemplate.spec.containers: {ENGINE_CONTAINER} cannot be removed")
    ranks, hosts = base.spec.engine.ranks_per_host, base.spec.engine.hosts
    if base.spec.engine.device == "Cuda" and not any("/" in name for name in _limits(engine)):
        engine["resources"] = {**engine.get("resources", {}), "limits": {**_limits(engine), GPU: str(ranks)}}
    asked = str(_limits(engine).get(GPU, ranks))
    if ranks > 1 and asked != str(ranks):
        raise InvalidSpec(
            f"podTemplate.spec.containers: {ENGINE_CONTAINER} asks for {asked} {GPU}, and engine.tensorParallelSize is "
            f"{ranks * hosts}{f' on {hosts} hosts' if hosts > 1 else ''}"
        )
    return merged


def _limits(engine: Json) -> Json:
    return dict(engine.get("resources", {}).get("limits", {}))


def _built(
    base: BaseModelResource, engine_image: str, labels: dict[str, str], token_sha256: str, group: Group | None
) -> Json:
    volumes, mounts = _volumes(base)
    engine = base.spec.engine
    serves = group is None or group.is_first
    container: Json = {
        "name": ENGINE_CONTAINER,
        "image": engine.image or engine_image,
        "command": ["python3", "-m", "lorafleet_inference", "serve" if serves else "ranks"],
        "args": [*serve_arguments(base, token_sha256), *engine.args],
        "env": _environment(base, group),
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in _ports(group)],
        "startupProbe": _probe("/health", periodSeconds=2, failureThreshold=START_SECONDS // 2, timeoutSeconds=2),
        "livenessProbe": _probe("/health", periodSeconds=10, failureThreshold=6, timeoutSeconds=5),
        "readinessProbe": _probe("/ready", periodSeconds=1, failureThreshold=3, timeoutSeconds=3),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # what it said last stands in its status, and from there in ours
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if engine.image_pull_policy is not None:
        container["imagePullPolicy"] = engine.image_pull_policy
    return {
        "metadata": {
            "labels": dict(labels),
            "annotations": {"kubectl.kubernetes.io/default-container": ENGINE_CONTAINER},
        },
        "spec": {
            "automountServiceAccountToken": False,
            # Services named lorafleet-… would appear as variables that look like options
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": base.spec.drain.timeout_seconds + END_MARGIN_SECONDS,
            "securityContext": _security(base),
            "containers": [container],
            "volumes": volumes,
        },
    }


def _ports(group: Group | None) -> list[tuple[str, int]]:
    ports = [("http", PUBLIC_PORT), ("admin", ADMIN_PORT), ("ranks", RANKS_PORT)]
    if group is None:
        return ports[:2]
    return ports if group.is_first else ports[:1]


def _security(base: BaseModelResource) -> Json:
    context: Json = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    cache = base.spec.model.cache
    if cache is not None and cache.persistent_volume_claim is not None:
        # else the kubelet gives each file of the volume its group anew, at each start
        context["fsGroupChangePolicy"] = "OnRootMismatch"
    return context


def serve_arguments(base: BaseModelResource, token_sha256: str) -> list[str]:
    """Return the options of `lorafleet-inference serve` for a base; a change of any of them replaces the pods."""
    spec = base.spec
    speculation = spec.engine.speculation
    options: dict[str, str | None] = {
        "--model": _model(base),
        "--model-revision": spec.model.hugging_face.revision if spec.model.hugging_face else None,
        "--model-s3-endpoint": spec.model.s3.endpoint if spec.model.s3 else None,
        "--model-s3-region": spec.model.s3.region if spec.model.s3 else None,
        "--served-name": base.served_name,
        "--admin-token-sha256": token_sha256,
        "--cache-dir": CACHE_DIR,
        "--volumes-dir": VOLUMES_DIR,
        "--credentials-dir": CREDENTIALS_DIR,
        "--device": spec.engine.device.lower(),
        "--dtype": spec.engine.dtype,
        "--quantization": spec.engine.quantization,
        "--max-model-len": _number(spec.engine.max_model_len),
        "--max-batch-tokens": _number(spec.engine.max_batch_tokens),
        "--kv-cache-dtype": None if spec.engine.kv_cache_dtype == "auto" else spec.engine.kv_cache_dtype,
        "--kv-cache-memory": spec.engine.kv_cache_memory,
        "--tensor-parallel-size": str(ranks) if (ranks := spec.engine.tensor_parallel_size) > 1 else None,
        "--hosts": str(hosts) if (hosts := spec.engine.hosts) > 1 else None,
        "--speculative-tokens": None if speculation is None else str(speculation.tokens),
        "--speculative-model": None if speculation is None else speculation.model,
        "--unknown-fields": "ignore" if spec.engine.unknown_fields == "Ignore" else None,
        "--max-resident-adapters": str(spec.lora.max_resident_adapters),
        "--max-rank": str(spec.lora.max_rank),
        "--unknown-config-fields": "ignore" if spec.lora.unknown_config_fields == "Ignore" else None,
        "--adapter-memory": spec.lora.adapter_memory,
        "--host-cache": spec.lora.host_cache,
        "--disk-cache": spec.lora.disk_cache,
        "--drain-timeout-seconds": str(spec.drain.timeout_seconds),
    }
    arguments = [f"{option}={value}" for option, value in options.items() if value is not None]
    if spec.adapter_sources:
        arguments.append(f"--adapter-sources={_sources_json(spec.adapter_sources)}")
    arguments.append("--load-on-demand" if spec.lora.load_on_demand == "Enabled" else "--no-load-on-demand")
    if spec.lora.ad_hoc == "Sources":
        arguments.append("--ad-hoc-adapters=sources")
    arguments.append("--wait-for-catalogue")
    return arguments


def _model(base: BaseModelResource) -> str:
    model = base.spec.model
    if model.hugging_face is not None:
        return model.hugging_face.repo
    if model.s3 is not None:
        return f"s3://{model.s3.bucket}/{model.s3.prefix.strip('/')}".rstrip("/")
    assert model.volume is not None
    return f"{VOLUMES_DIR}/{MODEL_MOUNT}/{model.volume.path}".rstrip("/")


def _number(number: int | None) -> str | None:
    return None if number is None else str(number)


def _sources_json(sources: list[AdapterSource]) -> str:
    documents = [source.model_dump(mode="json", by_alias=True, exclude_none=True) for source in sources]
    return json.dumps(documents, separators=(",", ":"), sort_keys=True)


def _environment(base: BaseModelResource, group: Group | None) -> list[Json]:
    environment: list[Json] = [
        {"name": "LORAFLEET_POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        {"name": "HOME", "value": HOME},
    ]
    hub = base.spec.model.hugging_face
    if hub is not None and hub.endpoint is not None:
        environment.append({"name": "HF_ENDPOINT", "value": hub.endpoint})
    # whoever has a Secret of their own for it says so by the same name
    if group is not None and all(one.get("name") != SECRET_VARIABLE for one in base.spec.engine.env):
        environment.append({"name": SECRET_VARIABLE, "value": group.secret})
    merged: list[Json] = merge({"env": environment}, {"env": base.spec.engine.env}, where="engine")["env"]
    return merged


def _volumes(base: BaseModelResource) -> tuple[list[Json], list[Json]]:
    """Return the volumes of a pod and where the engine finds them."""
    volumes: list[Json] = []
    mounts: list[Json] = []

    def add(name: str, path: str, source: Json, *, read_only: bool) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})})

    def add_claim(source: str, claim: str) -> None:
        volume = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        add(_volume_name("volume", source), f"{VOLUMES_DIR}/{source}", volume, read_only=True)

    def add_credentials(source: str, secret: str) -> None:
        volume = {"secret": {"secretName": secret, "defaultMode": 0o440}}
        if source != MODEL_MOUNT:
            # a Secret that is missing concerns the adapters of its source; the pod names it, and takes it when it comes
            volume["secret"]["optional"] = True
        add(_volume_name("credentials", source), f"{CREDENTIALS_DIR}/{source}", volume, read_only=True)

    add("cache", CACHE_DIR, {"emptyDir": _cache(base)}, read_only=False)
    add("tmp", "/tmp", {"emptyDir": {}}, read_only=False)  # noqa: S108
    add("home", HOME, {"emptyDir": {}}, read_only=False)
    if base.spec.engine.tensor_parallel_size > 1:
        # NCCL's, between the GPUs of a pod: container runtimes give 64 MiB, of which it needs more
        add("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}}, read_only=False)  # noqa: S108
    model = base.spec.model
    if model.cache is not None:
        volume, read_only = _model_cache(model.cache)
        add("model-cache", f"{CACHE_DIR}/{MODELS}", volume, read_only=read_only)
    if model.volume is not None:
        add_claim(MODEL_MOUNT, model.volume.claim_name)
    else:
        downloaded = model.hugging_face or model.s3
        if downloaded is not None and downloaded.credentials_secret_ref is not None:
            add_credentials(MODEL_MOUNT, downloaded.credentials_secret_ref.name)
    for source in base.spec.adapter_sources:
        if source.volume is not None:
            add_claim(source.name, source.volume.claim_name)
            continue
        if source.credentials_secret_ref is not None:
            add_credentials(source.name, source.credentials_secret_ref.name)
    return volumes, mounts


def _cache(base: BaseModelResource) -> Json:
    """The engine keeps to the disk cache; the kubelet evicts a pod that is a tenth and a gibibyte above it.

    A base model of a hub or a bucket is downloaded beside it where there is no volume for it, of a size that nobody declares: then
    there is no limit.
    """
    if base.spec.model.volume is None and base.spec.model.cache is None:
        return {}
    mebibytes = quantity_bytes(base.spec.lora.disk_cache) * 11 // 10 // 2**20 + 1024
    # canonical, as the API server would write it: another form of the same would be applied again and again
    return {"sizeLimit": f"{mebibytes // 1024}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"}


def _model_cache(cache: ModelCache) -> tuple[Json, bool]:
    """Return the volume, and whether pods only read it."""
    claim = cache.persistent_volume_claim
    if claim is not None:
        read_only = {"readOnly": True} if claim.read_only else {}
        return {"persistentVolumeClaim": {"claimName": claim.claim_name, **read_only}}, claim.read_only
    assert cache.host_path is not None
    # one that the kubelet makes belongs to root, and no pod could write there: it has to exist
    return {"hostPath": {"path": cache.host_path.path, "type": "Directory"}}, False


def _volume_name(kind: str, source: str) -> str:
    """A volume's name is a DNS label, a source's name may be as long as one."""
    if source == MODEL_MOUNT:
        return f"model-{kind}"
    name = f"{kind}-{source}"
    if len(name) <= 63:
        return name
    return f"{name[:54]}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _probe(path: str, **times: int) -> Json:
    return {"httpGet": {"path": path, "port": "http"}, **times}
