"""Every message crosses the socket as it was sent."""

import asyncio
import socket
import threading

import pytest
from support.engines import key_of

from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.channel import EngineEnd, frame, messages_from
from lorafleet_inference.engine.messages import (
    AdapterStatus,
    Backend,
    Cancel,
    DeviceTier,
    EngineBudgets,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    Kernels,
    ModelFacts,
    ModuleFacts,
    ModuleKind,
    RegisterAdapter,
    ReleaseAdapter,
    SamplingParams,
    Shutdown,
    Submit,
    ToEngine,
    Tokens,
)
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent, TokenLogprobs

SAMPLING = SamplingParams(
    max_tokens=3, temperature=0.5, top_p=0.9, top_k=4, seed=-(1 << 63), stop_token_ids=(7,), num_logprobs=2
)
TO_ENGINE: list[ToEngine] = [
    Submit("r1", (1, 2, 3), key_of("a"), SAMPLING),
    Submit("r2", tuple(range(5000)), None, SamplingParams(max_tokens=1)),
    Cancel("r1"),
    RegisterAdapter(key_of("a"), "/folder", resident=True, pinned=True),
    ReleaseAdapter(key_of("a")),
    Shutdown(),
]
FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    model_type="llama",
    num_layers=2,
    vocab_size=10,
    max_model_len=32,
    dtype="float32",
    device="cpu",
    eos_token_ids=(1,),
    modules=(ModuleFacts("model.layers.0.mlp.up_proj", ModuleKind.LINEAR, 4, 8),),
)
BUDGETS = EngineBudgets(
    num_kv_blocks=1,
    kv_block_tokens=16,
    kv_cache_bytes=2,
    kv_cache_dtype="float32",
    max_resident_adapters=3,
    max_rank=4,
    total_rank_pages=5,
    host_cache_bytes=6,
)
STATS = EngineStats(
    **{name: number for number, name in enumerate(EngineStats.__struct_fields__) if not name.endswith("_adapters")},
    running_adapters=("a",),
    waiting_adapters=(),
)
FROM_ENGINE: list[FromEngine] = [
    EngineReady(FACTS, BUDGETS, Backend(Kernels.TRITON, 13)),
    Tokens(
        (
            TokenEvent(
                "r1", (5,), (TokenLogprobs(-0.5, ((5, -0.5), (6, -1.0))),), num_cached_tokens=16, queue_seconds=0.25
            ),
        )
    ),
    Tokens((TokenEvent("r1", finish=FinishReason.ERROR, error="no", reason=Reason.NOT_FOUND),)),
    AdapterStatus(key_of("a"), DeviceTier.DEVICE, rank_pages=2, load_seconds=0.5, loaded_from=DeviceTier.DISK),
    AdapterStatus(key_of("a"), None, Reason.ARTIFACT_INVALID, "broken"),
    STATS,
    EngineFailed("gone"),
]


def test_messages_to_the_engine() -> None:
    ours, theirs = socket.socketpair()
    end = EngineEnd(theirs)
    sender = threading.Thread(target=lambda: [ours.sendall(frame(message)) for message in TO_ENGINE])
    sender.start()
    received = []
    for message in end.messages():
        assert not end.told_to_end or isinstance(message, Shutdown)
        received.append(message)
        if isinstance(message, Shutdown):
            break
    sender.join()
    assert received == TO_ENGINE
    assert end.told_to_end
    ours.close()
    assert list(end.messages()) == []
    theirs.close()


async def test_messages_from_the_engine() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    end = EngineEnd(theirs)
    for message in FROM_ENGINE:
        end.send(message)
    theirs.close()
    del end  # it holds the socket too
    assert [message async for message in messages_from(reader)] == FROM_ENGINE
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("num_bytes", [2, 9])
async def test_half_a_message_at_the_end_is_dropped(num_bytes: int) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(frame(EngineFailed("one")) + frame(EngineFailed("two"))[:num_bytes])
    reader.feed_eof()
    assert [message async for message in messages_from(reader)] == [EngineFailed("one")]
