"""Entries of /v1/models."""

from typing import Any

from lorafleet_gateway.cluster import Cluster
from lorafleet_gateway.views import AdapterView, Named


def described(named: Named, cluster: Cluster) -> dict[str, Any]:
    """Return the entry of a base or an adapter, with the fields that pods give theirs."""
    is_adapter = isinstance(named, AdapterView)
    key = named.base_key if isinstance(named, AdapterView) else named.key
    base = cluster.directory.base(key)
    lengths = [pod.head.max_model_len for pod in cluster.fleet.of(key) if pod.head is not None]
    return {
        "id": named.name,
        "object": "model",
        "created": int(named.created.timestamp()),
        "owned_by": "lorafleet",
        "root": named.root,
        "parent": (base.name if base is not None else None) if is_adapter else None,
        "revision": named.revision if isinstance(named, AdapterView) else None,
        "max_model_len": min(lengths, default=None),
    }
