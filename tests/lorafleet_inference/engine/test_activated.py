"""An activated adapter (aLoRA) is the base up to its invocation, in the prefix cache too, and PEFT's from there on."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora.variants import calculate_alora_offsets
from support.engines import DEVICE, DrivenEngine
from support.families import INVOCATION, VOCABULARY
from support.models import AdapterSpec, Reference, model_folder, save_adapter

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.activation import NEVER, activation
from lorafleet_inference.engine.messages import SamplingParams

SHARED = tuple(8 + 7 * number % 200 for number in range(53))
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, num_logprobs=VOCABULARY)
FEW = st.integers(0, 2)


@given(prompt=st.lists(FEW, max_size=12), invocation=st.lists(FEW, min_size=1, max_size=3))
def test_it_begins_where_peft_says(prompt: list[int], invocation: list[int]) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=invocation)
    ids = torch.tensor([prompt], dtype=torch.long)
    offset = calculate_alora_offsets({"default": config}, "default", ids)[0]
    assert activation(prompt, invocation) == (NEVER if offset is None else len(prompt) - offset)
    assert activation(prompt, ()) == 0


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = AdapterSpec(5, options={"alora_invocation_tokens": list(INVOCATION)})
    return save_adapter(model_folder("llama"), tmp_path_factory.mktemp("activated"), spec)


@pytest.fixture(scope="module")
def reference(adapter: Path) -> Reference:
    return Reference(model_folder("llama"), {"one": adapter})


def engine_with(adapters: Mapping[str, Path]) -> DrivenEngine:
    base = str(model_folder("llama"))
    engine = DrivenEngine(EngineConfig(model=base, device=DEVICE, num_threads=1, max_batch_tokens=40))
    engine.register(adapters)
    return engine


def test_before_its_invocation_it_shares_the_bases_cache_and_after_it_nobodys(
    adapter: Path, reference: Reference
) -> None:
    engine = engine_with({"one": adapter, "two": adapter})
    once, tail = (*SHARED, *INVOCATION, 9, *SHARED[:30]), (*INVOCATION, 9, 10)
    for request_id, name, prompt, num_cached in (
        ("base", None, SHARED, 0),
        ("one", "one", once, 48),  # three blocks of the base; the fourth has the invocation
        ("again", "one", once, 80),
        ("two", "two", once, 48),
        ("later", "one", (*once, *tail), 48),  # up to the last invocation all is the base's
        ("none", "one", (*SHARED, 11), 48),
        ("after", None, (*once, *tail), 80),  # what "later" computed before its invocation
    ):
        engine.submit(request_id, name, prompt, GREEDY)
        engine.run_until_ended([request_id])
        events = [event for event in engine.events() if event.request_id == request_id]
        assert events[0].num_cached_tokens == num_cached, request_id
        logits = reference.score(None if name is None else "one", prompt, engine.tokens(request_id))
        ours = torch.tensor(
            [[value for _, value in sorted(event.logprobs[0].top)] for event in events if event.logprobs]
        )
        assert (ours - logits.log_softmax(-1)).abs().max() < 1e-3, request_id
    assert engine.tokens("one") == reference.generate("one", once, 6), "also where PEFT looks for the invocation itself"
    assert engine.tokens("one") != reference.generate(None, once, 6)
    assert (
        engine.tokens("none")
        == reference.generate("one", (*SHARED, 11), 6)
        == reference.generate(None, (*SHARED, 11), 6)
    )


def test_prompt_logprobs_change_where_it_begins(adapter: Path, reference: Reference) -> None:
    engine = engine_with({"one": adapter})
    prompt = (*SHARED, *INVOCATION, *SHARED[:9])
    scored = msgspec.structs.replace(GREEDY, max_tokens=1, prompt_logprobs=VOCABULARY)
    engine.submit("scored", "one", prompt, scored)
    engine.run_until_ended(["scored"])
    first = next(event for event in engine.events() if event.prompt_logprobs is not None)
    ours = torch.tensor([[value for _, value in sorted(one.top)] for one in first.prompt_logprobs or ()])
    # the answer of one token that follows each prefix, from the invocation's own tokens on
    for name, positions in ((None, range(1, 53)), ("one", range(55, len(prompt)))):
        for at in positions:
            logits = reference.score(name, prompt[:at], prompt[at : at + 1])[0]
            assert (ours[at - 1] - logits.log_softmax(-1)).abs().max() < 1e-3, at
