"""One leads: taking, losing and giving back the Lease, and the fence that grows with each leadership."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from kubernetes.aio.client import Configuration
from support.fake_kube import FakeKube
from support.simulated_fleet import until

from lorafleet_common.errors import ConfigError
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeConflict, KubeNotFound, KubeUnavailable
from lorafleet_common.paths import collection
from lorafleet_operator.cluster.keys import admin_key
from lorafleet_operator.cluster.lease import DURATION_SECONDS, Lease
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.errors import LeaseLost, NotLeading


@pytest_asyncio.fixture
async def kube() -> AsyncIterator[FakeKube]:
    server = FakeKube()
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture
async def api(kube: FakeKube) -> AsyncIterator[KubeApi]:
    configuration = Configuration()
    configuration.host = kube.url
    client = KubeApi(configuration)
    yield client
    await client.close()


def lease(api: KubeApi, name: str = "a") -> Lease:
    return Lease(api, namespace="system", name="lease", pod_name=name)


async def test_fence_grows_with_every_leadership(api: KubeApi) -> None:
    for fence in (1, 2, 3):
        it = lease(api)
        await it.acquire()
        assert it.is_held
        assert it.fence == fence
        await it.release()
        assert not it.is_held


async def test_released_lease_is_taken_at_once(kube: FakeKube, api: KubeApi) -> None:
    first, second = lease(api, "a"), lease(api, "b")
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await first.release()
    await asyncio.wait_for(waiting, DURATION_SECONDS - 5)
    assert second.identity == kube.get("leases", "system", "lease")["spec"]["holderIdentity"]


async def test_restarted_container_of_the_same_pod_leads_at_once(api: KubeApi) -> None:
    """The process before it ended without releasing: it is dead, and its successor need not wait for its time to pass."""
    killed, successor = lease(api, "op-0"), lease(api, "op-0")
    await killed.acquire()
    await asyncio.wait_for(successor.acquire(), DURATION_SECONDS - 5)
    assert successor.fence == killed.fence + 1


async def test_lost_lease_ends_the_leader(kube: FakeKube, api: KubeApi) -> None:
    it = lease(api)
    await it.acquire()
    found = kube.get("leases", "system", "lease")
    kube.put("leases", {**found, "spec": {**found["spec"], "holderIdentity": "other", "leaseTransitions": 2}})
    with pytest.raises(LeaseLost, match="other holds it"):
        await asyncio.wait_for(it.hold(), 60)
    await it.release()
    assert kube.get("leases", "system", "lease")["spec"]["holderIdentity"] == "other"


async def test_deleted_lease_ends_the_leader(kube: FakeKube, api: KubeApi) -> None:
    it = lease(api)
    await it.acquire()
    kube.delete("leases", "system", "lease")
    with pytest.raises(LeaseLost, match="deleted"):
        await asyncio.wait_for(it.hold(), 60)


async def test_touched_lease_is_still_held(kube: FakeKube, api: KubeApi) -> None:
    """Somebody has put a label on it: the version is another one, the holder is not."""
    it = lease(api)
    await it.acquire()
    found = kube.get("leases", "system", "lease")
    kube.put("leases", {**found, "metadata": {**found["metadata"], "labels": {"x": "y"}}})
    holding = asyncio.create_task(it.hold())
    renewed = found["spec"]["renewTime"]
    await until("renewed", lambda: kube.get("leases", "system", "lease")["spec"]["renewTime"] != renewed)
    assert not holding.done()
    holding.cancel()


async def test_key_is_made_once(kube: FakeKube, api: KubeApi) -> None:
    first = await admin_key(api, namespace="system", name="key")
    assert len(first) == 32
    assert await admin_key(api, namespace="system", name="key") == first
    kube.put("secrets", {"metadata": {"name": "odd", "namespace": "system"}, "data": {"key": "c2hvcnQ="}})
    with pytest.raises(ConfigError, match="shorter than 32 bytes"):
        await admin_key(api, namespace="system", name="odd")
    kube.put("secrets", {"metadata": {"name": "empty", "namespace": "system"}, "data": {}})
    with pytest.raises(ConfigError, match="has no key"):
        await admin_key(api, namespace="system", name="empty")


async def test_answers_become_errors_by_kind(kube: FakeKube, api: KubeApi) -> None:
    path = collection("v1", "secrets", "system")
    with pytest.raises(KubeNotFound):
        await api.get(f"{path}/nobody")
    await api.create(path, {"metadata": {"name": "a"}})
    with pytest.raises(KubeConflict) as conflict:
        await api.create(path, {"metadata": {"name": "a"}})
    assert conflict.value.retryable
    kube.is_away = True
    with pytest.raises(KubeUnavailable) as away:
        await api.get(f"{path}/a")
    assert (away.value.status, away.value.reason) == (503, "ServiceUnavailable")
    await kube.stop()
    with pytest.raises(KubeUnavailable) as dead:
        await api.get(f"{path}/a")
    assert dead.value.status == 0
    await kube.start()


async def test_follower_tells_a_holder_once(api: KubeApi, caplog: pytest.LogCaptureFixture) -> None:
    first, second = lease(api, "a"), lease(api, "b")
    await first.acquire()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        waiting = asyncio.create_task(second.acquire())
        for _ in range(3):
            await asyncio.sleep(1.0)
            await first.renew()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert sum("the Lease is held by" in record.message for record in caplog.records) == 1


async def test_only_a_leader_writes(kube: FakeKube, api: KubeApi) -> None:
    path, body = collection("v1", "secrets", "system"), {"metadata": {"name": "a"}}
    with pytest.raises(NotLeading):
        await Writes(api, lambda: False).create(path, body)
    with pytest.raises(NotLeading):
        await Writes(api, lambda: False).apply(f"{path}/a", body, manager="m")
    assert kube.writes == []
    await Writes(api, lambda: True).create(path, body)
    assert kube.writes == [f"POST {path}"]
