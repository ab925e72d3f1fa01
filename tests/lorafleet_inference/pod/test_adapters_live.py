"""Adapters come, change and go under traffic."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from support.admin import entry
from support.declared_pod import DeclaredPod

from lorafleet_contract.admin import AdapterState, Residency, RevisionRef, Tier
from lorafleet_contract.names import revision_of

ASK: dict[str, Any] = {"prompt": "one two three", "max_tokens": 16, "temperature": 0}
LONG: dict[str, Any] = {**ASK, "max_tokens": 220, "extra_body": {"ignore_eos": True}}
NUM_MANY = 120


async def test_content_is_replaced_under_traffic(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "hot")
    await asyncio.to_thread(declared.admin.put, "hot", "volume", "hot")
    answers: dict[str, set[str]] = {}
    heard = asyncio.Event()
    done = False

    async def ask_on() -> None:
        async with declared.pod.async_openai() as client:
            while not done:
                raw = await client.completions.with_raw_response.create(model="hot", **ASK)
                text = raw.parse().choices[0].text
                answers.setdefault(raw.headers["x-lorafleet-revision"], set()).add(text)
                heard.set()

    async def replace() -> list[str]:
        revisions = []
        for _ in range(4):
            await asyncio.to_thread(declared.adapter, declared.volume, "hot")
            put = await asyncio.to_thread(declared.admin.put, "hot", "volume", "hot")
            revisions.append(put.revision)
            while put.revision not in answers:
                heard.clear()
                await heard.wait()
        return revisions

    asking = [asyncio.ensure_future(ask_on()) for _ in range(6)]
    try:
        async with asyncio.timeout(240):
            revisions = await replace()
    finally:
        done = True
        await asyncio.gather(*asking)
    assert set(revisions) <= set(answers)
    assert all(len(texts) == 1 for texts in answers.values()), "an answer is of the revision that it names"
    assert len(set.union(*answers.values())) == len(answers), "and of no other"


def test_an_unload_waits_for_the_streams_that_run(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "leaving")
    declared.admin.put("leaving", "volume", "leaving")
    with declared.pod.openai() as client, ThreadPoolExecutor(1) as other:
        stream = iter(client.completions.create(model="leaving", stream=True, **LONG))
        first = next(stream)
        with declared.pod.stopped_engine():
            gone = other.submit(declared.admin.request, "DELETE", "/admin/v1/adapters/leaving")
            declared.admin.wait_for("leaving", AdapterState.DRAINING)
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="leaving", **ASK)
            assert not gone.done()
        chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        gone.result()
    assert declared.admin.adapter("leaving") is None


def test_streams_that_outlast_the_drain_end_with_a_reason(declared: DeclaredPod) -> None:
    declared.adapter(declared.volume, "brief")
    put = declared.admin.put("brief", "volume", "brief")
    with declared.pod.openai() as client, ThreadPoolExecutor(1) as other:
        streams = [iter(client.completions.create(model="brief", stream=True, **LONG)) for _ in range(8)]
        for stream in streams:
            next(stream)
        with declared.pod.stopped_engine():
            path = "/admin/v1/adapters/brief"
            gone = other.submit(declared.admin.request, "DELETE", path, drain_timeout_seconds=0.01)
            declared.admin.wait(
                "it leaves",
                lambda state: ("brief", AdapterState.READY) not in {(a.name, a.state) for a in state.adapters},
            )
        gone.result()
        cut = 0
        for stream in streams:
            try:
                list(stream)
            except openai.APIError as error:
                cut += 1
                assert "was unloaded" in str(error)  # noqa: PT017
        assert cut
    assert put.revision not in {one.revision for one in declared.admin.state().adapters}


async def test_many_adapters_through_few_places(declared: DeclaredPod) -> None:
    names = [f"many-{number}" for number in range(NUM_MANY)]
    with ThreadPoolExecutor(4) as pool:
        for name in names:
            declared.adapter(declared.volume, name)
        resolved = list(pool.map(lambda name: declared.admin.resolve("volume", name), names))
    await asyncio.to_thread(
        declared.admin.write,
        *(entry(name, one, residency=Residency.ON_DEMAND) for name, one in zip(names, resolved, strict=True)),
    )

    async with declared.pod.async_openai() as client:

        async def ask(name: str) -> str:
            return (await client.completions.create(model=name, **ASK)).choices[0].text

        first = await asyncio.gather(*(ask(name) for name in names))
        second = await asyncio.gather(*(ask(name) for name in reversed(names)))
    assert first == second[::-1]
    assert len(set(first)) > NUM_MANY * 0.9, "each answers in its own way"
    state = await asyncio.to_thread(declared.admin.state)
    mine = [one for one in state.adapters if one.name in set(names)]
    assert len(mine) == NUM_MANY
    assert all(one.state is AdapterState.READY and not one.num_in_flight for one in mine)
    assert sum(one.tier is Tier.DEVICE for one in state.adapters) <= state.budgets.max_resident_adapters
    assert state.budgets.used_rank_pages <= state.budgets.total_rank_pages
    refs = [RevisionRef(name=name, revision=revision_of(one.digest)) for name, one in zip(names, resolved, strict=True)]
    await asyncio.to_thread(declared.admin.write, removed=refs)
    await asyncio.to_thread(
        declared.admin.wait, "all are gone", lambda state: not {one.name for one in state.adapters} & set(names)
    )
