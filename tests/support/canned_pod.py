"""A pod's API process over an engine without a model: all of it but adapters, with the socket of the public port.

`python canned_pod.py MODEL OPTIONS…` is one that writes its URL and serves until it is ended.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from support import canned_engine
from support.tokenizers_made import byte_level
from tokenizers import Tokenizer

from lorafleet_common.keys.guard import Guard
from lorafleet_common.sockets import bind, url_of
from lorafleet_common.tracing import OFF, Tracing
from lorafleet_inference.adapters.manager import AdapterManager
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.engine.client import EngineClient
from lorafleet_inference.metrics import KEYS
from lorafleet_inference.server.admission import Admission
from lorafleet_inference.server.answer_room import AnswerRoom
from lorafleet_inference.server.listening import http_server
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.public import public_app
from lorafleet_inference.server.reading import Readers
from lorafleet_inference.server.state import Phase, PodState
from lorafleet_inference.text.tokenizer import Text


@dataclass(frozen=True, slots=True)
class CannedPod:
    """What a test may look at."""

    url: str
    pod: Pod


MAX_MODEL_LEN = 1 << 20


def model_without_weights(folder: Path, *, max_model_len: int = MAX_MODEL_LEN) -> Tokenizer:
    """Write what the API process reads of a model, and return its tokenizer."""
    tokenizer = byte_level()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": max_model_len,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return tokenizer


@asynccontextmanager
async def canned_pod(
    model: Path,
    *options: str,
    answer_memory_bytes: int = 1 << 30,
    tool_call_parser: str = "auto",
    guard: Guard | None = None,
    tracing: Tracing = OFF,
) -> AsyncIterator[CannedPod]:
    """Serve in this event loop; `options` are those of the canned engine, `guard` asks for keys, `tracing` gets spans."""
    with tempfile.TemporaryDirectory(prefix="lorafleet-canned-") as folder:
        config = ServerConfig(
            engine=EngineConfig(model=str(model), device="cpu"),
            served_name="base",
            cache_dir=Path(folder),
            answer_memory_bytes=answer_memory_bytes,
            tool_call_parser=tool_call_parser,
        )
        text, readers = Text.load(model), Readers()
        engine = await EngineClient.start(config.engine, canned_engine.program(*options))
        try:
            manager = AdapterManager(engine, config, boot_id="canned", judge=text.judge)
            state = PodState(manager.changes.bump)
            pod = Pod(
                config,
                engine,
                manager,
                text,
                state,
                Admission(config.max_waiting_requests),
                AnswerRoom(config.answer_memory_bytes),
                readers,
                guard or Guard(None, KEYS),
                tracing,
            )
            await engine.wait_ready()
            await manager.start()
            state.phase = Phase.SERVING
            with bind("127.0.0.1", 0, option="--port") as listener:
                server = http_server(public_app(pod))
                serving = asyncio.ensure_future(server.serve(sockets=[listener]))
                try:
                    yield CannedPod(url_of(listener), pod)
                finally:
                    server.should_exit = True
                    await serving
                    await manager.close()
        finally:
            await engine.close()
            text.close()
            readers.close()


async def _serve(model: Path, *options: str) -> None:
    async with canned_pod(model, *options) as served:
        sys.stdout.write(f"{served.url}\n")
        sys.stdout.flush()
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), *sys.argv[2:]))
