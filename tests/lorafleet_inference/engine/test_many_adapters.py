"""Five hundred adapters take turns in thirty-two places: all answer, and nothing grows."""

import resource

import pytest
from support.engines import DrivenEngine
from support.models import AdapterSpec, model_folder, save_adapter

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import FinishReason, SamplingParams

NUM_ADAPTERS, NUM_PLACES = 500, 32
SHORT = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)


@pytest.mark.slow
def test_five_hundred_adapters_in_thirty_two_places(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = model_folder("llama")
    folders = [
        save_adapter(base, tmp_path_factory.mktemp("adapter"), AdapterSpec(rank, seed=rank)) for rank in (1, 4, 8, 16)
    ]
    engine = DrivenEngine(
        EngineConfig(
            model=str(base),
            device="cpu",
            num_threads=1,
            max_resident_adapters=NUM_PLACES,
            max_rank=16,
            host_cache_bytes=1 << 22,
        )
    )
    engine.register({f"a{number}": folders[number % 4] for number in range(NUM_ADAPTERS)}, resident=False)
    answers, peaks = [], []
    for turn in range(2):
        ids = [f"{turn}-{number}" for number in range(NUM_ADAPTERS)]
        for number, request_id in enumerate(ids):
            engine.submit(request_id, f"a{number}", (5, 6, 7), SHORT)
        engine.run_until_ended(ids)
        answers.append([engine.tokens(request_id) for request_id in ids])
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert {event.finish for event in engine.events() if event.finish is not None} == {FinishReason.LENGTH}
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1
    assert [answers[0][number] for number in range(4)] * (NUM_ADAPTERS // 4) == answers[0]
    assert peaks[1] - peaks[0] < 32 << 10, f"grew by {peaks[1] - peaks[0]} KiB"
