"""Makes tiny random models and adapters, and says what transformers + PEFT answer with them, one request at a time."""

import atexit
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.variants import calculate_alora_offsets
from safetensors.torch import load_file, save_file
from support.families import FAMILIES, VOCABULARY, AdapterSpec, adapter_specs
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

__all__ = [
    "VOCABULARY",
    "AdapterSpec",
    "Reference",
    "adapter_of",
    "adapters_of",
    "model_folder",
    "save_adapter",
    "save_model",
    "served_as",
]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="lorafleet-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def model_folder(family: str) -> Path:
    """Return the folder of a tiny random model of one of FAMILIES; made once in a process."""
    return save_model(FAMILIES[family].config, _root() / family)


@contextmanager
def _quiet() -> Iterator[None]:
    """peft asks transformers for a name that is being renamed, and speaks of what it does with embeddings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for known in (
            "save_embedding_layers",
            "tied",
            "tie_word_embeddings",
            "fan_in_fan_out",
            "bias",
            "_pattern keys",
        ):
            warnings.filterwarnings("ignore", message=f".*{known}")
        yield


def _load(base: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    # Falcon's eager code adds alibi twice
    sdpa = {"attn_implementation": "sdpa"} if AutoConfig.from_pretrained(base).model_type == "falcon" else {}
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **sdpa).eval()


def save_model(config: PreTrainedConfig, folder: Path, *, seed: int = 0, norms: bool = False) -> Path:
    """Save a random model of this config, without a tokenizer, and return the folder. `norms`: whose weights are no ones."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith("bias"):  # they start as zeros, which would hide what is done to them
                parameter.normal_(std=0.1, generator=generator)
            elif norms and "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, spec: AdapterSpec) -> Path:
    """Save a random adapter on the model in `base`, strong enough to change most tokens, and return its folder."""
    model = _load(base)
    if spec.num_rows is not None:
        _resize(model, spec.num_rows)
    options = {"lora_alpha": 2 * spec.rank, **spec.options}
    if type(model).__name__.startswith("GPT2"):
        options.setdefault("fan_in_fan_out", True)
    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    with _quiet():
        peft = get_peft_model(model, LoraConfig(r=spec.rank, target_modules=targets, task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.no_grad():
        for name, parameter in sorted(peft.named_parameters()):
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.normal_(std=0.25 / spec.rank**0.5, generator=generator)
            elif (
                "trainable_tokens_delta" in name
                or "modules_to_save" in name
                or (options.get("bias") == "all" and name.endswith("bias"))
            ):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif spec.changes_base and name.endswith("base_layer.weight") and len(parameter) == spec.num_rows:
                parameter[20:30].add_(0.1 * torch.randn(10, parameter.shape[1], generator=generator))
        with _quiet():
            peft.save_pretrained(folder, save_embedding_layers=spec.changes_base or spec.num_rows is not None)
    return folder


def _resize(model: PreTrainedModel, num_rows: int) -> None:
    """As people do who add tokens, except that the new rows differ: they are drawn around the mean of the others."""
    num_before = model.get_input_embeddings().weight.shape[0]
    with _quiet():
        model.resize_token_embeddings(num_rows)
    generator = torch.Generator().manual_seed(num_rows)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        new = module.weight.data[num_before:]
        new += 0.2 * torch.randn(new.shape, generator=generator)


def num_rows_of(adapter: Path | None) -> int:
    """Return how many tokens an adapter has; those of the base without one."""
    tensors = {} if adapter is None else load_file(adapter / WEIGHTS)
    sides = ("embed", "wte", "lm_head", "embed_out")
    rows = {
        len(tensor)
        for name, tensor in tensors.items()
        if name.endswith(".weight")
        and "lora_" not in name
        and any(side in name.rsplit("layers.", 1)[-1] for side in sides)
    }
    rows -= {VOCABULARY}
    return min(rows, default=VOCABULARY)


def _as_old_peft(folder: Path) -> None:
    """Name tensors and write the config as peft 0.3 did."""
    tensors = load_file(folder / WEIGHTS)
    save_file({key.replace(".weight", ".default.weight"): tensor for key, tensor in tensors.items()}, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    kept = ("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha",
            "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type")  # fmt: skip
    (folder / CONFIG).write_text(json.dumps({key: config[key] for key in kept}))


def _as_old_experts(folder: Path, maps: tuple[str, str, str], mixture: str) -> None:
    """Write random maps of each expert in place of the stacked ones, as before transformers fused experts."""
    config = json.loads((folder / CONFIG).read_text())
    tensors: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(5)
    for key, tensor in load_file(folder / WEIGHTS).items():
        if ".experts." not in key:
            tensors[key.replace(".mlp.gate.", f".{mixture}.gate.")] = tensor
            continue
        rank, (outer, inner) = config["r"], tensor.shape
        is_up, is_a = ".base_layer." in key, "lora_A" in key
        layer = key.split(".mlp.experts.")[0]
        for name in maps[:2] if is_up else maps[2:]:
            shape = (rank, inner) if is_a else (outer // (2 if is_up else 1), rank)
            for expert in range(4):
                old = f"{layer}.{mixture}.experts.{expert}.{name}.lora_{'A' if is_a else 'B'}.weight"
                tensors[old] = torch.randn(shape, generator=generator) * 0.25 / rank**0.5
    save_file(tensors, folder / WEIGHTS)
    routers = ["gate"] if any(name.endswith("gate.weight") for name in config["target_parameters"]) else []
    config |= {"target_modules": [*config["target_modules"], *maps, *routers], "target_parameters": None}
    (folder / CONFIG).write_text(json.dumps(config))


@cache
def adapter_of(family: str, kind: str) -> Path:
    """Return the folder of an adapter of one kind that the family is tested with; made once in a process."""
    spec = adapter_specs(FAMILIES[family])[kind]
    folder = save_adapter(model_folder(family), _root() / f"{family}-adapters" / kind, spec)
    maps = FAMILIES[family].experts
    if spec.rewrite == "old-experts" and maps is not None:
        _as_old_experts(folder, maps, FAMILIES[family].mixture)
    return folder


def adapters_of(family: str) -> dict[str, Path]:
    """Return folders of adapters of each kind that the family is tested with."""
    return {kind: adapter_of(family, kind) for kind in adapter_specs(FAMILIES[family])}


@cache
def served_as(folder: Path, rewrite: str) -> Path:
    """Return the folder that is served for one that PEFT judges: today's peft no longer reads what peft 0.3 wrote."""
    if rewrite != "old-peft":
        return folder
    old = folder.with_name(f"{folder.name}-old")
    shutil.copytree(folder, old)
    _as_old_peft(old)
    return old


def _is_activated(model: torch.nn.Module) -> bool:
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    return bool(getattr(config, "alora_invocation_tokens", None))


def _offsets(model: torch.nn.Module, prompt: Sequence[int], num_more: int) -> dict[str, list[int | None]]:
    """What tells peft where an activated adapter begins in a prompt and `num_more` tokens of its answer.

    Its `generate` looks for the invocation in the prompt, its `forward` in all tokens that it gets.
    """
    if not _is_activated(model):
        return {}
    assert isinstance(model, PeftModel)
    found = calculate_alora_offsets(model.peft_config, model.active_adapter, torch.tensor([list(prompt)]))[0]
    return {"alora_offsets": [None if found is None else found + num_more]}


def _as_one_sequence(layer: torch.nn.Module) -> None:
    """Have a layer get tokens [1, T, in] also where its model leaves the sequences' axis out (OPT).

    There the activated adapters of peft raise, for they look for their tokens along that axis.
    """
    of_peft = layer.forward

    def forward(x: torch.Tensor, **kwargs: object) -> torch.Tensor:
        y: torch.Tensor = of_peft(x.view(1, -1, x.shape[-1]), **kwargs)
        return y.view(*x.shape[:-1], y.shape[-1])

    layer.forward = forward


class Reference:
    """transformers + PEFT, one request at a time; in float32 where nothing else is said."""

    def __init__(self, base: Path, adapters: Mapping[str, Path], dtype: torch.dtype = torch.float32) -> None:
        self._base, self._dtype = base, dtype
        self._adapters = adapters
        self._models: dict[str | None, torch.nn.Module] = {}
        self._scores: dict[tuple[object, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def score(self, adapter: str | None, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Return the logits that choose each token of the answer, after the true tokens before: [answer, vocabulary]."""
        key = (adapter, tuple(prompt), tuple(answer))
        if key not in self._scores:
            ids = torch.tensor([[*prompt, *answer[:-1]]])
            model = self._model(adapter)
            logits = model(input_ids=ids, use_cache=False, **_offsets(model, prompt, len(answer) - 1)).logits
            self._scores[key] = logits[0, len(prompt) - 1 :].float()
        return self._scores[key]

    @torch.inference_mode()
    def hidden_states(self, adapter: str | None, prompt: Sequence[int]) -> torch.Tensor:
        """Return what the head sees of a prompt: [tokens, hidden size]."""
        model = self._model(adapter)
        ids = torch.tensor([list(prompt)])
        out = model(input_ids=ids, use_cache=False, output_hidden_states=True, **_offsets(model, prompt, 0))
        states: torch.Tensor = out.hidden_states[-1][0].float()
        return states

    @torch.inference_mode()
    def generate(self, adapter: str | None, prompt: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        """Return the greedy answer; end tokens do not stop it."""
        return self.generate_scored(adapter, prompt, num_tokens)[0]

    @torch.inference_mode()
    def generate_scored(
        self, adapter: str | None, prompt: Sequence[int], num_tokens: int
    ) -> tuple[tuple[int, ...], torch.Tensor]:
        """Return the greedy answer, and the logits that chose its tokens: [answer, vocabulary]."""
        model = self._model(adapter)
        model(input_ids=torch.tensor([[2]]))  # rotary embeddings remember the longest text since the last short one
        ids = torch.tensor([list(prompt)])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return tuple(out.sequences[0, len(prompt) :].tolist()), torch.cat(out.logits).float()

    def _model(self, adapter: str | None) -> torch.nn.Module:
        if adapter not in self._models:
            model = _load(self._base, self._dtype)
            num_rows = num_rows_of(None if adapter is None else self._adapters[adapter])
            if num_rows != VOCABULARY:
                with _quiet():
                    model.resize_token_embeddings(num_rows)
            with _quiet():
                adapted = model if adapter is None else PeftModel.from_pretrained(model, self._adapters[adapter])
            if _is_activated(adapted):
                for layer in adapted.modules():
                    if isinstance(layer, LoraLinear):
                        _as_one_sequence(layer)
            self._models[adapter] = adapted.eval()
        return self._models[adapter]
