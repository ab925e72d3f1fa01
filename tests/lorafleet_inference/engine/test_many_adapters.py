"""Five hundred adapters take turns in thirty-two places: all answer, and nothing grows."""

import gc
import resource

import pytest
import torch
from support.engines import DrivenEngine
from support.models import AdapterSpec, model_folder, save_adapter

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.token_events import FinishReason

NUM_ADAPTERS, NUM_PLACES = 500, 32
SHORT = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)


def bytes_of_tensors() -> int:
    """Of all that live in this process, each storage once."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and one.layout is torch.strided]
    storages = {storage.data_ptr(): storage.nbytes() for storage in (one.untyped_storage() for one in tensors)}
    return sum(storages.values())


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
    answers, peaks, tensors = [], [], []
    for turn in range(2):
        ids = [f"{turn}-{number}" for number in range(NUM_ADAPTERS)]
        for number, request_id in enumerate(ids):
            engine.submit(request_id, f"a{number}", (5, 6, 7), SHORT)
        engine.run_until_ended(ids)
        told = engine.answers()
        answers.append([told[request_id] for request_id in ids])
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        tensors.append(bytes_of_tensors())
    assert {event.finish for event in engine.events() if event.finish is not None} == {FinishReason.LENGTH}
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1
    assert [answers[0][number] for number in range(4)] * (NUM_ADAPTERS // 4) == answers[0]
    assert abs(tensors[1] - tensors[0]) < 1 << 20, f"{tensors[0]} bytes of tensors became {tensors[1]}"
    # no tensors; half of it is what oneDNN keeps for each new number of rows in a step, up to 1,024 of them
    assert peaks[1] - peaks[0] < 64 << 10, f"grew by {peaks[1] - peaks[0]} KiB"
