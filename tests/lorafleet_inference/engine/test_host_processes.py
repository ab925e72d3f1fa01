"""An engine whose ranks are on two hosts, each a program of its own, over the loopback."""

import asyncio
import os
import re
import signal
from pathlib import Path

import httpx
import pytest
from support.engines import key_of
from support.hosts import ON_LOOPBACK, SECRET, free_port, ranks_host
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


async def test_it_answers_and_ends_with_the_rank_of_the_other_host_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ON_LOOPBACK.items():
        monkeypatch.setenv(name, value)
    base = model_folder("llama")
    folder = save_adapter(base, tmp_path / "adapter", AdapterSpec(rank=5, options={"use_dora": True}))
    config = EngineConfig(
        model=str(base),
        device="cpu",
        num_threads=1,
        tensor_parallel_size=2,
        hosts=2,
        ranks_host="127.0.0.1",
        ranks_port=free_port(),
        ranks_secret=SECRET,
        cpu_kernels=False,
    )
    options = ("--device=cpu", "--num-threads=1", "--no-cpu-kernels")
    with ranks_host(base, config.ranks_port, *options) as host:
        client = await EngineClient.start(config)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                ready = await client.wait_ready()
                assert ready.backend.num_ranks == 2
                url = re.search(r"health at (http://\S+),", host.logs)
                assert url is not None, host.logs
                assert (await asyncio.to_thread(httpx.get, f"{url[1]}/ready")).json() == {"status": "running"}
                status = await client.register(key_of("a"), folder, resident=True, pinned=False)
                assert status.tier is DeviceTier.DEVICE, status
                answer: tuple[int, ...] = ()
                async for event in client.submit(Submit("one", PROMPT, key_of("a"), GREEDY)):
                    answer += event.token_ids
                assert answer == Reference(base, {"a": folder}).generate("a", PROMPT, 8)

                (rank,) = [pid for pid in descendants(host.process.pid) if b"rank_process" in command_of(pid)]
                running = client.submit(Submit("two", PROMPT, None, LONG))
                await anext(running)
                os.kill(rank, signal.SIGKILL)
                events = [event async for event in running]
                words = await client.failed
                assert re.fullmatch(r"rank 1 on \S+ \(127\.0\.0\.1\): its process was ended by SIGKILL", words)
                assert events[-1].error is not None
                assert words in events[-1].error
                assert await asyncio.to_thread(host.process.wait, PATIENCE_SECONDS) == 1, "it goes with the engine"
                assert "this host ends" in host.logs
        finally:
            await client.close()
