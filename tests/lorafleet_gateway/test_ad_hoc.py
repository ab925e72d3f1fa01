"""Adapters that nobody declared, through the gateway: which base, which pod, and whose right."""

import json
from typing import Any

import httpx
import pytest

from lorafleet_common.keys.guard import Guard, hash_of, new_key
from lorafleet_contract.keys import read_keys
from lorafleet_gateway import metrics

from .conftest import World, eventually

ALLOWED = {"lora": {"adHoc": "Sources"}}


def asking(name: str = "acme/red", **parameters: Any) -> dict[str, Any]:
    return {"inputs": "one", "parameters": {"adapter_id": name, "adapter_source": "hub", **parameters}}


async def post(world: World, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    assert world.client is not None
    return await world.client.post("/generate", json=body, headers=headers)


async def test_one_pod_has_it_for_all_who_ask(world: World) -> None:
    world.base(spec=ALLOWED)
    made = [await world.pod(f"pod-{number}") for number in range(3)]
    world.endpoints(*made)
    await world.open()
    for _ in range(4):
        assert (await post(world, asking())).status_code == 200
    (chosen,) = [pod for pod in made if pod.received]
    for sent in chosen.received:
        assert json.loads(sent.body) == asking()
        assert "x-lorafleet-revision" not in sent.headers
    for number in range(12):
        assert (await post(world, asking(f"acme/other-{number}"))).status_code == 200
    assert all(pod.received for pod in made)
    assert world.client is not None
    told = (await world.client.get(world.metrics_url)).text
    assert 'adapter="_ad_hoc"' in told
    assert "acme" not in told


async def test_a_declared_name_is_what_was_declared(world: World) -> None:
    world.base(spec=ALLOWED)
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    assert (await post(world, asking("french"))).status_code == 200
    assert "x-lorafleet-revision" in pod.received[-1].headers


@pytest.mark.parametrize(
    ("spec", "asked", "headers", "status"),
    [
        ({}, asking(), {}, 424),
        ({"lora": {"adHoc": "Forbidden"}}, asking(), {}, 424),
        (ALLOWED, {"inputs": "one", "parameters": {"adapter_id": "acme/red"}}, {}, 424),
        (ALLOWED, asking(), {"x-lorafleet-revision": "a" * 12}, 422),
    ],
)
async def test_where_it_is_not_allowed_no_pod_hears_of_it(
    world: World, spec: Any, asked: Any, headers: dict[str, str], status: int
) -> None:
    world.base(spec=spec)
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    answer = await post(world, asked, headers)
    assert answer.status_code == status, answer.text
    assert not pod.received


async def test_of_several_bases_that_allow_it_none_is_meant(world: World) -> None:
    world.base(spec=ALLOWED)
    world.base("other", spec=ALLOWED)
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    await eventually("known", lambda: world.knows("other"))
    answer = await post(world, asking())
    assert (answer.status_code, "declare it on one" in answer.text) == (422, True)
    assert not pod.received


async def test_a_key_has_to_have_the_name(world: World) -> None:
    key = new_key()
    world.base(spec=ALLOWED)
    pod = await world.pod("one")
    world.endpoints(pod)
    entry = {"name": "team", "hashes": [hash_of(key)], "models": ["numerals", "acme/*"]}
    await world.open(guard=Guard(read_keys(json.dumps({"keys": [entry]}).encode()), metrics.KEYS))
    headers = {"authorization": f"Bearer {key}"}
    assert (await post(world, asking(), headers)).status_code == 200
    assert (await post(world, asking("other/red"), headers)).status_code == 403
    assert len(pod.received) == 1
