"""KV gets what is left beside the step that takes the most memory: no other one that the options allow takes more."""

import pytest
from support.absent_cuda import CUDA
from support.engines import key_of
from support.families import AdapterSpec
from support.models import save_adapter, save_model
from support.simulated_cuda import SimulatedCuda
from support.simulated_engine import SimulatedRunner, on_cuda
from transformers import LlamaConfig

from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.engine.messages import MAX_LOGPROBS, AdapterKey, Pooling, SamplingParams
from lorafleet_inference.engine.plan import NewRequest, StepItem, StepPlan
from lorafleet_inference.engine.planner import num_running
from lorafleet_inference.model.warm_up import Largest

MODEL = LlamaConfig(
    vocab_size=600, initializer_range=0.3, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip
NUM_TOKENS, NUM_REQUESTS = 48, 6
PLAIN = SamplingParams(max_tokens=4, temperature=0)
RANKED = SamplingParams(max_tokens=4, top_k=9, top_p=0.8, min_p=0.01)
TOLD = SamplingParams(max_tokens=4, temperature=0, num_logprobs=MAX_LOGPROBS)
PENALISED = SamplingParams(max_tokens=4, frequency_penalty=0.5, repetition_penalty=1.2, typical_p=0.7)
SCORED = SamplingParams(max_tokens=0, prompt_logprobs=MAX_LOGPROBS)
KEY = key_of("one")


def step(
    sampling: SamplingParams,
    *,
    scored: int = 0,
    prompt: int = 0,
    pooling: Pooling | None = None,
    rows: int = NUM_REQUESTS,
) -> StepPlan:
    """As many answers as `rows`, a prompt that is scored, and one that is not."""
    items, new = [], []

    def add(name: str, key: AdapterKey | None, length: int, params: SamplingParams, start: int = 0) -> None:
        blocks = tuple(range(3 * len(new), 3 * len(new) + 3))
        own = pooling if params is PLAIN and not start else None
        new.append(NewRequest(name, key, tuple(range(5, 5 + length)), start or length, params, blocks, pooling=own))

    for row in range(rows):
        add(f"{row}", KEY, 20, sampling, 19)
        items.append(StepItem(f"{row}", 19, 1, samples=True, decode=True))
    for name, length, params in (("scored", scored, SCORED), ("prompt", prompt, PLAIN)):
        if length:
            add(name, KEY, length, params)
            num_score = length - 1 if params is SCORED else 0
            items.append(StepItem(name, 0, length, samples=params is PLAIN and pooling is None, num_score=num_score))
    return StepPlan(tuple(items), new=tuple(new))


LEFT = NUM_TOKENS - NUM_REQUESTS
STEPS = {
    "prompt": step(PLAIN, prompt=NUM_TOKENS, rows=0),
    "embedding": step(PLAIN, prompt=NUM_TOKENS, pooling=Pooling(), rows=0),
    "greedy": step(PLAIN, prompt=LEFT),
    "ranked": step(RANKED, prompt=LEFT),
    "told": step(TOLD),
    "penalised": step(PENALISED),
    "scored": step(PLAIN, scored=NUM_TOKENS, rows=0),
    "scored beside ranked ones": step(RANKED, scored=LEFT),
    "scored beside penalised ones": step(PENALISED, scored=LEFT),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], dict[str, int]]:
    """What was measured at the start, and what each step takes."""
    folder = tmp_path_factory.mktemp("base")
    model = save_model(MODEL, folder / "model")
    config = EngineConfig(
        model=str(model), device="cuda", dtype="float32", num_threads=1, max_batch_tokens=NUM_TOKENS, max_rank=8,
        max_resident_adapters=1, max_batch_requests=NUM_REQUESTS, gpu_kernels=False, decoder="own", host_cache_bytes=1 << 16,
    )  # fmt: skip
    simulated = SimulatedCuda(0, haste=1.0)
    with simulated.there():
        runner = SimulatedRunner(simulated, on_cuda(config), config)
        at_start = list(simulated.measured)
        plan = inspect_adapter(save_adapter(model, folder / "one", AdapterSpec(8, seed=1)), runner.facts, max_rank=8)
        runner.install(KEY, range(runner.num_pages(plan)), runner.load_slab(plan))
        taken, gone = {}, ()
        for name, made in STEPS.items():
            one = StepPlan(made.items, gone=gone, new=made.new)
            taken[name] = device_at(CUDA).peak_bytes(lambda one=one: runner.compute(one))
            gone = tuple(request.request_id for request in made.new)
    return at_start, taken


@pytest.mark.parametrize("name", STEPS)
def test_no_step_takes_more_than_was_measured(measured: tuple[list[int], dict[str, int]], name: str) -> None:
    at_start, taken = measured
    assert 0 < taken[name] <= max(at_start)


def test_rows_that_choose_and_rows_that_are_scored_both_count(measured: tuple[list[int], dict[str, int]]) -> None:
    at_start, taken = measured
    least = max(taken["prompt"], taken["ranked"], taken["penalised"], taken["scored"])
    assert max(at_start) >= taken["scored beside ranked ones"] > least
    assert max(at_start) < 1.5 * max(taken.values()), "and no more than some step takes"


def test_the_largest_step_has_all_that_the_options_allow() -> None:
    largest = Largest(NUM_TOKENS, NUM_REQUESTS, 64, 3)
    prompt, full = largest.steps(None)
    assert [item.num_tokens for item in prompt.items] == [NUM_TOKENS]
    assert prompt.new[0].pooling is not None
    answers = [item for item in full.items if item.decode]
    assert len(answers) == num_running(NUM_REQUESTS, NUM_TOKENS)
    assert all(len(item.draft_token_ids) == 1 for item in answers), "as many drafts as answers, in all"
    assert max(item.end for item in answers) == 64
    assert sum(item.num_tokens for item in full.items) == NUM_TOKENS
    assert sum(item.num_score > 0 for item in full.items) == 1
