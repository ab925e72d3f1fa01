"""Two real pods behind the gateway: what both sides of the contract mean by it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from openai import AsyncOpenAI, NotFoundError
from support.lorax_client import Call, run
from support.pod import ServedPod, serve
from support.tiny_llama import make_adapter, make_base

from lorafleet_contract.names import HEADER_REVISION, HEADER_SESSION, LABEL_BASE, LABEL_ROLE
from lorafleet_contract.routes import Routes

from .conftest import NAMESPACE, World, eventually

pytestmark = pytest.mark.slow
ASKED = {"prompt": "one two three", "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[list[ServedPod]]:
    base = tmp_path / "tiny"
    make_base(base)
    for seed, name in enumerate(("red", "blue", "newer"), start=1):
        make_adapter(base, tmp_path / name, rank=4 * seed, seed=seed)
    red, blue = {"red": tmp_path / "red"}, {"blue": tmp_path / "blue"}
    with ExitStack() as stack:
        start = [
            lambda: serve(
                base, "--served-name=tiny", "--pod-name=first", "--drain-grace-seconds=1", adapters={**red, **blue}
            ),
            lambda: serve(
                base, "--served-name=tiny", "--pod-name=second", adapters={**red, "blue": tmp_path / "newer"}
            ),
        ]
        yield [stack.enter_context(made()) for made in start]


def routes_of(pod: ServedPod) -> Routes:
    return Routes.model_validate_json(pod.get("/v1/routes").content)


def put_endpoint(world: World, name: str, pod: ServedPod) -> None:
    endpoint = {
        "addresses": ["127.0.0.1"],
        "conditions": {"ready": True},
        "targetRef": {"kind": "Pod", "name": name, "uid": name},
    }
    world.kube.put(
        "endpointslices",
        NAMESPACE,
        name,
        labels={LABEL_BASE: "tiny", LABEL_ROLE: "pods"},
        addressType="IPv4",
        endpoints=[endpoint],
        ports=[{"name": "http", "port": urlsplit(pod.url).port}],
    )


async def test_the_contract_as_both_sides_mean_it(world: World, pods: list[ServedPod]) -> None:
    """Same tokens as asked directly, each adapter where it is, unknown revisions refused, a pod that ends under traffic unnoticed."""
    first, second = pods
    whole = routes_of(first)
    known = first.get(f"/v1/routes?after={whole.generation}&boot_id={whole.boot_id}").content
    assert Routes.model_validate_json(known).adapters is None
    revisions = {adapter.name: adapter.revision for adapter in routes_of(first).adapters}
    assert set(revisions) == {"red", "blue"}
    world.base("tiny")
    for name, revision in revisions.items():
        world.adapter(name, base="tiny", status={"stableRevision": revision})
    put_endpoint(world, "first", first)
    put_endpoint(world, "second", second)
    client = await world.open()
    assert world.num_reachable("tiny") == 2
    openai = await world.stack.enter_async_context(
        AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="secret", max_retries=0, timeout=60)
    )
    direct = await world.stack.enter_async_context(first.async_openai())

    for model in ("tiny", "red", "blue"):
        expected = (await direct.completions.create(model=model, **ASKED)).choices[0].text
        answer = await openai.completions.with_raw_response.create(model=model, **ASKED)
        assert answer.parse().choices[0].text == expected
        assert answer.headers.get("x-lorafleet-revision") == revisions.get(model)
        streamed = [
            chunk.choices[0].text async for chunk in await openai.completions.create(model=model, stream=True, **ASKED)
        ]
        assert "".join(streamed) == expected
        assert len(streamed) > 3
    assert (await openai.completions.with_raw_response.create(model="blue", **ASKED)).headers[
        "x-lorafleet-pod"
    ] == "first"
    assert {model.id: model.max_model_len for model in (await openai.models.list()).data}.keys() == {  # type: ignore[attr-defined]
        "tiny", "red", "blue", "numerals", "french",
    }  # fmt: skip

    await lorax_client_gets_the_same(str(client.base_url), direct)
    with pytest.raises(NotFoundError, match="revision") as refused:
        await openai.completions.create(model="red", extra_headers={"x-lorafleet-revision": "0" * 12}, **ASKED)
    assert refused.value.code == "revision_not_found"

    await a_canary_has_a_share(world, openai, first, second)
    await a_pod_ends_under_traffic(openai, first)
    await eventually("the gateway knows", lambda: world.num_reachable("tiny") == 1)


async def a_canary_has_a_share(world: World, openai: AsyncOpenAI, first: ServedPod, second: ServedPod) -> None:
    """Each revision is on one pod; then no pod has the canary, and pods refuse it in their own words on either API."""
    stable, canary = (
        next(a.revision for a in routes_of(pod).adapters or () if a.name == "blue") for pod in (first, second)
    )
    assert stable != canary
    texts = {}
    for revision, pod in ((stable, first), (canary, second)):
        async with pod.async_openai() as direct:
            texts[revision] = (await direct.completions.create(model="blue", **ASKED)).choices[0].text
    assert texts[stable] != texts[canary], "the text tells the revision"
    assert world.client is not None
    for shown, expected in ((canary, {stable, canary}), ("0" * 12, {stable})):
        traffic = [{"revision": stable, "weight": 50}, {"revision": shown, "weight": 50}]
        world.adapter("blue", base="tiny", status={"stableRevision": stable, "traffic": traffic})
        await eventually("told", lambda shown=shown: shown in world.cluster.directory.target("blue").pinnable)  # type: ignore[union-attr]
        met = []
        for session in range(12):
            headers = {HEADER_SESSION: str(session)}
            answer = await openai.completions.with_raw_response.create(model="blue", extra_headers=headers, **ASKED)
            met.append(answer.headers[HEADER_REVISION])
            assert answer.parse().choices[0].text == texts[met[-1]]
            asked = {"inputs": ASKED["prompt"], "parameters": {"adapter_id": "blue", "max_new_tokens": 2}}
            lorax = await world.client.post("/generate", json=asked, headers=headers)
            assert (lorax.status_code, lorax.headers[HEADER_REVISION]) == (200, met[-1])
        assert set(met) == expected


async def lorax_client_gets_the_same(url: str, direct: AsyncOpenAI) -> None:
    """LoRAX's own client, through the gateway; the base has to be named, as there are two."""
    names, fields = ("tiny", "red", "blue"), {"max_new_tokens": 12, "ignore_eos_token": True}
    calls = [Call(str(ASKED["prompt"]), {"adapter_id": name, **fields}, is_async=name == "red") for name in names]
    streams = [replace(call, method="generate_stream") for call in calls]
    nobody = Call("one", {"adapter_id": "nobody"})
    *found, refused = await asyncio.to_thread(run, url, *calls, *streams, nobody)
    assert refused["error"] == "lorax.errors.GenerationError"
    for name, whole, streamed in zip(names, found, found[len(names) :], strict=False):
        expected = (await direct.completions.create(model=name, **ASKED)).choices[0].text
        assert whole["answer"]["generated_text"] == expected
        assert streamed["answer"][-1]["generated_text"] == expected


async def a_pod_ends_under_traffic(openai: AsyncOpenAI, pod: ServedPod) -> None:
    """Nobody tells the gateway but the pod itself: its endpoint stays ready in the API server."""
    enough = asyncio.Event()
    answered: list[str] = []

    async def keep_asking() -> None:
        while not enough.is_set():
            answer = await openai.completions.create(model="red", **ASKED)
            answered.append(answer.choices[0].text)

    asking = [asyncio.create_task(keep_asking()) for _ in range(3)]
    ended = threading.Thread(target=pod.wait_ended)
    await eventually("traffic", lambda: len(answered) > 5)
    pod.terminate()
    ended.start()
    await asyncio.to_thread(ended.join)
    before = len(answered)
    await eventually("traffic goes on", lambda: len(answered) > before + 5)
    enough.set()
    await asyncio.gather(*asking)
    assert len(set(answered)) == 1
