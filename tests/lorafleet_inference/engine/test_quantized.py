"""Bases with quantised weights: each format is read to the number, and adapters on top are computed as PEFT does on the same numbers."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engines import DrivenEngine
from support.families import FAMILIES, VOCABULARY, AdapterSpec, adapter_specs
from support.models import Reference, model_folder, save_adapter, save_model
from support.quantized import FORMATS, four_bits, save_quantised

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model.budget import weights_read
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.decoder import Decoder
from lorafleet_inference.model.dry_run import model_size
from lorafleet_inference.model.experts import wait_for_device
from lorafleet_inference.model.facts import facts_of_folder
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.quantization.weight import QuantizedWeight
from lorafleet_inference.model.sizing import weight_bytes

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Q = "model.layers.0.self_attn.q_proj"
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, num_logprobs=VOCABULARY)
SPECS = adapter_specs(FAMILIES["llama"])
ADAPTERS = {name: SPECS[name] for name in ("rank-7", "dora", "lora-bias", "saved-norm-and-head", "activated")}
ADAPTERS["saved-linear"] = AdapterSpec(4, ("q_proj",), options={"modules_to_save": ["o_proj"]})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return the folders of a format, with its weights and with the same numbers in 32 bit."""
    root, known = tmp_path_factory.mktemp("quantised"), dict[str, tuple[Path, Path]]()
    base = save_model(
        type(config := FAMILIES["llama"].config)(**{**config.to_dict(), "num_hidden_layers": 1}), root / "base"
    )

    def make(name: str) -> tuple[Path, Path]:
        if name not in known:
            known[name] = save_quantised(base, root / name, *FORMATS[name])
        return known[name]

    return make


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(EngineConfig(model=str(folder), device="cpu", num_threads=1, **{"cpu_kernels": False, **options}))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, **options)
    assert caught.value.option == "--model"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@torch.inference_mode()
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_read_to_the_number(made: Callable[[str], tuple[Path, Path]], name: str) -> None:
    quantised, plain = made(name)
    loaded, own = load(quantised), load(quantised, decoder="own")
    assert isinstance(own.model, Decoder)
    wanted = load_file(plain / WEIGHTS)
    modules = [one.name for one in loaded.facts.modules if f"{one.name}.weight" in wanted]
    assert len(modules) == 7
    for module in modules:
        for model in (loaded.model, own.model):
            assert torch.equal(plain_weight(model.get_submodule(module)), wanted[f"{module}.weight"]), module
    assert loaded.facts == own.facts
    assert loaded.facts.__replace__(device="meta") == facts_of_folder(quantised) == facts_of_folder(plain)
    assert not hasattr(loaded.model.config, "quantization_config")
    kept = sum(isinstance(module, QuantizedWeight) for module in own.model.modules())
    apart = name == "fp8-blocks"  # whose blocks go over the ends of layers
    assert kept == (7 if apart else 4), "weights that lie alike are one product's"
    linears = sum(4 * wanted[f"{module}.weight"].numel() for module in modules)
    others = sum(4 * tensor.numel() for tensor in wanted.values()) - linears
    size = weight_bytes(loaded.model)
    order = 4 * 32 if name.endswith("order") else 0
    rows = sum(len(wanted[f"{module}.weight"]) for module in modules if not module.endswith(("o_proj", "down_proj")))
    more = 4 * rows if name.endswith("tensor") else 0  # a scale for each row of what has become one
    assert -more <= size - weight_bytes(own.model) <= 3 * max(64, order), "three tables fewer"
    assert size < others + linears / 2
    planned = model_size(quantised, dtype="float32", max_batch_tokens=64, max_batch_requests=8)
    # scales of another width than usual, one for all, and double quantisation, which is undone
    assert abs(planned.weights - size) < 0.02 * size
    assert planned.facts.modules == loaded.facts.modules
    assert planned.shapes == loaded.shapes
    assert planned.dequantised == linears


@pytest.mark.parametrize("name", ["gptq-4-order", "awq", "w4a16-asymmetric", "fp8-blocks", "nf4-nested"])
@pytest.mark.parametrize("decoder", ["transformers", "own"])
def test_adapters_on_top_equal_peft(
    made: Callable[[str], tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory, name: str, decoder: Any
) -> None:
    quantised, plain = made(name)
    root = plain.parent / "adapters"
    folders = {
        adapter: root / adapter if (root / adapter).exists() else save_adapter(plain, root / adapter, spec)
        for adapter, spec in ADAPTERS.items()
    }
    check(quantised, plain, folders, decoder=decoder)


def check(folder: Path, plain: Path, adapters: dict[str, Path], **options: Any) -> None:
    """A mixed batch on `folder` is answered as transformers and PEFT answer on the numbers in `plain`."""
    engine = DrivenEngine(
        EngineConfig(model=str(folder), device="cpu", num_threads=1, max_batch_tokens=40, max_rank=16, **options)
    )
    engine.register(adapters)
    rng = random.Random(1)
    prompts = {
        adapter: tuple(rng.randrange(2, VOCABULARY) for _ in range(length))
        for adapter, length in zip([None, *adapters], itertools.cycle((33, 5, 17)), strict=False)
    }
    for adapter, prompt in prompts.items():
        engine.submit(str(adapter), adapter, prompt, GREEDY)
        engine.step()
    engine.run_until_ended([str(adapter) for adapter in prompts])
    reference = Reference(plain, adapters)
    for adapter, prompt in prompts.items():
        tokens = engine.tokens(str(adapter))
        wanted = reference.score(adapter, prompt, tokens).log_softmax(-1)
        events = [event for event in engine.events() if event.request_id == str(adapter)]
        ours = torch.tensor([[value for _, value in sorted(event.logprobs[0].top)] for event in events])
        assert (ours - wanted).abs().max() < 1e-3, adapter
        assert all(wanted[at, token] > wanted[at].max() - 1e-3 for at, token in enumerate(tokens))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_rounded_once(made: Callable[[str], tuple[Path, Path]], dtype: str) -> None:
    quantised, plain = made("w4a16-asymmetric")
    for decoder in ("transformers", "own"):
        model = load(quantised, dtype=dtype, decoder=decoder).model
        wanted = load_file(plain / WEIGHTS)[f"{Q}.weight"].to(getattr(torch, dtype))
        assert torch.equal(plain_weight(model.get_submodule(Q)), wanted)


def changed(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any] | None = None, **fields: Any
) -> Path:
    """Copy a quantised model with other tensors, or other fields of its quantization_config."""
    tensors, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    if change is not None:
        change(tensors)
    config["quantization_config"] |= fields
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    (tmp_path / CONFIG).write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        (
            "gptq-4",
            {"quant_method": "aqlm"},
            "quantization_config.quant_method is 'aqlm'; supported are awq, bitsandbytes, ",
        ),
        ("gptq-4", {"bits": 3}, "quantization_config.bits is 3"),
        ("gptq-4", {"checkpoint_format": "marlin"}, "quantization_config.checkpoint_format is 'marlin'"),
        ("gptq-4", {"dynamic": {"-:.*down.*": {}}}, "quantization_config.dynamic"),
        ("gptq-4", {"group_size": 20}, "quantization_config.group_size is 20, which does not divide the 32 inputs of"),
        ("gptq-4", {"group_size": 8}, f"tensor {Q}.scales has the shape [2, 32], and quantization_config says [4, 32]"),
        ("awq", {"version": "gemv"}, "quantization_config.version is 'gemv'"),
        ("awq", {"zero_point": False}, "quantization_config.zero_point is False"),
        ("awq", {"bits": 8}, "quantization_config.bits is 8"),
        ("w4a16", {"format": "marlin-24"}, "quantization_config.format is 'marlin-24'"),
        ("w4a16", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "quantization_config.sparsity_config.format"),
        ("w4a16", {"transform_config": {"config_groups": {}}}, "quantization_config.transform_config"),
        ("w4a16", {"ignore": ["lm_head", "re:.*q_proj"]}, f"hold {Q} quantised, and no group of quantization_config"),
        ("fp8-blocks", {"fmt": "e5m2"}, "quantization_config.fmt is 'e5m2'"),
        ("nf4", {"bnb_4bit_quant_storage": "bfloat16"}, "quantization_config.bnb_4bit_quant_storage is 'bfloat16'"),
        ("nf4", {"load_in_4bit": False}, "quantization_config.load_in_4bit and load_in_8bit are both false"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_field(
    made: Callable[[str], tuple[Path, Path]], name: str, fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    assert named in refusal(changed(made(name)[0], tmp_path, **fields))


def test_mixed_groups_of_compressed_tensors_are_followed(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Some layers in 4 bit, some in 8, and one that is left as it is."""
    four, plain = made("w4a16")
    eight, plain_eight = made("float-rows")
    tensors, whole = load_file(four / WEIGHTS), load_file(plain / WEIGHTS)
    for name in [name for name in tensors if "mlp" in name or "v_proj" in name]:
        del tensors[name]
    tensors |= {name: tensor for name, tensor in load_file(eight / WEIGHTS).items() if "mlp" in name}
    value = Q.replace("q_proj", "v_proj")
    tensors[f"{value}.weight"] = whole[f"{value}.weight"]
    groups = [
        json.loads((one / CONFIG).read_text())["quantization_config"]["config_groups"]["group_0"]
        for one in (four, eight)
    ]
    groups[0] |= {"targets": ["re:.*self_attn.*"], "format": "pack-quantized"}
    groups[1] |= {"targets": [r"re:.*mlp.*"], "format": "float-quantized"}
    folder = changed(
        four,
        tmp_path,
        format="mixed-precision",
        config_groups={f"group_{number}": group for number, group in enumerate(groups)},
        ignore=["lm_head", value],
    )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for decoder in ("transformers", "own"):
        model = load(folder, decoder=decoder).model
        for name, numbers in {
            **whole,
            **{k: v for k, v in load_file(plain_eight / WEIGHTS).items() if "mlp" in k},
        }.items():
            if name.endswith("proj.weight"):
                assert torch.equal(plain_weight(model.get_submodule(name.removesuffix(".weight"))), numbers), name


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("gptq-4", lambda tensors: tensors.pop(f"{Q}.scales"), f"tensor {Q}.scales is missing"),
        ("gptq-4-order", lambda tensors: tensors[f"{Q}.g_idx"][3:4].fill_(2), f"tensor {Q}.g_idx names group 2 of 2"),
        (
            "gptq-4",
            lambda tensors: tensors[f"{Q}.scales"][0, :1].fill_(float("nan")),
            f"the weight of {Q} holds values that",
        ),
        ("gptq-4", lambda tensors: tensors.update({f"{Q}.bias": torch.ones(32)}), f"tensor {Q}.bias is not zero"),
        (
            "awq",
            lambda tensors: tensors.update({f"{Q}.qweight": tensors[f"{Q}.qweight"].float()}),
            "qweight is float32, not int32",
        ),
        (
            "fp8-blocks",
            lambda tensors: tensors[f"{Q}.weight"].view(torch.uint8)[0, :1].fill_(127),
            f"the weight of {Q} holds",
        ),
        (
            "nf4",
            lambda tensors: tensors.pop(f"{Q}.weight.quant_state.bitsandbytes__nf4"),
            "bitsandbytes__nf4 is missing",
        ),
        (
            "awq",
            lambda tensors: [tensors.pop(name) for name in list(tensors) if "qweight" in name],
            "hold no quantised layer (qweight)",
        ),
        (
            "gptq-4",
            lambda tensors: tensors.update({"model.layers.0.mlp.experts.2.up_proj.qweight": torch.ones(1)}),
            "its experts are quantised (model.layers.0.mlp.experts.2.up_proj)",
        ),
        (
            "gptq-4",
            lambda tensors: tensors.update({"model.layers.7.mlp.up_proj.qweight": torch.ones(1)}),
            "no layer of this name",
        ),
        (
            "gptq-4",
            lambda tensors: tensors.update({"model.norm.qweight": torch.ones(1)}),
            "is a LlamaRMSNorm, and no plain linear",
        ),
    ],
)
def test_files_that_are_not_what_the_config_says(
    made: Callable[[str], tuple[Path, Path]],
    name: str,
    change: Callable[[dict[str, torch.Tensor]], Any],
    named: str,
    tmp_path: Path,
) -> None:
    assert named in refusal(changed(made(name)[0], tmp_path, change))


def test_bias_of_zeros_that_a_layer_does_not_have_is_let_pass(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """AutoGPTQ writes one for each layer."""
    load(changed(made("gptq-4")[0], tmp_path, lambda tensors: tensors.update({f"{Q}.bias": torch.zeros(32)})))
    assert "are not used" not in caplog.text


@torch.inference_mode()
@pytest.mark.parametrize("decoder", ["transformers", "own"])
def test_quantised_head_is_brought_back(decoder: Any, tmp_path: Path) -> None:
    quantise, config = FORMATS["fbgemm-fp8"]
    left_out = {**config, "modules_to_not_convert": None}
    quantised, plain = save_quantised(model_folder("llama"), tmp_path, quantise, left_out, skip=())
    assert "lm_head.weight_scale" in load_file(quantised / WEIGHTS)
    loaded = load(quantised, decoder=decoder)
    assert torch.equal(loaded.model.get_output_embeddings().weight, load_file(plain / WEIGHTS)["lm_head.weight"])
    assert loaded.facts == load(plain).facts


def test_biases_and_families_with_one_product_for_all(tmp_path: Path) -> None:
    """Qwen 2 has biases on queries, keys and values; Phi-3 keeps them in one layer."""
    for family in ("qwen2", "phi3"):
        config = FAMILIES[family].config
        base = save_model(
            type(config)(**{**config.to_dict(), "num_hidden_layers": 1, "layer_types": None}), tmp_path / family
        )
        quantised, plain = save_quantised(base, tmp_path / f"{family}-q", *FORMATS["w4a16"])
        for decoder in ("transformers", "own"):
            check(quantised, plain, {}, decoder=decoder)


def test_experts_stay_plain_beside_quantised_attention(tmp_path: Path) -> None:
    quantised, plain = save_quantised(
        model_folder("mixtral"), tmp_path, *FORMATS["w4a16"], skip=("lm_head", "experts", "mlp", "block_sparse_moe")
    )
    loaded = load(quantised)
    assert weight_bytes(loaded.model) < weight_bytes(load(plain).model)


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # the largest error that rounding to the nearest may make, for each row, group or block
    "int8": lambda weight: weight.abs().amax(1, keepdim=True) / 127 / 2,
    "fp8": lambda weight: (weight.abs() / 16).clamp(min=weight.abs().amax(1, keepdim=True) / 448 / 512 / 2),
    "int4": lambda weight: (weight.amax(1, keepdim=True).clamp(min=0) - weight.amin(1, keepdim=True).clamp(max=0)) / 15,
    "nf4": lambda weight: torch.full_like(weight, float(weight.abs().max()) * 0.152),
}


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_quantised_at_load_is_near(kind: Any) -> None:
    folder = model_folder("llama")
    before = load_file(folder / WEIGHTS)
    models = [load(folder, quantization=kind, decoder=decoder).model for decoder in ("transformers", "own")]
    for name, weight in before.items():
        if name.endswith("proj.weight"):
            found = plain_weight(models[0].get_submodule(name.removesuffix(".weight")))
            error = (found - weight).abs()
            assert (error <= KINDS[kind](weight) * (1 + 1e-5)).all(), name
            assert error.max() > 0
            assert torch.equal(plain_weight(models[1].get_submodule(name.removesuffix(".weight"))), found)
    kept = plain_weight(models[0].get_output_embeddings())
    assert torch.equal(kept, before["lm_head.weight"]), "the head is not quantised"
    planned = model_size(folder, dtype="float32", max_batch_tokens=64, max_batch_requests=8, quantization=kind)
    assert planned.weights == weight_bytes(models[0])
    if kind != "nf4":  # whose blocks go over the rows of the narrow layers
        assert weights_read(planned, 65) - weights_read(planned, 64) == 2 * planned.multiplied > 0
    assert planned.weights < model_size(folder, dtype="float32", max_batch_tokens=64, max_batch_requests=8).weights


@torch.inference_mode()
def test_nf4_at_load_is_what_qlora_trains_on() -> None:
    folder = model_folder("llama")
    model = load(folder, quantization="nf4").model
    name = "model.layers.1.mlp.up_proj"
    _, numbers = four_bits(load_file(folder / WEIGHTS)[f"{name}.weight"].numpy(), kind="nf4", nested=False)
    assert torch.equal(plain_weight(model.get_submodule(name)), torch.tensor(numbers))


@torch.inference_mode()
def test_int4_has_groups_of_128_and_a_shorter_last_one(tmp_path: Path) -> None:
    config = FAMILIES["llama"].config
    base = save_model(type(config)(**{**config.to_dict(), "num_hidden_layers": 1, "intermediate_size": 200}), tmp_path)
    name = "model.layers.0.mlp.down_proj"
    weight = load_file(base / WEIGHTS)[f"{name}.weight"]
    found = plain_weight(load(base, quantization="int4").model.get_submodule(name))
    for columns in (slice(0, 128), slice(128, 200)):
        part = weight[:, columns]
        step = (part.amax(1, keepdim=True).clamp(min=0) - part.amin(1, keepdim=True).clamp(max=0)) / 15
        assert ((found[:, columns] - part).abs() <= step).all()


def one_layer(family: str, folder: Path) -> Path:
    config = FAMILIES[family].config
    return save_model(type(config)(**{**config.to_dict(), "num_hidden_layers": 1}), folder)


EXPERTS = {"mixtral": ("rank-16", "experts", "router-and-experts-apart"), "qwen3-moe": ("dora", "experts-apart")}


def check_experts(family: str, folder: Path, plain: Path, root: Path, **options: Any) -> None:
    specs = adapter_specs(FAMILIES[family])
    adapters = {name: save_adapter(plain, root / name, specs[name]) for name in EXPERTS[family]}
    for decoder in ("transformers", "own"):
        check(folder, plain, adapters, decoder=decoder, **options)


@pytest.mark.parametrize(
    ("family", "name"), [("mixtral", "gptq-4-order"), ("mixtral", "awq"), ("qwen3-moe", "fp8-blocks")]
)
def test_adapters_on_quantised_experts_equal_peft(family: str, name: str, tmp_path: Path) -> None:
    base = one_layer(family, tmp_path / "base")
    quantised, plain = save_quantised(base, tmp_path, *FORMATS[name])
    check_experts(family, quantised, plain, tmp_path)
    model = load(quantised).model
    assert wait_for_device(model), "by torch, without the kernels of a GPU, so that its steps are not captured"
    assert not wait_for_device(load(plain).model)
    stored = model.get_submodule("model.layers.0.mlp.experts")
    numbers = load_file(plain / WEIGHTS)
    owner, gate, up = ("block_sparse_moe", "w1", "w3") if family == "mixtral" else ("mlp", "gate_proj", "up_proj")
    prefix = f"model.layers.0.{owner}.experts.2"
    wanted = torch.cat([numbers[f"{prefix}.{one}.weight"] for one in (gate, up)])
    assert torch.equal(stored.gate_up_proj[2], wanted)
    planned = model_size(quantised, dtype="float32", max_batch_tokens=64, max_batch_requests=8)
    size = weight_bytes(model)
    assert abs(planned.weights - size) < 0.02 * size
    assert planned.facts.experts == facts_of_folder(plain).experts
    # on a GPU, layers are multiplied by as they are by steps of up to 64 tokens, experts by those of up to 1,024
    layers, of_experts = planned.multiplied - planned.expert_multiplied, planned.expert_multiplied
    assert of_experts > 0 or name != "gptq-4-order"
    assert weights_read(planned, 65) - weights_read(planned, 64) == pytest.approx(2 * layers, abs=1)
    assert weights_read(planned, 1025) - weights_read(planned, 1024) == pytest.approx(2 * of_experts, abs=1)


@pytest.mark.parametrize("family", EXPERTS)
def test_adapters_on_a_base_quantised_at_load_equal_peft(family: str, tmp_path: Path) -> None:
    """The head stays as it is; LoRA is added to what the quantised layers and experts give."""
    folder = one_layer(family, tmp_path / "base")
    with torch.inference_mode():
        model = load(folder, quantization="nf4", decoder="transformers").model
        tensors = load_file(folder / WEIGHTS)
        for name, tensor in tensors.items():
            if ".experts." in name:
                _, numbers = four_bits(tensor.numpy(), kind="nf4", nested=False)
                tensors[name] = torch.tensor(numbers)
            elif ".self_attn." in name and tensor.dim() > 1:
                tensors[name] = plain_weight(model.get_submodule(name.removesuffix(".weight"))).clone()
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    save_file(tensors, plain / WEIGHTS, metadata={"format": "pt"})
    check_experts(family, folder, plain, tmp_path, quantization="nf4")
    planned = model_size(folder, dtype="float32", max_batch_tokens=64, max_batch_requests=8, quantization="nf4")
    assert planned.weights == weight_bytes(model)
    # a step of one token brings back the chosen experts alone: two of four
    assert weights_read(planned, 65) - weights_read(planned, 1) > planned.expert_weights // 2


def test_experts_that_lack_a_map_or_lie_stacked_are_refused(tmp_path: Path) -> None:
    base = one_layer("mixtral", tmp_path / "base")
    lost = "model.layers.0.block_sparse_moe.experts.1.w3"
    quantised, _ = save_quantised(base, tmp_path, *FORMATS["awq"])
    tensors = load_file(quantised / WEIGHTS)
    for suffix in ("qweight", "qzeros", "scales"):
        del tensors[f"{lost}.{suffix}"]
    save_file(tensors, quantised / WEIGHTS, metadata={"format": "pt"})
    assert f"tensor {lost}.scales is missing" in refusal(quantised)
    tensors = load_file(base / WEIGHTS)
    del tensors[f"{lost}.weight"]
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    assert f"the files hold no tensor {lost}.weight" in refusal(base, quantization="int8")


def test_what_cannot_be_quantised_at_load_is_refused(made: Callable[[str], tuple[Path, Path]]) -> None:
    with pytest.raises(ConfigError, match=r"quantised already \(GPTQ, 4 bit, groups of 16\)") as caught:
        load(made("gptq-4")[0], quantization="int8")
    assert caught.value.option == "--quantization"
    assert "it has no linear layers but its head" in refusal(model_folder("gpt2"), quantization="int8")
