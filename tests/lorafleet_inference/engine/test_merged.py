"""Merges of adapters equal what PEFT's `add_weighted_adapter` makes of them, tensor by tensor and in tokens."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from support.engines import DrivenEngine
from support.tiny_llama import make_base
from transformers import LlamaForCausalLM

from lorafleet_contract.lorax import MERGED
from lorafleet_contract.reasons import Reason
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.merging import (
    MajoritySign,
    Merge,
    MergeMethod,
    MergePart,
    merge_of,
    seed_of,
)
from lorafleet_inference.engine.messages import AdapterKey, AdapterStatus, RegisterAdapter, SamplingParams
from lorafleet_inference.model.tensor_files import reader_of

NUM_TOKENS = 12
TIE = 1e-3
PROMPT = tuple(range(40, 70))
SPECS: Mapping[str, dict[str, Any]] = {
    "all": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "some": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj", "lm_head"]},
    "root": {"r": 4, "lora_alpha": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "embed_tokens"]},
    "mixed": {"r": 3, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"v_proj": 5}},
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj"]},
    "bias": {"r": 4, "lora_bias": True, "target_modules": ["q_proj"]},
    "saved": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
    "activated": {"r": 4, "target_modules": ["q_proj"], "alora_invocation_tokens": [5, 6]},
}  # fmt: skip
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """peft speaks of names that are renamed, of embeddings, and of a density that prunes nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "base"
    make_base(folder)
    return folder


@pytest.fixture(scope="module")
@quiet()
def folders(base: Path) -> dict[str, Path]:
    made = {}
    for seed, (name, spec) in enumerate(SPECS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **spec))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key or "modules_to_save" in key or "trainable_tokens" in key:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        made[name] = base.parent / name
        model.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def engine(base: Path) -> DrivenEngine:
    config = EngineConfig(model=str(base), device="cpu", num_threads=1, max_rank=14, max_resident_adapters=4)
    return DrivenEngine(config)


def merge(
    folders: Mapping[str, Path],
    names: Sequence[str],
    weights: Sequence[float],
    method: MergeMethod = MergeMethod.LINEAR,
    *,
    density: float = 0.6,
    majority_sign: MajoritySign = MajoritySign.TOTAL,
) -> Merge:
    digests = [f"sha256:{name.encode().hex().ljust(64, '0')[:64]}" for name in names]
    parts = [
        MergePart(name, digest, str(folders[name]), weight)
        for name, digest, weight in zip(names, digests, weights, strict=True)
    ]
    return merge_of(parts, method, density=density, majority_sign=majority_sign)


def registered(engine: DrivenEngine, made: Merge) -> AdapterStatus:
    key = AdapterKey(MERGED, made.digest)
    begin = len(engine.statuses())
    engine.inbox.put(RegisterAdapter(key, "", resident=False, merge=made))
    while not (found := [one for one in engine.statuses()[begin:] if one.key == key]):
        engine.step()
    return found[0]


@quiet()
def peft_of(base: Path, folders: Mapping[str, Path], made: Merge) -> PeftModel:
    """The merge as PEFT makes it. Where it draws, module by module from the seeds that are ours, in its own order."""
    names = [part.name for part in made.parts]
    weights = [part.weight for part in made.parts]
    model: Any = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folders[names[0]], names[0])
    for name in dict.fromkeys(names[1:]):
        if name != names[0]:
            model.load_adapter(folders[name], name)
    method = "cat" if made.method is MergeMethod.LINEAR else made.method.value
    options = {"density": made.density, "majority_sign_method": made.majority_sign.value}
    model.add_weighted_adapter(names, weights, "merged", combination_type=method, **options)
    for name, layer in lora_layers(model).items():
        if made.method.prunes_at_random:
            torch.manual_seed(seed_of(made.digest, name))
            a, b = model.base_model._generalized_task_arithmetic_weighted_adapter(
                method, names, weights, layer, made.density, made.majority_sign.value
            )
            layer.lora_A["merged"].weight.data, layer.lora_B["merged"].weight.data = a, b
        # the config of the first part says how the result is scaled, also where the weights have its scale already
        layer.scaling["merged"] = 1.0
    model.set_adapter("merged")
    return model.eval()  # type: ignore[no-any-return]


def lora_layers(model: Any) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, LoraLayer) and "merged" in (*module.lora_A, *module.lora_embedding_A)
    }


def delta_of(layer: Any) -> torch.Tensor:
    if "merged" in layer.lora_embedding_A:
        return layer.lora_embedding_B["merged"] @ layer.lora_embedding_A["merged"]  # type: ignore[no-any-return]
    return layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    names: Sequence[str]
    weights: Sequence[float]
    method: MergeMethod = MergeMethod.LINEAR
    density: float = 1.0
    majority_sign: MajoritySign = MajoritySign.TOTAL


CASES = [
    Case(("all", "some"), (0.7, 0.3)),
    Case(("some", "root", "mixed"), (1.5, -0.5, 0.25)),
    Case(("mixed", "mixed"), (1.0, 0.5)),
    Case(("some",), (0.5,), MergeMethod.TIES, 0.5),
    Case(("all", "some"), (0.7, 0.3), MergeMethod.TIES, 0.6),
    Case(("all", "some"), (0.7, -0.3), MergeMethod.TIES, 0.4, MajoritySign.FREQUENCY),
    Case(("all", "some"), (0.7, 0.3), MergeMethod.MAGNITUDE_PRUNE, 0.6),
    Case(("root", "all"), (0.7, 0.3), MergeMethod.MAGNITUDE_PRUNE),
    Case(("all", "some"), (0.7, -0.3), MergeMethod.DARE_LINEAR, 0.6),
    Case(("all", "some", "all"), (0.7, 0.3, 0.2), MergeMethod.DARE_TIES, 0.6),
    Case(("some", "all"), (0.7, 0.3), MergeMethod.DARE_TIES, 0.9, MajoritySign.FREQUENCY),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.inference_mode()
def test_a_merge_equals_pefts(base: Path, folders: dict[str, Path], engine: DrivenEngine, case: Case) -> None:
    made = merge(folders, case.names, case.weights, case.method, density=case.density, majority_sign=case.majority_sign)
    status = registered(engine, made)
    assert status.reason is None, status.message
    reference = peft_of(base, folders, made)

    plan = engine.engine._loads._adapters[status.key].plan
    assert plan is not None
    read = reader_of(plan)
    sites = {site.module: site for site in (*plan.sites, *plan.side_sites)}
    layers = lora_layers(reference)
    assert sites.keys() == layers.keys()
    for name, site in sites.items():
        ours, theirs = read(site.b_key) @ read(site.a_key), delta_of(layers[name])
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    request_id = made.digest
    engine.submit_key(request_id, status.key, PROMPT, GREEDY)
    engine.run_until_ended([request_id])
    answer = engine.tokens(request_id)
    assert len(answer) == NUM_TOKENS
    logits = reference(torch.tensor([[*PROMPT, *answer]])).logits[0, len(PROMPT) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert bool((chosen > logits.max(1).values - TIE).all())
    with reference.disable_adapter():
        plain = reference(torch.tensor([[*PROMPT, *answer]])).logits[0, len(PROMPT) - 1 : -1]
    assert plain.argmax(1).tolist() != answer, "the base answers the same"


def test_a_merge_is_made_again_as_it_was(folders: dict[str, Path], engine: DrivenEngine) -> None:
    """Whatever is drawn, and in whatever order its modules are read."""
    made = merge(folders, ("all", "some"), (1.0, 1.0), MergeMethod.DARE_TIES, density=0.5)
    assert registered(engine, made).reason is None
    plan = engine.engine._loads._adapters[AdapterKey(MERGED, made.digest)].plan
    assert plan is not None
    once, again = reader_of(plan), reader_of(plan)
    found = {site.module: (once(site.a_key), once(site.b_key)) for site in plan.sites}
    for site in reversed(plan.sites):
        assert torch.equal(again(site.b_key), found[site.module][1])
        assert torch.equal(again(site.a_key), found[site.module][0])


@pytest.mark.parametrize(
    ("names", "method", "told"),
    [
        (("all", "some", "mixed", "all"), MergeMethod.LINEAR, "add up to 18 at"),
        (("all", "mixed"), MergeMethod.TIES, "ties needs equal ranks"),
        (("all", "dora"), MergeMethod.LINEAR, "dora has use_dora"),
        (("all", "bias"), MergeMethod.LINEAR, "bias has lora_bias"),
        (("all", "saved"), MergeMethod.LINEAR, "saved has weights"),
        (("all", "tokens"), MergeMethod.LINEAR, "tokens has weights"),
        (("activated", "all"), MergeMethod.LINEAR, "activated has alora_invocation_tokens"),
    ],
)
def test_what_has_no_merge_is_refused_by_name(
    folders: dict[str, Path], engine: DrivenEngine, names: Sequence[str], method: MergeMethod, told: str
) -> None:
    status = registered(engine, merge(folders, names, [1.0] * len(names), method))
    reason = Reason.RANK_TOO_HIGH if "add up" in told else Reason.UNSUPPORTED_ADAPTER
    assert (status.reason, status.tier) == (reason, None)
    assert told in status.message


def test_the_identity_is_what_counts(folders: dict[str, Path]) -> None:
    def digest(*names: str, **options: Any) -> str:
        return merge(folders, names, **{"weights": [1.0] * len(names), **options}).digest

    linear = digest("all", "some")
    assert digest("all", "some", density=0.3, majority_sign=MajoritySign.FREQUENCY) == linear
    assert digest("all", "some") == linear
    others = {
        linear,
        digest("all", "root"),
        digest("some", "all"),
        digest("all", "some", weights=[1.0, 0.5]),
        digest("all", "some", method=MergeMethod.TIES),
        digest("all", "some", method=MergeMethod.TIES, density=0.3),
        digest("all", "some", method=MergeMethod.TIES, majority_sign=MajoritySign.FREQUENCY),
    }
    assert len(others) == 7
    assert digest("all", method=MergeMethod.TIES) == digest("all")
    assert digest("all", "some", method=MergeMethod.DARE_LINEAR, majority_sign=MajoritySign.FREQUENCY) == digest(
        "all", "some", method=MergeMethod.DARE_LINEAR
    )
