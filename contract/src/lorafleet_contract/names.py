"""Names that more than one part uses: API group, labels, ports, headers, paths in the pod."""

from typing import Final

GROUP: Final = "lorafleet.io"
VERSION: Final = "v1alpha1"
BASE_MODEL_PLURAL: Final = "basemodeldeployments"
BASE_MODEL_KIND: Final = "BaseModelDeployment"
ADAPTER_PLURAL: Final = "loraadapters"
ADAPTER_KIND: Final = "LoraAdapter"
FINALIZER: Final = "lorafleet.io/unload"
ANNOTATION_RELEASE_NAME: Final = "lorafleet.io/release-name"
"""`true` on either kind: its served name is not reserved for its namespace when it is deleted."""
ANNOTATION_RETRY: Final = "lorafleet.io/retry"
"""On either kind, with any new value: what has failed is tried again at once."""
ANNOTATION_PROMOTE: Final = "lorafleet.io/promote"
"""On a LoraAdapter: a revision, to make it the stable one now; or `REVISION:INDEX`, to go past the step of that index."""
ANNOTATION_ABORT: Final = "lorafleet.io/abort"
"""On a LoraAdapter: a revision, to give its rollout up. It wins over a promotion."""

ANNOTATION_OPERATOR: Final = "lorafleet.io/operator"
"""On a BaseModelDeployment: `namespace/Lease` of the operator that is to have it, of several in a cluster."""

ANNOTATION_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
"""On pods, of Kubernetes: where a ReplicaSet has too many, those with less go first."""

LABEL_BASE: Final = "lorafleet.io/base"
"""On pods, Services and EndpointSlices of a base: the name of its BaseModelDeployment."""
LABEL_RANKS_OF: Final = "lorafleet.io/ranks-of"
"""On all pods of a base whose replicas are of several pods each: its name. Only the first pod of each has LABEL_BASE too."""
LABEL_ROLE: Final = "lorafleet.io/role"
"""`pods` on the headless Service (the one whose EndpointSlices a gateway watches), `front` on the cluster Service."""
ROLE_PODS: Final = "pods"
ROLE_FRONT: Final = "front"
MANAGED_BY: Final = "lorafleet-operator"

PUBLIC_PORT: Final = 8000
ADMIN_PORT: Final = 8001
RANKS_PORT: Final = 8004
"""Of the first pod of a base that spans several: the others come to it here."""
ENGINE_CONTAINER: Final = "engine"

HEADER_REVISION: Final = "x-lorafleet-revision"
"""In a request to a pod: the revision to answer with. In every answer: the revision that answered, absent for the base."""
HEADER_SESSION: Final = "x-lorafleet-session"
"""In a request to a gateway: while several revisions share an adapter's traffic, the same value meets the same one."""
HEADER_ADAPTER: Final = "x-lorafleet-adapter"
"""In every answer: the served name of the adapter that answered; absent for the base."""
HEADER_POD: Final = "x-lorafleet-pod"
"""In every answer: the name of the pod that answered."""

CREDENTIALS_DIR: Final = "/var/run/lorafleet/credentials"
"""`<CREDENTIALS_DIR>/<source name>/<key>`: mounted Secrets of adapter sources (and `_model` of the base model)."""
VOLUMES_DIR: Final = "/var/lib/lorafleet/volumes"
"""`<VOLUMES_DIR>/<source name>`: mounted volumes of adapter sources (and `_model` of the base model), read-only."""
CACHE_DIR: Final = "/var/cache/lorafleet"
"""The node cache of downloaded adapters and models (an emptyDir with a size limit unless the pod template says otherwise)."""
MODELS: Final = "models"
"""Below the cache: base models of hubs. `spec.model.cache` mounts a volume there that outlives pods."""
MODEL_MOUNT: Final = "_model"

REVISION_LENGTH: Final = 12

SERVED_NAME: Final = r"^[A-Za-z0-9_:-][A-Za-z0-9._:-]*(/[A-Za-z0-9_:-][A-Za-z0-9._:-]*)*$"
"""A model name as people write them: components that `/` separates, none of which begins with a dot, so that a name in
the path of a URL is never taken for `.` or `..`. A name is never part of a path on disk."""
MAX_SERVED_NAME: Final = 253
REVISION_MARK: Final = "@"
"""`name@revision` in a request means one revision of an adapter."""


def revision_of(digest: str) -> str:
    """Return the short revision of a content digest `sha256:<64 hex>`: its first 12 hex digits.

    Raises:
        ValueError: the digest has another form.
    """
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"not a sha256 digest: {digest!r}")
    return value[:REVISION_LENGTH]


def split_model(model: str) -> tuple[str, str | None]:
    """Return the name and the revision that `model` of a request means; None: whatever revision is stable."""
    name, mark, revision = model.partition(REVISION_MARK)
    return name, revision if mark else None
