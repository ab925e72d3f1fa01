"""The objects of a base model, built from its spec: pure, and the same for the same spec."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lorafleet_common.paths import Json, collection
from lorafleet_contract.names import (
    BASE_MODEL_KIND,
    GROUP,
    LABEL_BASE,
    LABEL_RANKS_OF,
    LABEL_ROLE,
    MANAGED_BY,
    PUBLIC_PORT,
    ROLE_FRONT,
    ROLE_PODS,
    VERSION,
)
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator.decide.pod_template import Group, pod_template

FRONT_PORT: Final = 80
PROGRESS_SECONDS: Final = 3600
ANNOTATION_TEMPLATE: Final = "lorafleet.io/template"
"""On pods: the hash of the template that they were made from. A Deployment counts new pods, and ready ones of any kind."""
GROUPS: Final = "LeaderWorkerSet"
"""Kind that has the pods of a base whose replicas are of several pods each."""
WORKLOADS: Final = ("Deployment", GROUPS)
KINDS: Final = {
    "Deployment": ("apps/v1", "deployments"),
    GROUPS: ("leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
    "Service": ("v1", "services"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "InferencePool": ("inference.networking.k8s.io/v1", "inferencepools"),
    "InferenceModelRewrite": ("inference.networking.x-k8s.io/v1alpha2", "inferencemodelrewrites"),
}
"""Kind -> API version and plural."""


@dataclass(frozen=True, slots=True)
class Child:
    """One object of a base, ready to be applied."""

    kind: str
    collection: str
    name: str
    body: Json

    @property
    def path(self) -> str:
        """Path of the object."""
        return f"{self.collection}/{self.name}"


def selector(base: BaseModelResource) -> dict[str, str]:
    """Return the labels by which the pods of a base are found."""
    return {LABEL_BASE: base.metadata.name}


def url_of(base: BaseModelResource) -> str:
    """Return the URL of the base's cluster Service."""
    return f"http://{base.metadata.name}.{base.metadata.namespace}.svc"


def admin_token(key: bytes, base_uid: str) -> str:
    """Return the admin token of a base: HMAC-SHA256 of its uid, in hex."""
    return hmac.new(key, base_uid.encode(), hashlib.sha256).hexdigest()


def ranks_secret(key: bytes, base_uid: str) -> str:
    """Return the secret by which pods of a replica know each other: HMAC-SHA256, in hex, of what no other secret is made of."""
    return hmac.new(key, f"ranks of {base_uid}".encode(), hashlib.sha256).hexdigest()


def objects_of(base: BaseModelResource, *, engine_image: str, key: bytes) -> Iterator[Child]:
    """Yield what a base consists of, in the order in which it is applied.

    Raises:
        InvalidSpec: the pod template cannot be built.
    """
    token = admin_token(key, base.metadata.uid)
    if base.spec.engine.hosts == 1:
        yield _deployment(base, engine_image, token)
    else:
        yield _groups(base, engine_image, token, ranks_secret(key, base.metadata.uid))
    yield _service(base, f"{base.metadata.name}-pods", ROLE_PODS)
    yield _service(base, base.metadata.name, ROLE_FRONT)
    yield _disruption_budget(base)


def _labels(base: BaseModelResource) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "lorafleet-inference",
        "app.kubernetes.io/instance": base.metadata.name,
        "app.kubernetes.io/component": "engine",
        "app.kubernetes.io/part-of": "lorafleet",
        "app.kubernetes.io/managed-by": MANAGED_BY,
        LABEL_BASE: base.metadata.name,
    }


def child_of(base: BaseModelResource, kind: str, name: str, content: Json, *, role: str | None = None) -> Child:
    """Return an object of a base, which goes with it."""
    version, plural = KINDS[kind]
    metadata = {
        "name": name,
        "namespace": base.metadata.namespace,
        "labels": {**_labels(base), **({LABEL_ROLE: role} if role else {})},
        "ownerReferences": [
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": BASE_MODEL_KIND,
                "name": base.metadata.name,
                "uid": base.metadata.uid,
                "controller": True,
            }
        ],
    }
    body = {"apiVersion": version, "kind": kind, "metadata": metadata, **content}
    return Child(kind, collection(version, plural, base.metadata.namespace), name, body)


def _sha256(token: str) -> str:
    """Pods get the hash of the token only: their arguments are readable, and the hash does not open the admin port."""
    return hashlib.sha256(token.encode()).hexdigest()


def _marked(template: Json) -> Json:
    """Return a pod template with its hash in it."""
    annotations = {**template["metadata"].get("annotations", {}), ANNOTATION_TEMPLATE: _hash_of(template)}
    return {**template, "metadata": {**template["metadata"], "annotations": annotations}}


def _groups(base: BaseModelResource, engine_image: str, token: str, secret: str) -> Child:
    """Each group is a replica: its first pod serves, and is the only one that counts as a pod of the base."""

    def template(labels: dict[str, str], *, is_first: bool) -> Json:
        labels = {**labels, LABEL_RANKS_OF: base.metadata.name}
        return pod_template(
            base,
            engine_image=engine_image,
            labels=labels,
            token_sha256=_sha256(token),
            group=Group(secret, is_first=is_first),
        )

    others = {name: value for name, value in _labels(base).items() if name != LABEL_BASE}
    rollout = base.spec.rollout
    strategy = {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable}
    content = {
        "spec": {
            "replicas": base.spec.replicas,
            "leaderWorkerTemplate": {
                "size": base.spec.engine.hosts,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": _marked(template(_labels(base), is_first=True)),
                "workerTemplate": template({**others, "app.kubernetes.io/component": "ranks"}, is_first=False),
            },
            "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": strategy},
            "startupPolicy": "LeaderCreated",
            # a Service a group, by the name of its first pod: one for all would have the name of the base's own
            "networkConfig": {"subdomainPolicy": "UniquePerReplica"},
        }
    }
    return child_of(base, GROUPS, base.metadata.name, content)


def _deployment(base: BaseModelResource, engine_image: str, token: str) -> Child:
    template = _marked(pod_template(base, engine_image=engine_image, labels=_labels(base), token_sha256=_sha256(token)))
    rollout = base.spec.rollout
    strategy = {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable}
    content = {
        "spec": {
            "replicas": base.spec.replicas,
            "selector": {"matchLabels": selector(base)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": strategy},
            "progressDeadlineSeconds": PROGRESS_SECONDS,
            "revisionHistoryLimit": 3,
            "template": template,
        }
    }
    return child_of(base, "Deployment", base.metadata.name, content)


def _hash_of(template: Json) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:12]


def _service(base: BaseModelResource, name: str, role: str) -> Child:
    port = PUBLIC_PORT if role == ROLE_PODS else FRONT_PORT
    spec: Json = {
        "selector": selector(base),
        "ports": [
            {"name": "http", "port": port, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"},
        ],
    }
    if role == ROLE_PODS:
        spec["clusterIP"] = "None"
    return child_of(base, "Service", name, {"spec": spec}, role=role)


def _disruption_budget(base: BaseModelResource) -> Child:
    # of a group any pod: the others go with it
    pods = selector(base) if base.spec.engine.hosts == 1 else {LABEL_RANKS_OF: base.metadata.name}
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": pods},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return child_of(base, "PodDisruptionBudget", base.metadata.name, {"spec": spec})
