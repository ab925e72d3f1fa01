"""Logits that are not finite end their own request, however it is sampled, and leave nothing behind."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from support.engines import DrivenEngine
from support.families import VOCABULARY
from support.models import adapters_of, model_folder
from support.wild import wild_adapter

from lorafleet_contract.openai import ErrorCode
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.token_events import FinishReason

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
PROMPT = tuple(range(5, 45))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    good = adapters_of("llama")["rank-7"]
    return {"good": good, "wild": wild_adapter(good, tmp_path_factory.mktemp("wild") / "wild")}


def engine_of(*, cpu_kernels: bool = True, **options: object) -> DrivenEngine:
    settings = {"max_batch_tokens": 64, "max_rank": 16, "cpu_kernels": cpu_kernels, **options}
    return DrivenEngine(EngineConfig(model=str(model_folder("llama")), device="cpu", num_threads=1, **settings))  # type: ignore[arg-type]


SAMPLING = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "truncated": {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "typical_p": 0.9},
    "penalised": {"repetition_penalty": 0.01, "presence_penalty": -2.0, "logit_bias": ((3, 100.0),), "min_tokens": 3},
    "logprobs": {"num_logprobs": 5, "temperature": 0.0},
    "prompt logprobs": {"prompt_logprobs": 3},
}


@pytest.mark.parametrize("cpu_kernels", [True, False], ids=["kernels", "torch"])
def test_it_ends_alone_whatever_its_sampling(folders: dict[str, Path], *, cpu_kernels: bool) -> None:
    engine = engine_of(cpu_kernels=cpu_kernels)
    engine.register(folders)
    beside = {"base": None, "tuned": "good", "drawn-beside": None}
    sampling = {"drawn-beside": msgspec.structs.replace(GREEDY, temperature=1.0, seed=4)}
    for name, adapter in beside.items():
        engine.submit(f"{name} alone", adapter, PROMPT, sampling.get(name, GREEDY))
    engine.run_until_ended(f"{name} alone" for name in beside)
    for name, adapter in beside.items():
        engine.submit(name, adapter, PROMPT, sampling.get(name, GREEDY))
    for name, fields in SAMPLING.items():
        engine.submit(name, "wild", PROMPT, SamplingParams(max_tokens=12, **fields))
    engine.run_until_ended([*beside, *SAMPLING])
    for name in beside:
        assert engine.tokens(name) == engine.tokens(f"{name} alone")
    for name in SAMPLING:
        (event,) = [event for event in engine.events() if event.request_id == name]
        assert (event.finish, event.code) == (FinishReason.ERROR, ErrorCode.NOT_FINITE)
        assert event.error == (
            "the logits of the adapter wild are not finite (NaN or infinity) within the first 40 tokens of this request"
        )
    assert engine.engine._blocks.num_used == 0


def test_no_block_of_it_enters_the_prefix_cache(folders: dict[str, Path]) -> None:
    """Also of a prompt that is computed in parts: the first part already ends it."""
    engine = engine_of(max_batch_tokens=16)
    engine.register(folders)
    long = tuple(range(5, 100))
    for adapter in ("wild", "good"):
        engine.submit(adapter, adapter, long, GREEDY)
        engine.run_until_ended([adapter])
    assert engine.num_cached_blocks("good", long) == len(long) // 16
    assert engine.num_cached_blocks("wild", long) == 0
    (event,) = [event for event in engine.events() if event.request_id == "wild"]
    assert event.code is ErrorCode.NOT_FINITE
    assert engine.engine._counts.prefill == 16 + len(long), "it was computed to its end"


def test_an_overflow_of_half_precision_ends_its_request_only(tmp_path: Path) -> None:
    """Weights that float16 holds, and products that it does not."""
    engine = engine_of(dtype="float16")
    engine.register({"wild": wild_adapter(adapters_of("llama")["rank-7"], tmp_path / "wild", factor=1e4)})
    engine.submit("base", None, PROMPT, GREEDY)
    engine.submit("wild", "wild", PROMPT, GREEDY)
    engine.run_until_ended(["base", "wild"])
    assert len(engine.tokens("base")) == 12
    assert all(0 <= token < VOCABULARY for token in engine.tokens("base"))
    assert [event.code for event in engine.events() if event.request_id == "wild"] == [ErrorCode.NOT_FINITE]
