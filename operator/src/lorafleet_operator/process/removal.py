"""Before and after the operator is uninstalled: what would be left without anybody, and what it made for itself."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from lorafleet_common.kube.client import KubeApi, connect
from lorafleet_common.kube.errors import KubeError, KubeNotFound
from lorafleet_common.paths import Json, collection
from lorafleet_contract.names import ADAPTER_KIND, BASE_MODEL_KIND, FINALIZER, GROUP, VERSION
from lorafleet_operator.cluster.collect import base_key_of
from lorafleet_operator.cluster.lease import GROUP_VERSION
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.errors import OperatorError

MAX_NAMED: Final = 50


@dataclass(frozen=True, slots=True)
class Remaining:
    """What nobody would care for without this operator."""

    bases: tuple[str, ...]
    """`namespace/name`."""
    adapters: tuple[str, ...]
    """Those that hold the finalizer."""

    def lines(self) -> list[str]:
        """Return what people are to know."""
        lines = []
        if self.adapters:
            lines += [
                f"{len(self.adapters)} {ADAPTER_KIND}s would never end when they are deleted, without an operator:"
            ]
            lines += _named(self.adapters)
        if self.bases:
            lines += [f"{len(self.bases)} {BASE_MODEL_KIND}s, whose pods would go on without an operator:"]
            lines += _named(self.bases)
        return lines


def _named(names: Collection[str]) -> list[str]:
    shown = [f"  {name}" for name in sorted(names)[:MAX_NAMED]]
    return [*shown, f"  and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else shown


async def remaining(api: KubeApi, me: str, namespaces: Collection[str]) -> Remaining:
    """Return what an operator `namespace/Lease` would leave behind in its namespaces; none are all.

    Raises:
        KubeError: it cannot be seen.
    """
    bases, adapters = [await _list(api, kind, namespaces) for kind in (Kind.BASE, Kind.ADAPTER)]
    foreign = {base_key_of(Kind.BASE, body) for body in bases if (_holder(body) or me) != me}
    return Remaining(
        bases=tuple(_title(body) for body in bases if base_key_of(Kind.BASE, body) not in foreign),
        adapters=tuple(
            _title(body)
            for body in adapters
            if FINALIZER in body["metadata"].get("finalizers", []) and base_key_of(Kind.ADAPTER, body) not in foreign
        ),
    )


async def clean_up(api: KubeApi, *, namespace: str, lease: str, names: str, key_secret: str) -> list[str]:
    """Remove the Lease and the names that were kept, and the key unless pods of a base still have tokens of it; return what was done.

    Raises:
        KubeError: something could not be removed.
    """
    done = []
    if await _delete(api, f"{collection(GROUP_VERSION, 'leases', namespace)}/{lease}"):
        done.append(f"Lease {namespace}/{lease} is removed")
    if await _delete(api, f"{collection('v1', 'configmaps', namespace)}/{names}"):
        done.append(f"ConfigMap {namespace}/{names} is removed")
    bases = (await api.list(collection(f"{GROUP}/{VERSION}", Kind.BASE))).items
    users = [_title(body) for body in bases if _holder(body) in (None, f"{namespace}/{lease}")]
    if users:
        return [*done, f"Secret {namespace}/{key_secret} stays: pods of {', '.join(sorted(users)[:MAX_NAMED])} know it"]
    if await _delete(api, f"{collection('v1', 'secrets', namespace)}/{key_secret}"):
        done.append(f"Secret {namespace}/{key_secret} is removed")
    return done


async def run_remaining(me: str, namespaces: Collection[str]) -> Remaining:
    """As `remaining`, with a connection of its own.

    Raises:
        OperatorError: it cannot be seen.
    """
    api = await _connected()
    try:
        return await remaining(api, me, namespaces)
    except KubeNotFound:
        return Remaining((), ())  # no definitions, so nothing of them
    except KubeError as error:
        raise OperatorError(f"what is left cannot be seen: {error}") from error
    finally:
        await api.close()


async def run_clean_up(namespace: str, lease: str, names: str, key_secret: str) -> list[str]:
    """As `clean_up`, with a connection of its own.

    Raises:
        OperatorError: something could not be removed.
    """
    api = await _connected()
    try:
        return await clean_up(api, namespace=namespace, lease=lease, names=names, key_secret=key_secret)
    except KubeError as error:
        raise OperatorError(f"not everything could be removed: {error}") from error
    finally:
        await api.close()


async def _connected() -> KubeApi:
    try:
        return await connect()
    except KubeError as error:
        raise OperatorError(str(error)) from error


async def _list(api: KubeApi, kind: Kind, namespaces: Collection[str]) -> list[Json]:
    found = []
    for namespace in namespaces or (None,):
        found += (await api.list(collection(f"{GROUP}/{VERSION}", kind, namespace))).items
    return found


async def _delete(api: KubeApi, path: str) -> bool:
    """Delete an object; return whether there was one."""
    try:
        await api.request("DELETE", path)
    except KubeNotFound:
        return False
    return True


def _holder(base: Json) -> str | None:
    return (base.get("status") or {}).get("operator") or None


def _title(body: Json) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"
