"""What the model thinks of the prompt, computed in pieces, equals one forward pass over it."""

from pathlib import Path

import pytest
import torch
from support.engines import DrivenEngine
from support.models import VOCABULARY, AdapterSpec, Reference, model_folder, save_adapter

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.token_events import TokenLogprobs

PROMPT = tuple(2 + 7 * number % 200 for number in range(47))
PLAIN = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
SCORED = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, prompt_logprobs=VOCABULARY)


@pytest.mark.parametrize("num_blocks", [100, 7])
def test_prompts_are_scored_in_pieces(num_blocks: int, tmp_path: Path) -> None:
    base = model_folder("llama")
    adapters = {"a": save_adapter(base, tmp_path / "a", AdapterSpec(5, ("q_proj", "lm_head")))}
    reference = Reference(base, adapters)
    block_bytes = 2 * 3 * 16 * 2 * 8 * 4
    engine = DrivenEngine(
        EngineConfig(
            model=str(base),
            device="cpu",
            num_threads=1,
            max_batch_tokens=12,
            kv_cache_memory_bytes=num_blocks * block_bytes,
        )
    )
    assert engine.runner.budgets.num_kv_blocks == num_blocks
    engine.register(adapters)
    requests = {"first": (None, PLAIN), "base": (None, SCORED), "adapted": ("a", SCORED), "beside": ("a", PLAIN)}
    for request_id, (adapter, sampling) in requests.items():
        engine.submit(request_id, adapter, PROMPT, sampling)
    engine.run_until_ended(requests)
    assert (engine.num_preempted > 0) == (num_blocks == 7)
    for request_id, (adapter, sampling) in requests.items():
        events = [event for event in engine.events() if event.request_id == request_id]
        scored = [event.prompt_logprobs for event in events if event.prompt_logprobs is not None]
        if sampling is PLAIN:
            assert not scored
            continue
        (places,) = scored
        assert places == events[0].prompt_logprobs
        assert events[0].num_cached_tokens == 0
        expected = reference.score(adapter, PROMPT[:1], PROMPT[1:]).log_softmax(-1)
        ours = torch.tensor([[value for _, value in sorted(place.top)] for place in places])
        assert (ours - expected).abs().max() < 1e-3
        for token, place in zip(PROMPT[1:], places, strict=True):
            assert place.chosen == dict(place.top)[token]
    assert engine.tokens("first") == engine.tokens("base")
    assert engine.tokens("adapted") == engine.tokens("beside")


def test_one_token_has_nothing_to_score() -> None:
    engine = DrivenEngine(EngineConfig(model=str(model_folder("llama")), device="cpu", num_threads=1))
    engine.submit("one", None, (5,), SCORED)
    engine.submit("two", None, (5, 6), SamplingParams(max_tokens=1, prompt_logprobs=0))
    engine.run_until_ended(["one", "two"])
    first = {event.request_id: event.prompt_logprobs for event in reversed(engine.events())}
    assert first["one"] == ()
    (only,) = first["two"] or ()
    assert only == TokenLogprobs(only.chosen, ())
