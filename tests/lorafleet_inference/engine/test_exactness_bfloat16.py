"""In bfloat16, either decoder is as near to PEFT in float32 as transformers + PEFT in bfloat16 are.

Equal tokens cannot be asked for: where each number has 8 bits, the order of a sum decides which of two near logits is the larger.
So the engine's log-probabilities are compared with those that PEFT in float32 has after the same tokens, and what they differ by
with what PEFT's own in bfloat16 differ by. The models are those of `test_exactness.py`, whose weights and adapters are so large that
rounding shows.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import DEVICE, SMALL, DrivenEngine
from support.families import FAMILIES as MADE
from support.families import FEWER, VOCABULARY, adapter_specs
from support.models import Reference, model_folder, save_adapter

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.model.decoder import Decoder

FAMILIES = ("llama", "gemma2", "qwen3")
"""Plain; with capped scores, windows and norms that count from one; with norms of heads."""
ADAPTERS = ("rank-7", "rank-256", "rank-pattern", "dora", "lora-bias", "saved-norm-and-head")
LENGTHS = (1, 17, 100, 33)
NUM_TOKENS = 6
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, num_logprobs=VOCABULARY)
MOST = 1.25
"""Times the error of PEFT in bfloat16, over all requests of a family (root of the mean square)."""
MOST_OF_ONE = 2.0
"""The same, of the requests of one adapter."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rms(errors: list[torch.Tensor]) -> float:
    return torch.cat([some.flatten() for some in errors]).square().mean().sqrt().item()


@dataclass
class Served:
    base: Path
    adapters: dict[str, Path]
    right: Reference
    """PEFT in float32."""
    rounded: Reference
    """PEFT in bfloat16."""


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    base, specs, root = (
        model_folder(request.param),
        adapter_specs(MADE[request.param]),
        tmp_path_factory.mktemp("adapters"),
    )
    adapters = {name: save_adapter(base, root / name, specs[name]) for name in ADAPTERS}
    return Served(base, adapters, Reference(base, adapters), Reference(base, adapters, torch.bfloat16))


@pytest.mark.parametrize("decoder", ["transformers", "own"])
def test_it_is_as_near_as_peft(served: Served, decoder: Any) -> None:
    config = EngineConfig(
        model=str(served.base),
        device=DEVICE,
        dtype="bfloat16",
        decoder=decoder,
        num_threads=1,
        max_rank=256,
        max_batch_tokens=40,
        **SMALL,  # type: ignore[arg-type]
    )
    engine = DrivenEngine(config)
    assert isinstance(engine.runner._model, Decoder) == (decoder == "own")
    assert next(engine.runner._model.parameters()).dtype == torch.bfloat16
    engine.register(served.adapters)
    rng = random.Random(11)
    prompts = {
        (name, number): tuple(rng.randrange(2, FEWER) for _ in range(length))
        for name in (None, *ADAPTERS)
        for number, length in enumerate(LENGTHS)
    }
    for (name, number), prompt in prompts.items():
        engine.submit(f"{name}-{number}", name, prompt, GREEDY)
        engine.step()
    engine.run_until_ended([f"{name}-{number}" for name, number in prompts])
    ours: dict[str | None, list[torch.Tensor]] = {}
    theirs: dict[str | None, list[torch.Tensor]] = {}
    for (name, number), prompt in prompts.items():
        events = [event for event in engine.events() if event.request_id == f"{name}-{number}"]
        found = torch.tensor([[value for _, value in sorted(event.logprobs[0].top)] for event in events])
        tokens = engine.tokens(f"{name}-{number}")
        wanted, near = (one.score(name, prompt, tokens).log_softmax(-1) for one in (served.right, served.rounded))
        assert found.shape == wanted.shape == (NUM_TOKENS, VOCABULARY)
        ours.setdefault(name, []).append(found - wanted)
        theirs.setdefault(name, []).append(near - wanted)
    by_adapter = {name: rms(ours[name]) / rms(theirs[name]) for name in ours}
    assert max(by_adapter.values()) < MOST_OF_ONE, by_adapter
    whole = rms([one for some in ours.values() for one in some]) / rms(
        [one for some in theirs.values() for one in some]
    )
    assert 0.2 < whole < MOST, f"{whole} times the error of PEFT in bfloat16, by adapter {by_adapter}"
