"""Paths of the Kubernetes API, and objects as JSON: what is needed of it without a client."""

from typing import Any

Json = dict[str, Any]


def collection(group_version: str, plural: str, namespace: str | None = None) -> str:
    """Return the path of a collection; `v1` is the core group, no namespace means all of them."""
    root = "/api/v1" if group_version == "v1" else f"/apis/{group_version}"
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def version_of(body: Json) -> int:
    """Return the resourceVersion of an object or list as the number that it is; 0 when it is none."""
    return as_number(str(body["metadata"].get("resourceVersion") or ""))


def as_number(version: str) -> int:
    """Return a resourceVersion as a number; 0 when it is none."""
    return int(version) if version.isdigit() else 0
