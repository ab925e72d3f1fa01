"""Draft tokens change no answer of an engine."""

import pytest
from support.engines import DrivenEngine
from support.models import adapters_of, model_folder

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams

SAMPLINGS = (
    SamplingParams(max_tokens=60, temperature=0, ignore_eos=True, num_logprobs=2),
    SamplingParams(max_tokens=60, temperature=0.7, seed=3, ignore_eos=True, top_p=0.9),
    SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, presence_penalty=0.5),
    SamplingParams(max_tokens=25, temperature=0.3, seed=4, ignore_eos=True, top_k=5),
    SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, max_draft_tokens=0),
)
NAMES = tuple(f"r{at}" for at in range(len(SAMPLINGS)))


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3-moe"])
def test_engine_answers_the_same_with_and_without_drafts(family: str) -> None:
    """Greedy and sampled, with adapters, and beside one that wants no drafts, in one batch."""
    folder = model_folder(family)
    adapters = dict(list(adapters_of(family).items())[:2])
    names = (None, *adapters)
    answers: list[list[tuple[int, ...]]] = []
    accepted = []
    for number in (0, 8):
        config = EngineConfig(
            model=str(folder),
            device="cpu",
            dtype="float32",
            kv_cache_memory_bytes=1 << 20,
            speculative_tokens=number,
            num_threads=1,
        )
        engine = DrivenEngine(config)
        engine.register(adapters)
        for at, sampling in enumerate(SAMPLINGS):
            prompt = [11 + at, 12, 13, 14] * 6
            engine.submit(f"r{at}", names[at % len(names)], prompt, sampling)
        engine.run_until_ended(NAMES)
        answers.append([engine.tokens(name) for name in NAMES])
        events = [event for event in engine.events() if event.num_draft_tokens]
        assert bool(events) is (number > 0)
        assert not [event for event in events if event.request_id == NAMES[-1]]
        accepted.append(sum(event.num_accepted_tokens for event in events))
    assert answers[0] == answers[1]
    assert accepted[0] == 0
    assert accepted[1] > 0 or family == "qwen3-moe", "some drafts were right, where answers repeat themselves"
