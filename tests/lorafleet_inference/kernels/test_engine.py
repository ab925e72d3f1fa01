"""An engine with kernels and one without give the same tokens; without, everything is plain torch."""

import logging
from pathlib import Path

import pytest
import torch
from support.engines import DrivenEngine
from support.families import VOCABULARY
from support.models import adapters_of, model_folder

from lorafleet_inference.config import DecoderChoice, EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.kernels.cpu import load_kernels

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def answers(family: str, threads: int, *, cpu_kernels: bool) -> dict[str, tuple[int, ...]]:
    adapters = adapters_of(family)
    engine = DrivenEngine(
        EngineConfig(
            model=str(model_folder(family)),
            device="cpu",
            num_threads=threads,
            max_batch_tokens=40,
            max_rank=256,
            max_model_len=256,
            cpu_kernels=cpu_kernels,
        )
    )
    engine.register(adapters)
    names = [None, *adapters, None, *adapters]
    for number, name in enumerate(names):
        prompt = [(7 * number + at) % (VOCABULARY - 2) + 2 for at in range(3 + 5 * number)]
        engine.submit(str(number), name, prompt, GREEDY)
    engine.run_until_ended(map(str, range(len(names))))
    return {str(number): engine.tokens(str(number)) for number in range(len(names))}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_tokens_with_and_without(family: str, threads: int) -> None:
    compiled = answers(family, threads, cpu_kernels=True)
    plain = answers(family, threads, cpu_kernels=False)
    assert compiled == plain
    assert len(set(compiled.values())) > 10, "the answers are worth comparing"


def test_a_model_is_packed_only_with_kernels(threads: int) -> None:
    def packed(*, cpu_kernels: bool, decoder: DecoderChoice) -> int:
        config = EngineConfig(
            model=str(model_folder("llama")),
            device="cpu",
            num_threads=threads,
            cpu_kernels=cpu_kernels,
            decoder=decoder,
        )
        model = DrivenEngine(config).runner._model
        return sum(module.weight.is_mkldnn for module in model.modules() if isinstance(module, torch.nn.Linear))

    num_layers = 3
    assert packed(cpu_kernels=True, decoder="transformers") == 7 * num_layers + 1
    assert packed(cpu_kernels=True, decoder="own") == 4 * num_layers + 1
    assert packed(cpu_kernels=False, decoder="auto") == 0


def test_without_a_folder_to_keep_code_in_there_are_none_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    with caplog.at_level(logging.WARNING):
        assert load_kernels(str(file / "kernels")) is None
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "no CPU kernels, plain torch computes instead"
    ]
