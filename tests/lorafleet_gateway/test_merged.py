"""`merged_adapters` through the gateway: whose adapters they are, and which pod makes the merge."""

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from support.upstream_pods import REVISION, PodDouble, refusing_in_lorax

from lorafleet_common.keys.guard import Guard, hash_of, new_key
from lorafleet_contract.admin import Tier
from lorafleet_contract.keys import read_keys
from lorafleet_gateway import metrics
from lorafleet_gateway.fleet.pods import Pod
from lorafleet_gateway.fleet.routing import Candidate
from lorafleet_gateway.views import Endpoint

from .conftest import World, eventually

OTHER = "bbbbbbbbbbbb"


def asking(*ids: Any, **parameters: Any) -> dict[str, Any]:
    return {
        "inputs": "one",
        "parameters": {"merged_adapters": {"ids": list(ids), "weights": [1] * len(ids)}, **parameters},
    }


async def post(
    world: World, body: Any, path: str = "/generate", headers: dict[str, str] | None = None
) -> httpx.Response:
    assert world.client is not None
    return await world.client.post(path, json=body, headers=headers)


async def pods(world: World, number: int = 3) -> Sequence[PodDouble]:
    """Pods that know all adapters; `french` lies on the device of the first."""
    world.adapter("german")
    made = [await world.pod(f"pod-{index}") for index in range(number)]
    for pod in made:
        pod.hold("german", "Disk")
        pod.hold("french", "Device" if pod is made[0] else "Disk")
    world.endpoints(*made)
    await world.open()
    await eventually("known", lambda: world.knows("german") and world.num_reachable() == number)
    return made


async def test_one_pod_makes_a_merge_for_all_who_ask(world: World) -> None:
    """The body goes as it came, without a revision: pods merge what is stable. Merges spread over the pods."""
    made = await pods(world)
    for path in ("/", "/generate", "/generate_stream", "/generate"):
        assert (await post(world, asking("french", "german"), path)).status_code == 200
    (chosen,) = [pod for pod in made if pod.received]
    assert [sent.path for sent in chosen.received] == ["/", "/generate", "/generate_stream", "/generate"]
    for sent in chosen.received:
        assert json.loads(sent.body) == asking("french", "german")
        assert "x-lorafleet-revision" not in sent.headers
    for names in (("french",), ("german",), ("german", "french"), ("french", "french"), ("german", "german")):
        assert (await post(world, asking(*names))).status_code == 200
    assert sum(bool(pod.received) for pod in made) > 1
    assert world.client is not None
    told = (await world.client.get(world.metrics_url)).text
    assert 'adapter="_merged"' in told
    assert "french,german" not in told


async def test_a_pod_is_as_near_as_the_part_that_is_farthest() -> None:
    pod = Pod(("team", "base"), Endpoint("uid", "pod", "http://127.0.0.1:1", is_ready=True))
    pod.tiers = {("a", "1"): Tier.DEVICE, ("b", "1"): Tier.DISK, ("c", "1"): Tier.SOURCE}

    def tier(*names: str) -> Tier | None:
        found: Candidate = pod.merge_candidate((name, "1") for name in names)
        return found.tier

    assert [tier("a"), tier("a", "b"), tier("a", "b", "c"), tier("a", "d"), tier("c", "d")] == [
        Tier.DISK,
        Tier.DISK,
        Tier.SOURCE,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("asked", "headers", "status", "param"),
    [
        (asking("french", "nobody"), {}, 424, "parameters.merged_adapters.ids"),
        (asking("french", "numerals"), {}, 422, "parameters.merged_adapters.ids"),
        (asking("french", "elsewhere"), {}, 422, "parameters.merged_adapters.ids"),
        (asking("french", "german@xyz"), {}, 422, "parameters.merged_adapters.ids"),
        (asking("french", f"german@{OTHER}"), {}, 424, "parameters.merged_adapters.ids"),
        (asking("french", "german"), {"x-lorafleet-revision": REVISION}, 422, "parameters.merged_adapters.ids"),
        (asking("french", adapter_id="german"), {}, 422, "parameters.merged_adapters"),
        (asking(), {}, 422, "parameters.merged_adapters.ids"),
        (asking(*["french"] * 17), {}, 422, "parameters.merged_adapters.ids"),
        (asking("french", 5), {}, 422, "parameters.merged_adapters.ids.1"),
    ],
)
async def test_what_no_pod_could_merge_reaches_none(
    world: World, asked: Any, headers: dict[str, str], status: int, param: str
) -> None:
    world.base("other")
    world.adapter("elsewhere", base="other")
    made = await pods(world, 1)
    await eventually("known", lambda: world.knows("elsewhere"))
    answer = await post(world, asked, headers=headers)
    assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text
    assert not made[0].received


async def test_a_revision_that_is_named_may_be_asked_for(world: World) -> None:
    (pod,) = await pods(world, 1)
    assert (await post(world, asking("french", f"german@{REVISION}"))).status_code == 200
    assert len(pod.received) == 1


async def test_a_pod_that_is_behind_is_not_the_last_one(world: World) -> None:
    """Its refusal says nothing of a revision, and is no evidence against one."""
    made = await pods(world, 2)
    made[0].reply = made[1].reply = refusing_in_lorax(424, "revision_not_found", "generation")
    answer = await post(world, asking("french", "german"))
    assert (answer.status_code, answer.json()["code"]) == (503, "adapter_loading")
    assert all(pod.received for pod in made)


async def test_a_key_has_to_have_every_part(world: World) -> None:
    key = new_key()
    world.adapter("german")
    pod = await world.pod("one")
    for name in ("french", "german"):
        pod.hold(name)
    world.endpoints(pod)
    entry = {"name": "team", "hashes": [hash_of(key)], "models": ["french", "numerals"]}
    guard = Guard(read_keys(json.dumps({"keys": [entry]}).encode()), metrics.KEYS)
    await world.open(guard=guard)
    headers = {"authorization": f"Bearer {key}"}
    for names in (("french", "german"), ("german",), ("french", "nobody")):
        refused = await post(world, asking(*names), headers=headers)
        assert (refused.status_code, refused.json()["param"]) == (403, "parameters.merged_adapters.ids")
    assert not pod.received
    assert (await post(world, asking("french"), headers=headers)).status_code == 200
