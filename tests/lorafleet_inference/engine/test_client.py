"""The engine as a process of its own: it answers, and when it is lost, nobody waits for it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from support import canned_engine
from support.canned_pod import model_without_weights
from support.engines import key_of
from support.forked import forked_engine
from support.models import VOCABULARY, AdapterSpec, Reference, model_folder, save_adapter

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.client import EngineClient
from lorafleet_inference.engine.messages import AdapterKey, DeviceTier, EngineStats, SamplingParams, Submit
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent
from lorafleet_inference.errors import EngineFailure

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATIENCE_SECONDS = 180
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)


@asynccontextmanager
async def engine(**options: object) -> AsyncIterator[EngineClient]:
    settings = {"model": str(model_folder("llama")), "device": "cpu", "num_threads": 1, **options}
    client = await EngineClient.start(EngineConfig(**settings), forked_engine)  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield client
    finally:
        await client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[EngineClient]:
    """An engine for tests that leave it as it was."""
    async with engine() as client:
        yield client


async def answer(client: EngineClient, request: Submit) -> list[TokenEvent]:
    return [event async for event in client.submit(request)]


def tokens(events: list[TokenEvent]) -> tuple[int, ...]:
    return tuple(token for event in events for token in event.token_ids)


async def idle(client: EngineClient) -> EngineStats:
    """The first counters that say that nothing runs."""
    while True:
        if client.stats is not None and client.stats.num_running == 0:
            return client.stats
        await asyncio.sleep(0.02)


async def test_base_and_adapter_answer_side_by_side(shared: EngineClient, tmp_path: Path) -> None:
    base = model_folder("llama")
    folder = save_adapter(base, tmp_path / "adapter", AdapterSpec(rank=5))
    reference = Reference(base, {"a": folder})
    ready = await shared.wait_ready()
    assert (ready.facts.num_layers, ready.facts.vocab_size) == (3, VOCABULARY)
    status = await shared.register(key_of("a"), folder, resident=True, pinned=False)
    assert (status.tier, status.reason) == (DeviceTier.DEVICE, None)
    plan = inspect_adapter(folder, ready.facts, ready.budgets.max_rank)
    assert status.rank_pages == RowLayout.of(ready.facts).of_plan(plan).num_pages
    prompt = (5, 6, 7)
    with_adapter, with_base = await asyncio.gather(
        answer(shared, Submit("r1", prompt, key_of("a"), GREEDY)), answer(shared, Submit("r2", prompt, None, GREEDY))
    )
    assert tokens(with_adapter) == reference.generate("a", prompt, 8)
    assert tokens(with_base) == reference.generate(None, prompt, 8)
    await shared.release(key_of("a"))
    (refused,) = await answer(shared, Submit("r3", prompt, key_of("a"), GREEDY))
    assert (refused.finish, refused.reason) == (FinishReason.ERROR, Reason.NOT_FOUND)


async def test_a_refused_adapter_is_an_answer(shared: EngineClient, tmp_path: Path) -> None:
    status = await shared.register(AdapterKey("empty", "sha256:0"), tmp_path, resident=True, pinned=False)
    assert status.tier is None
    assert status.reason is Reason.ARTIFACT_NOT_FOUND


async def test_closing_a_stream_cancels_its_request(shared: EngineClient) -> None:
    await shared.wait_ready()
    stream = shared.submit(Submit("r1", (5, 6), None, LONG))
    await anext(stream)
    await stream.aclose()
    for number in range(5):  # one that has ended before it is cancelled says nothing
        other = shared.submit(Submit(f"r2-{number}", (5, 6), None, LONG))
        await anext(other)
        shared.cancel(f"r2-{number}")
        if (finish := [event.finish async for event in other][-1]) is FinishReason.CANCELLED:
            break
    assert finish is FinishReason.CANCELLED
    assert (await idle(shared)).num_kv_blocks_used == 0


async def test_when_the_engine_is_killed_every_request_gets_an_error(tmp_path: Path) -> None:
    async with canned(tmp_path / "model", "--rate=10") as client:
        streams = [client.submit(Submit(f"r{number}", (5, 6), None, LONG)) for number in range(3)]
        for stream in streams:
            await anext(stream)
        os.kill(client.pid, signal.SIGKILL)
        for stream in streams:
            assert [event.finish async for event in stream][-1] is FinishReason.ERROR
        assert "status -9" in await client.failed
        (late,) = await answer(client, Submit("late", (5, 6), None, GREEDY))
        assert late.finish is FinishReason.ERROR
        with pytest.raises(EngineFailure, match="status -9"):
            await client.register(key_of("a"), Path("/nowhere"), resident=True, pinned=False)
        with pytest.raises(EngineFailure, match="status -9"):
            await client.release(key_of("a"))


async def test_a_token_id_outside_the_vocabulary_ends_its_request_alone(shared: EngineClient) -> None:
    await shared.wait_ready()
    (event,) = await answer(shared, Submit("bad", (VOCABULARY + 5,), None, GREEDY))
    assert (event.finish, event.code) == (FinishReason.ERROR, ErrorCode.INVALID_VALUE)
    assert len(tokens(await answer(shared, Submit("good", (5, 6), None, GREEDY)))) == 8


async def test_an_engine_that_hangs_is_ended(tmp_path: Path) -> None:
    async with canned(tmp_path / "model", "--rate=60", max_step_seconds=3) as client:
        await asyncio.sleep(4)  # longer than a step may take: who answers pings lives
        assert len(tokens(await answer(client, Submit("quiet", (5, 6), None, GREEDY)))) == 8
        stream = client.submit(Submit("r", (5, 6), None, LONG))
        await anext(stream)
        os.kill(client.pid, signal.SIGSTOP)
        assert "no sign of life for 3 seconds" in await client.failed
        assert [event.finish async for event in stream][-1] is FinishReason.ERROR


async def test_an_aborted_engine_says_where_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    async with engine() as client:
        await client.wait_ready()
        os.kill(client.pid, signal.SIGABRT)
        assert "status -6" in await client.failed
    assert "core.py" in capfd.readouterr().err


async def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    async with engine(model=str(tmp_path)) as client:
        with pytest.raises(EngineFailure, match=f"{tmp_path} cannot be loaded: it has no config.json"):
            await client.wait_ready()
        assert client.config_error is not None
        assert client.config_error.option == "--model"


async def test_after_close_nothing_hangs_and_nothing_failed() -> None:
    async with engine() as client:
        await client.wait_ready()
        stream = client.submit(Submit("r", (5, 6), None, LONG))
        await anext(stream)
    ends = [event.finish async for event in stream]
    assert ends[-1] is FinishReason.CANCELLED
    async with asyncio.timeout(PATIENCE_SECONDS):
        (late,) = await answer(client, Submit("late", (5, 6), None, GREEDY))
        assert late.finish is FinishReason.ERROR
        with pytest.raises(EngineFailure):
            await client.register(key_of("a"), Path("/nowhere"), resident=False, pinned=False)
    assert not client.failed.done()


async def test_a_listener_that_fails_ends_the_engine_and_nobody_waits() -> None:
    async with engine() as client:
        await client.wait_ready()

        def fails(_: object) -> None:
            raise RuntimeError("a listener's own fault")

        client.subscribe(fails)
        running = asyncio.create_task(answer(client, Submit("long", (5, 6, 7), None, LONG)))
        await client.release(key_of("nobody"))
        events = await running
        assert events[-1].finish is FinishReason.ERROR
        assert "a listener's own fault" in await client.failed
        with pytest.raises(EngineFailure, match="a listener's own fault"):
            await client.register(key_of("late"), Path("nowhere"), resident=False, pinned=False)


@asynccontextmanager
async def canned(folder: Path, *options: str, **settings: float) -> AsyncIterator[EngineClient]:
    model_without_weights(folder)
    config = EngineConfig(model=str(folder), device="cpu", **settings)  # type: ignore[arg-type]
    client = await EngineClient.start(config, canned_engine.program(*options))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await client.wait_ready()
            yield client
    finally:
        await client.close()


async def test_tokens_that_wait_are_one_event(tmp_path: Path) -> None:
    sampling = SamplingParams(max_tokens=8, num_logprobs=1, prompt_logprobs=0)
    async with canned(tmp_path / "model", "--at-once=8") as client:
        (event,) = await answer(client, Submit("r", (5, 6, 7), None, sampling))
    assert event.token_ids == (5, 6, 7, 5, 6, 7, 5, 6)
    assert event.logprobs is not None
    assert [one.top[0][0] for one in event.logprobs] == list(event.token_ids)
    assert event.finish is FinishReason.LENGTH
    assert event.queue_seconds is not None
    assert event.prompt_logprobs is not None


async def test_tokens_come_one_by_one_to_whoever_takes_them_at_once(tmp_path: Path) -> None:
    async with canned(tmp_path / "model", "--ticked") as client:
        stream = client.submit(Submit("r", (5, 6, 7), None, SamplingParams(max_tokens=4)))
        for number in range(4):
            coming = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)  # it waits now, the first time having submitted
            client.cancel("nobody")
            event = await coming
            assert event.token_ids == (5 + number % 3,)
        assert event.finish is FinishReason.LENGTH


async def test_tokens_before_a_lost_engine_are_shown_first(tmp_path: Path) -> None:
    async with canned(tmp_path / "model", "--at-once=3") as client:
        stream = client.submit(Submit("r", (5, 6, 7), None, SamplingParams(max_tokens=1 << 20)))
        await anext(stream)
        os.kill(client.pid, signal.SIGKILL)
        await client.failed
        events = [event async for event in stream]
    assert events[-1].finish is FinishReason.ERROR
    assert events[-1].token_ids == ()
    assert all(event.finish is None and event.token_ids for event in events[:-1])
    assert len(events) <= 2
