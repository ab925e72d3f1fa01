"""Which modules, ranks and scales a config means: held against peft's own functions."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from support.adapter_files import write_adapter

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.patterns import MAX_CHARACTERS, Patience
from lorafleet_inference.adapters.peft_config import PeftConfig, Targets, read_config
from lorafleet_inference.adapters.peft_defaults import DEFAULT_TARGETS
from lorafleet_inference.errors import AdapterError

NAMES = [
    *(f"model.layers.{layer}.{name}" for layer in (0, 1, 11) for name in ("self_attn.q_proj", "mlp.down_proj", "proj")),
    *(f"transformer.h.{layer}.attn.c_attn" for layer in (0, 1)),
    "model.layers.1.block.2.q_proj",
    "q_proj",
    "lm_head",
]
ENDINGS = ["q_proj", "proj", "down_proj", "self_attn.q_proj", "c_attn", "model.layers.1.mlp.down_proj", "lm_head"]
PATTERNS = [
    "q_proj",
    ".*proj",
    r"layers\.1\..*",
    r"^model\.layers\.0\.self_attn\.q_proj",
    r"1\.mlp\.down_proj",
    "h.1.attn.c_attn",
]

targets = st.one_of(
    st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=3),
    st.sampled_from([r".*\.q_proj", r"model\.layers\.(0|11)\..*", ".*down.*", "q_proj"]),
)
layers = st.one_of(st.none(), st.integers(0, 2), st.lists(st.sampled_from([0, 1, 2, 11]), max_size=3))
layers_pattern = st.one_of(st.none(), st.sampled_from(["layers", "h", "block", ["layers", "h"], []]))
pattern_map = st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 64), max_size=3)


@given(
    target_modules=targets,
    exclude=st.one_of(st.none(), st.lists(st.sampled_from(ENDINGS), max_size=2), st.just(r".*\.11\..*")),
    layers=layers,
    pattern=layers_pattern,
    ranks=pattern_map,
    alphas=pattern_map,
    rslora=st.booleans(),
)
def test_modules_ranks_and_scales_are_pefts(
    *, target_modules: Any, exclude: Any, layers: Any, pattern: Any, ranks: Any, alphas: Any, rslora: bool
) -> None:
    fields = {
        "r": 7,
        "lora_alpha": 5,
        "target_modules": target_modules,
        "exclude_modules": exclude,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": rslora,
    }
    if isinstance(target_modules, list):
        fields |= {"layers_to_transform": layers, "layers_pattern": pattern if layers not in (None, []) else None}
    theirs = LoraConfig(**fields)
    ours = Targets(PeftConfig(peft_type="LORA", **fields))
    for name in NAMES:
        assert ours.include(name, is_adaptable=True) == bool(check_target_module_exists(theirs, name)), name
        rank = ranks.get(get_pattern_key(ranks, name), 7)
        alpha = alphas.get(get_pattern_key(alphas, name), 5)
        assert ours.rank(name) == rank
        assert ours.scale(name) == alpha / (math.sqrt(rank) if rslora else rank)


@pytest.mark.parametrize("written", ["all-linear", "ALL-LINEAR"])
def test_all_linear_leaves_the_head_alone(written: str) -> None:
    means = Targets(PeftConfig(peft_type="LORA", target_modules=written, exclude_modules=["proj"]))
    assert means.include("model.layers.0.self_attn.q_proj", is_adaptable=True)
    assert not means.include("model.layers.0.proj", is_adaptable=True)
    assert not means.include("lm_head", is_adaptable=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "IA3"),
        ("task_type", "SEQ_2_SEQ_LM"),
        ("layer_replication", [[0, 1]]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("some_new_method", {"strength": 1}),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(tmp_path: Path, field: str, value: Any) -> None:
    write_adapter(tmp_path, **{field: value})
    with pytest.raises(AdapterError, match=f"{field}=") as caught:
        read_config(tmp_path)
    assert caught.value.reason is Reason.UNSUPPORTED_ADAPTER


def test_unknown_fields_may_be_ignored_and_known_ones_never(tmp_path: Path) -> None:
    write_adapter(tmp_path, some_new_method={"strength": 1})
    assert read_config(tmp_path, ignore_unknown=True).r == 4
    write_adapter(tmp_path, some_new_method={"strength": 1}, use_qalora=True)
    with pytest.raises(AdapterError, match="use_qalora="):
        read_config(tmp_path, ignore_unknown=True)


def test_what_a_config_without_target_modules_means_is_pefts() -> None:
    theirs = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for model_type, ours in DEFAULT_TARGETS.items():
        assert list(ours) == theirs[model_type], model_type
    of_other_models = {"t5", "mt5", "bart", "blip-2", "bert", "roberta", "xlm-roberta", "electra", "deberta-v2", "deberta",
                       "layoutlm", "RefinedWebModel", "RefinedWeb", "gemma4", "rwkv", "rwkv7"}  # fmt: skip
    assert theirs.keys() - DEFAULT_TARGETS.keys() == of_other_models
    config = PeftConfig(peft_type="LORA").for_base("phi")
    assert config.target_modules == ["q_proj", "v_proj", "fc1", "fc2"]
    assert PeftConfig(peft_type="LORA", target_modules=[]).for_base("phi").target_modules == []
    with pytest.raises(AdapterError, match="knows no default for a base of the type olmo2"):
        PeftConfig(peft_type="LORA").for_base("olmo2")


def test_a_byte_order_mark_is_called_by_its_name(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8-sig")
    with pytest.raises(AdapterError, match="byte order mark"):
        read_config(tmp_path)


def test_a_config_as_peft_saves_it_passes(tmp_path: Path) -> None:
    LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="gaussian").save_pretrained(tmp_path)
    assert read_config(tmp_path).target_modules == ["q_proj"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[]", "adapter_config.json"),
        ("{}", "peft_type"),
        ('{"peft_type": "LORA", "r": 0}', "r"),
        ('{"peft_type": "LORA", "r": "many"}', "r"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', "lora_alpha"),
        ('{"peft_type": "LORA", "lora_alpha": 1e300}', "lora_alpha"),
        ('{"peft_type": "LORA", "lora_alpha": -1e7}', "lora_alpha"),
        ('{"peft_type": "LORA", "r": 1' + "0" * 400 + "}", "r"),
        ('{"peft_type": "LORA", "rank_pattern": {"a": "b"}}', "rank_pattern.a"),
        ('{"peft_type": "LORA", "rank_pattern": {"a": 0}}', "rank_pattern.a"),
        ('{"peft_type": "LORA", "rank_pattern": {"a": -4}}', "rank_pattern.a"),
        ('{"peft_type": "LORA", "alpha_pattern": {"a": Infinity}}', "alpha_pattern.a"),
        ('{"peft_type": "LORA", "alpha_pattern": {"a": 1e9}}', "alpha_pattern.a"),
        ('{"peft_type": "LORA", "target_modules": {"a": 1}}', "target_modules"),
        ("\xff", "JSON"),
    ],
)
def test_configs_that_cannot_be_understood_name_the_field(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterError, match=named) as caught:
        read_config(tmp_path)
    assert caught.value.reason is Reason.ARTIFACT_INVALID


@pytest.mark.parametrize(
    "fields",
    [{"target_modules": "("}, {"rank_pattern": {"[": 1}}, {"alpha_pattern": {"a" * (MAX_CHARACTERS + 1): 1}}],
)
def test_patterns_that_are_none_name_the_field(fields: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match=next(iter(fields))):
        Targets(PeftConfig(peft_type="LORA", **fields))


def test_a_huge_config_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "note": "x" * (2 << 20)}))
    with pytest.raises(AdapterError, match="more than"):
        read_config(tmp_path)


@pytest.mark.parametrize("pattern", [r"(?:.|.)*\d{9}", r"(.*?.*?.*?.*?.*?.*?.*?.*?.*?.*?.*?)\s"])
def test_a_pattern_that_takes_for_ever_is_stopped(pattern: str) -> None:
    patience = Patience(0.05)
    slow = patience.compile("rank_pattern", pattern)
    with pytest.raises(AdapterError, match=r"rank_pattern: .* takes too long"):
        slow.match("model.layers.0.self_attn.q_projjjjjjjjjjjjjjjjjjjjjjjjjjjj")
    assert patience.seconds <= 0


def test_long_patterns_of_well_known_trainers_pass() -> None:
    pattern = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj|v_proj|o_proj|"
        r"gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|down_proj)))"
    )
    theirs, ours = LoraConfig(target_modules=pattern), Targets(PeftConfig(peft_type="LORA", target_modules=pattern))
    for name in NAMES:
        assert ours.include(name, is_adaptable=True) == bool(check_target_module_exists(theirs, name))
