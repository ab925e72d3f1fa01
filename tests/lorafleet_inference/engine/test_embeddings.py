"""Embeddings are what transformers and PEFT compute of the whole prompt, however it is computed here."""

import json
import logging
from array import array
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.engines import DrivenEngine, key_of
from support.models import AdapterSpec, Reference, adapters_of, model_folder, save_adapter
from support.simulation import Simulation, request

from lorafleet_contract.openai import ErrorCode
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import Pooling, PoolingKind, SamplingParams
from lorafleet_inference.engine.plan import Sampled, StepResult
from lorafleet_inference.engine.pooling import embedding_of
from lorafleet_inference.engine.token_events import FinishReason
from lorafleet_inference.model.pooling import pooling_of

PROMPT = tuple(2 + 7 * number % 200 for number in range(47))
PLAIN = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
BLOCK_BYTES = 2 * 3 * 16 * 2 * 8 * 4
"""Of the model `llama`."""


def engine_of(
    base: Path, *, num_blocks: int = 100, max_batch_tokens: int = 12, ahead: bool | None = None
) -> DrivenEngine:
    return DrivenEngine(
        EngineConfig(
            model=str(base),
            device="cpu",
            num_threads=1,
            max_batch_tokens=max_batch_tokens,
            kv_cache_memory_bytes=num_blocks * BLOCK_BYTES,
        ),
        ahead=ahead,
    )


def embedding(engine: DrivenEngine, request_id: str) -> torch.Tensor:
    """Of a request that has ended well, in one event."""
    (event,) = [event for event in engine.events() if event.request_id == request_id]
    assert (event.finish, event.error, event.token_ids) == (FinishReason.STOP, None, ())
    assert event.embedding is not None
    return torch.tensor(array("f", event.embedding))


def expected(states: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """states [tokens, hidden size]."""
    vector = {PoolingKind.LAST: states[-1], PoolingKind.MEAN: states.mean(0), PoolingKind.CLS: states[0]}[pooling.kind]
    vector = vector[: pooling.dimensions]
    return torch.nn.functional.normalize(vector, dim=0) if pooling.normalize else vector


WAYS = [
    Pooling(PoolingKind.LAST),
    Pooling(PoolingKind.MEAN),
    Pooling(PoolingKind.CLS, normalize=False),
    Pooling(PoolingKind.MEAN, dimensions=5),
    Pooling(PoolingKind.LAST, normalize=False, dimensions=3),
]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("num_blocks", [100, 7])
def test_prompts_in_pieces_beside_answers(num_blocks: int, ahead: bool, tmp_path: Path) -> None:
    """With 7 blocks, requests lose theirs and are computed anew."""
    base = model_folder("llama")
    adapters = {"a": save_adapter(base, tmp_path / "a", AdapterSpec(5, ("q_proj", "down_proj", "lm_head")))}
    reference = Reference(base, adapters)
    engine = engine_of(base, num_blocks=num_blocks, ahead=ahead)
    engine.register(adapters)
    engine.submit("answer", None, PROMPT, PLAIN)
    asked = {f"{adapter}{number}": (adapter, pooling) for adapter in (None, "a") for number, pooling in enumerate(WAYS)}
    for request_id, (adapter, pooling) in asked.items():
        engine.embed(request_id, adapter, PROMPT, pooling)
    engine.submit("beside", "a", PROMPT, PLAIN)
    engine.run_until_ended(["answer", "beside", *asked])
    assert (engine.num_preempted > 0) == (num_blocks == 7)
    for request_id, (adapter, pooling) in asked.items():
        wanted = expected(reference.hidden_states(adapter, PROMPT), pooling)
        assert torch.allclose(embedding(engine, request_id), wanted, atol=1e-4), request_id
    assert engine.tokens("answer") == reference.generate(None, PROMPT, 24)
    assert engine.tokens("beside") == reference.generate("a", PROMPT, 24)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral", "falcon-alibi", "phi3", "opt"])
def test_families(family: str) -> None:
    base = model_folder(family)
    adapters = dict(list(adapters_of(family).items())[:1])
    reference = Reference(base, adapters)
    engine = DrivenEngine(EngineConfig(model=str(base), device="cpu", num_threads=1, max_batch_tokens=16))
    engine.register(adapters)
    prompt = PROMPT[:30]
    for adapter in (None, *adapters):
        engine.embed(f"mean-{adapter}", adapter, prompt, Pooling(PoolingKind.MEAN))
        engine.embed(f"last-{adapter}", adapter, prompt, Pooling())
    names = [f"{kind}-{adapter}" for kind in ("mean", "last") for adapter in (None, *adapters)]
    engine.run_until_ended(names)
    for adapter in (None, *adapters):
        states = reference.hidden_states(adapter, prompt)
        assert states.shape[1] == engine.runner.facts.embedding_size
        for kind in (PoolingKind.MEAN, PoolingKind.LAST):
            ours = embedding(engine, f"{kind}-{adapter}")
            assert torch.allclose(ours, expected(states, Pooling(kind)), atol=2e-4), (kind, adapter)


def test_only_the_last_token_is_computed_again_where_no_other_counts() -> None:
    engine = engine_of(model_folder("llama"), max_batch_tokens=64)
    for kind in (PoolingKind.LAST, PoolingKind.MEAN, PoolingKind.CLS):
        for number in range(2):
            engine.embed(f"{kind}{number}", None, PROMPT, Pooling(kind))
            engine.run_until_ended([f"{kind}{number}"])
    cached = {event.request_id: event.num_cached_tokens for event in engine.events()}
    assert cached == {"last0": 0, "last1": 32, "mean0": 0, "mean1": 0, "cls0": 0, "cls1": 0}
    for kind in ("last", "mean", "cls"):
        assert torch.allclose(embedding(engine, f"{kind}0"), embedding(engine, f"{kind}1"), atol=1e-5)


def test_one_token_has_an_embedding() -> None:
    base = model_folder("llama")
    engine = engine_of(base)
    engine.embed("one", None, (5,), Pooling(PoolingKind.MEAN))
    engine.run_until_ended(["one"])
    assert torch.allclose(
        embedding(engine, "one"), expected(Reference(base, {}).hidden_states(None, (5,)), Pooling()), atol=1e-4
    )


@pytest.mark.parametrize("kind", list(PoolingKind))
def test_numbers_that_are_no_numbers_end_the_request(kind: PoolingKind) -> None:
    """Whatever the head makes of them: it may be that no row of logits shows it."""
    simulation = Simulation(num_blocks=100, max_batch_tokens=64, max_batch_requests=4)
    plain = request("r", None, num_prompt=5, max_tokens=0)
    assert simulation.scheduler.submit(msgspec.structs.replace(plain, pooling=Pooling(kind))) is None
    plan = simulation.scheduler.plan(())
    simulation.scheduler.advance(plan)
    (event,) = simulation.scheduler.resolve(StepResult(not_finite=frozenset({"r"})))
    assert (event.finish, event.code, event.embedding) == (FinishReason.ERROR, ErrorCode.NOT_FINITE, None)

    engine = engine_of(model_folder("llama"), max_batch_tokens=64)
    engine.submit("beside", None, PROMPT, PLAIN)
    with torch.inference_mode():
        weight = engine.runner._model.get_input_embeddings().weight
        before, weight[101] = weight[101].clone(), float("nan")
    engine.embed("bad", None, (101, 5, 6), Pooling(kind))
    engine.run_until_ended(["bad"])
    with torch.inference_mode():
        weight[101] = before
    engine.run_until_ended(["beside"])
    assert [event.code for event in engine.events() if event.request_id == "bad"] == [ErrorCode.NOT_FINITE]
    assert len(engine.tokens("beside")) == 24


def test_what_was_pooled_before_a_request_lost_its_blocks_does_not_count() -> None:
    simulation = Simulation(num_blocks=100, max_batch_tokens=4, max_batch_requests=4)
    asked = request("r", key_of("a"), num_prompt=7, max_tokens=0)
    pooling = Pooling(PoolingKind.MEAN, normalize=False)
    assert simulation.scheduler.submit(msgspec.structs.replace(asked, pooling=pooling)) is None
    events = []
    for step in range(4):
        plan = simulation.scheduler.plan({key_of("a")})
        simulation.scheduler.advance(plan)
        if step == 1:
            simulation.scheduler.set_back(key_of("a"))  # while its second half is computed
        pooled = {item.request_id: np.full(2, item.num_tokens, np.float32) for item in plan.items}
        sampled = {item.request_id: Sampled(3) for item in plan.items if item.samples}
        events += simulation.scheduler.resolve(StepResult(sampled, pooled=pooled))
    (event,) = events
    assert event.embedding is not None
    assert list(array("f", event.embedding)) == [1.0, 1.0], "seven tokens, each once"


def test_a_vector_of_zeros_stays_one() -> None:
    assert array("f", embedding_of(np.zeros(4, np.float32), Pooling(dimensions=2), 3)).tolist() == [0.0, 0.0]


STEPS: list[dict[str, Any]] = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
MEAN = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.mark.parametrize(
    ("files", "found", "is_told"),
    [
        ((None, None), Pooling(), False),
        ((None, MEAN), Pooling(PoolingKind.MEAN), False),
        ((STEPS, MEAN), Pooling(PoolingKind.MEAN, normalize=False), False),
        (([*STEPS, NORMALIZE], MEAN), Pooling(PoolingKind.MEAN), False),
        (([*STEPS, NORMALIZE], {"pooling_mode_lasttoken": True}), Pooling(PoolingKind.LAST), False),
        (([*STEPS, NORMALIZE], {"pooling_mode_cls_token": True}), Pooling(PoolingKind.CLS), False),
        ((STEPS, {"pooling_mode_max_tokens": True}), Pooling(), True),
        ((STEPS, {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}), Pooling(), True),
        ((STEPS, {}), Pooling(), True),
        (([*STEPS, DENSE], MEAN), Pooling(), True),
        ((STEPS, None), Pooling(), False),
        ((STEPS, "["), Pooling(), False),
        (("{", MEAN), Pooling(PoolingKind.MEAN), False),
        (([{"type": "x.Pooling", "path": "../secret"}], MEAN), Pooling(), False),
        (([{"type": "x.Pooling", "path": 7}, 3], MEAN), Pooling(), False),
    ],
)
def test_the_models_own_files_say_how(
    files: tuple[Any, Any], found: Pooling, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    for name, content in zip(("modules.json", "1_Pooling/config.json"), files, strict=True):
        if content is not None:
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert pooling_of(tmp_path) == found
    assert bool(caplog.records) == is_told
