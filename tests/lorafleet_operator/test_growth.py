"""What an operator remembers of a base that is gone: nothing that would fill its memory."""

import gc
from collections import deque
from collections.abc import AsyncIterator

import pytest_asyncio
from support.simulated_fleet import NAMESPACE, Fleet, simulated_fleet, until

from lorafleet_operator.act.reconcile import Reconciler
from lorafleet_operator.cluster.store import Kind, Store

GONE = "goner"
CONTAINERS = (dict, list, tuple, set, frozenset, deque)


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


def texts(root: object) -> set[str]:
    """All strings that an object of ours holds, itself or by others of ours; what the API server has is the store's."""
    seen, found, todo = set[int](), set[str](), [root]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (type, Store)):
            continue
        seen.add(id(one))
        if isinstance(one, str):
            found.add(one)
        elif isinstance(one, CONTAINERS) or type(one).__module__.startswith("lorafleet_"):
            todo += gc.get_referents(one)
    return found


def reconciler(fleet: Fleet) -> Reconciler:
    assert fleet.health.resync is not None
    store = fleet.health.resync._store
    # by type(): isinstance asks an object for its __class__, and objects of other libraries answer that with a warning
    (found,) = (one for one in gc.get_objects() if type(one) is Reconciler and one._tools.store is store)
    return found


async def test_base_that_is_gone_leaves_nothing_behind(fleet: Fleet) -> None:
    """With an adapter that serves, one that cannot be resolved, and one that a pod could not load."""
    fleet.base(replicas=1)
    fleet.base(GONE, replicas=1)
    fleet.adapter("french")
    paths = {"goner-serves": "german", "goner-missing": "missing", "goner-fails": "bad-load"}
    for name, path in paths.items():
        fleet.adapter(name, path, base={"name": GONE})
    await fleet.operate()
    await fleet.pod()
    pod = await fleet.pod(GONE)
    await until("ready", lambda: fleet.is_ready("french", "goner-serves"))
    await until("refused", lambda: fleet.condition("goner-missing") == ("False", "ArtifactNotFound"))
    await until("failed", lambda: fleet.condition("goner-fails") == ("False", "BaseModelMismatch"))
    (pod_name,) = (name for name, one in fleet.pods.items() if one is pod)
    uids = {
        body["metadata"]["uid"]
        for (kind, _, name), body in fleet.kube.objects.items()
        if kind in tuple(Kind) and name.startswith(GONE)
    }
    assert len(uids) == 5
    known = texts(reconciler(fleet))
    assert any(GONE in text for text in known)
    assert uids & known
    fleet.kube.delete(Kind.BASE, NAMESPACE, GONE)
    for name in paths:
        fleet.delete(name)
    await fleet.kill(pod_name)
    await until("gone", lambda: all(fleet.is_gone(name) for name in paths))

    def left() -> set[str]:
        return {text for text in texts(reconciler(fleet)) if GONE in text or text in uids}

    await until("forgotten", lambda: not left())
    assert fleet.is_ready("french")
