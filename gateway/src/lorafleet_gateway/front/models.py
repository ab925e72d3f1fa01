"""Entries of /v1/models."""

from collections.abc import Iterable
from typing import Any

from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.views import AdapterView, BaseKey, Named


def described(models: Iterable[Named], cluster: Cluster) -> list[dict[str, Any]]:
    """Return the entries of bases and adapters, with the fields that pods give theirs."""
    lengths: dict[BaseKey, int | None] = {}
    entries = []
    for named in models:
        key = named.base_key if isinstance(named, AdapterView) else named.key
        if key not in lengths:
            lengths[key] = _max_model_len(key, cluster)
        base = cluster.directory.base(key)
        entries.append(
            {
                "id": named.name,
                "object": "model",
                "created": int(named.created.timestamp()),
                "owned_by": "lorafleet",
                "root": named.root,
                "parent": base.name if isinstance(named, AdapterView) and base is not None else None,
                "revision": named.revision if isinstance(named, AdapterView) else None,
                "max_model_len": lengths[key],
                "invocation_tokens": named.invocation_tokens if isinstance(named, AdapterView) else None,
            }
        )
    return entries


def _max_model_len(key: BaseKey, cluster: Cluster) -> int | None:
    """What every pod of the base takes; None while none has said."""
    return min((pod.head.max_model_len for pod in cluster.fleet.of(key) if pod.head is not None), default=None)
