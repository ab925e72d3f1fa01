"""An engine on two ranks, each a program of its own, as a pod runs it."""

import asyncio
import os
import signal
from pathlib import Path

from support.engines import key_of
from support.models import AdapterSpec, Reference, model_folder, save_adapter
from support.pod import command_of
from support.processes import descendants

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.client import EngineClient
from lorafleet_inference.engine.messages import DeviceTier, SamplingParams, Submit

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)
PROMPT = (5, 6, 7, 8, 9)
PATIENCE_SECONDS = 300


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


async def test_it_answers_and_ends_with_the_rank_that_is_killed(tmp_path: Path) -> None:
    base = model_folder("llama")
    folder = save_adapter(base, tmp_path / "adapter", AdapterSpec(rank=5))
    config = EngineConfig(model=str(base), device="cpu", num_threads=2, tensor_parallel_size=2, cpu_kernels=False)
    client = await EngineClient.start(config)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            ready = await client.wait_ready()
            assert ready.backend.num_ranks == 2
            assert any(one.startswith("GLIBC_TUNABLES=glibc.malloc.") for one in environment_of(client.pid))
            status = await client.register(key_of("a"), folder, resident=True, pinned=False)
            assert status.tier is DeviceTier.DEVICE, status
            answer: tuple[int, ...] = ()
            async for event in client.submit(Submit("one", PROMPT, key_of("a"), GREEDY)):
                answer += event.token_ids
            assert answer == Reference(base, {"a": folder}).generate("a", PROMPT, 8)
            (rank,) = [pid for pid in descendants(client.pid) if b"rank_process" in command_of(pid)]
            running = client.submit(Submit("two", PROMPT, None, LONG))
            await anext(running)
            os.kill(rank, signal.SIGKILL)
            events = [event async for event in running]
            assert await client.failed == "rank 1: its process was ended by SIGKILL"
            assert events[-1].error is not None
            assert "rank 1: its process was ended by SIGKILL" in events[-1].error
            assert not command_of(client.pid)
    finally:
        await client.close()
