"""Strategic merge of a user's pod template over the operator's, as far as pod templates need it.

Objects merge key by key, null deletes a key. Lists of the Kubernetes API with a merge key merge item by item: an item
with the same key is merged into the first one, a new one is appended, `$patch: delete` removes it. All other lists are
replaced. `$patch: replace` replaces an object instead of merging it.
"""

from typing import Any, Final

from lorafleet_common.paths import Json
from lorafleet_operator.errors import InvalidSpec

MERGE_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "imagePullSecrets": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "hostAliases": ("ip",),
    "resourceClaims": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
"""Field name of a list -> what identifies an item of it, as in the types of the Kubernetes API."""
DEFAULTS: Final[dict[str, str]] = {"protocol": "TCP"}
"""What a missing part of a key means."""
UNIONS: Final = frozenset({"volumes", "env"})
"""Lists whose items hold one of several sources: an item that names another source replaces the first one."""


def merge(base: Json, patch: Json, *, where: str = "podTemplate") -> Json:
    """Return `base` with `patch` merged into it; neither is changed.

    Raises:
        InvalidSpec: an item of a list lacks its key, or a value has another shape than the one it is merged into.
    """
    directive = patch.get("$patch")
    if directive == "replace":
        return {name: value for name, value in patch.items() if name != "$patch"}
    if directive is not None:
        raise InvalidSpec(f"{where}: $patch {directive!r} is not possible here")
    merged = dict(base)
    for name, value in patch.items():
        at = f"{where}.{name}"
        if value is None:
            merged.pop(name, None)
        elif name not in merged:
            merged[name] = _without_directives(value, at)
        elif isinstance(merged[name], dict):
            if not isinstance(value, dict):
                raise InvalidSpec(f"{at}: is an object")
            merged[name] = merge(merged[name], value, where=at)
        elif name in MERGE_KEYS and isinstance(merged[name], list):
            if not isinstance(value, list):
                raise InvalidSpec(f"{at}: is a list")
            merged[name] = _merge_list(merged[name], value, name, at)
        else:
            merged[name] = value
    return merged


def _merge_list(base: list[Json], patch: list[Any], name: str, where: str) -> list[Json]:
    merged = {_key(item, name, where): item for item in base}
    for index, item in enumerate(patch):
        at = f"{where}[{index}]"
        if not isinstance(item, dict):
            raise InvalidSpec(f"{at}: is an object")
        key = _key(item, name, at)
        if item.get("$patch") == "delete":
            merged.pop(key, None)
        elif key not in merged or (name in UNIONS and not _same_source(merged[key], item)):
            merged[key] = _without_directives(item, at)
        else:
            merged[key] = merge(merged[key], item, where=at)
    return list(merged.values())


def _key(item: Json, name: str, where: str) -> tuple[Any, ...]:
    parts = MERGE_KEYS[name]
    key = tuple(item.get(part, DEFAULTS.get(part)) for part in parts)
    if None in key:
        raise InvalidSpec(f"{where}: lacks {parts[key.index(None)]}")
    return key


def _same_source(first: Json, second: Json) -> bool:
    """Whether an item of a union says only what the first one says, with other details."""
    return not (set(second) - {"name"}) or bool((set(first) & set(second)) - {"name"})


def _without_directives(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        if value.get("$patch") == "delete":
            raise InvalidSpec(f"{where}: there is nothing to delete")
        return {k: _without_directives(v, f"{where}.{k}") for k, v in value.items() if k != "$patch" and v is not None}
    if isinstance(value, list):
        return [_without_directives(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return value
