"""What attention compresses is given to a linear layer as [1, 1, T, width]: DoRA and bias change the adapter's tokens there."""

from pathlib import Path

import torch
from support.engines import DrivenEngine
from support.families import AdapterSpec
from support.models import Reference, save_adapter, save_model
from support.plan_families import PLAN_FAMILIES, config_of
from support.ranks import SAMPLING

MAX_DIFFERENCE = 1e-3


def test_dora_and_bias_on_latents_equal_peft(tmp_path: Path) -> None:
    base = save_model(PLAN_FAMILIES["deepseek-v3"].config, tmp_path / "base", norms=True)
    targets = ("kv_a_proj_with_mqa", "kv_b_proj")
    specs = {
        "dora": AdapterSpec(4, targets, options={"use_dora": True}),
        "lora-bias": AdapterSpec(4, targets, options={"lora_bias": True}),
    }
    adapters = {name: save_adapter(base, tmp_path / name, spec) for name, spec in specs.items()}
    reference = Reference(base, adapters)
    engine = DrivenEngine(config_of(base))
    engine.register(adapters)
    prompt = tuple(range(20, 33))
    for name in (None, *adapters):
        engine.submit(str(name), name, prompt, SAMPLING)
    engine.run_until_ended(["None", *adapters])
    for name in (None, *adapters):
        tokens = engine.tokens(str(name))
        events = [event for event in engine.events() if event.request_id == str(name)]
        ours = torch.tensor(
            [[value for _, value in sorted(event.logprobs[0].top)] for event in events if event.logprobs]
        )
        wanted = reference.score(name, prompt, tokens).log_softmax(-1)
        assert (ours - wanted).abs().max() < MAX_DIFFERENCE, name
