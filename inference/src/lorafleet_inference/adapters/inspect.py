"""Whether the pod takes an adapter, and what is to be computed for it. Pure over config, headers and facts of the base.

Promises: what is accepted is computed exactly as PEFT computes it; anything else is refused with the field or tensor named.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.digest import UNLIMITED_BYTES, list_folder
from lorafleet_inference.adapters.files import CONFIG, WEIGHTS, files_of_adapter
from lorafleet_inference.adapters.headers import TensorFacts, read_header
from lorafleet_inference.adapters.peft_config import ZERO_WHERE_MISSING, PeftConfig, Targets, read_config
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite
from lorafleet_inference.engine.messages import ModelFacts, ModuleFacts
from lorafleet_inference.errors import AdapterError

FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[^.]+)?\.weight$")
"""peft writes `base_model.model.M.lora_A.weight`; older ones kept the adapter's name: `…lora_A.default.weight`."""
HEAD_AND_EMBEDDINGS = frozenset({"lm_head", "embed_tokens", "embed_out", "wte", "wpe", "word_embeddings", "embed_in"})
Part = Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class _Tensor:
    key: str
    facts: TensorFacts


def inspect_adapter(path: Path, model: ModelFacts, max_rank: int) -> AdapterPlan:
    """Return what is to be computed for the adapter in a folder.

    Raises:
        AdapterError: it is not taken; its reason is one of ARTIFACT_NOT_FOUND, ARTIFACT_INVALID, UNSAFE_FORMAT,
            UNSUPPORTED_ADAPTER, BASE_MODEL_MISMATCH, RANK_TOO_HIGH.
    """
    files_of_adapter(list_folder(path), where=str(path), max_bytes=UNLIMITED_BYTES)
    config = read_config(path)
    targets = Targets(config)
    tensors = _tensors_by_module(read_header(path / WEIGHTS))
    modules = {module.name: module for module in model.modules}
    _check_modules(tensors, modules, targets)
    _check_targets(config, tensors, modules, targets)
    sites = tuple(_site(modules[name], parts, targets, max_rank=max_rank) for name, parts in sorted(tensors.items()))
    facts = AdapterFacts(
        rank=max(site.rank for site in sites),
        size_bytes=(path / WEIGHTS).stat().st_size,
        target_modules=sorted({site.module.rsplit(".", 1)[-1] for site in sites}),
        base_model_name=config.base_model_name_or_path,
    )
    return AdapterPlan(path, sites, (WEIGHTS,), facts)


def _tensors_by_module(header: Mapping[str, TensorFacts]) -> dict[str, dict[Part, _Tensor]]:
    found: dict[str, dict[Part, _Tensor]] = {}
    for key, facts in header.items():
        match = _KEY.match(key)
        if match is None:
            _refuse_tensor(key)
            continue
        part: Part = "A" if match["part"] == "A" else "B"
        parts = found.setdefault(match["module"], {})
        if part in parts:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensors {parts[part].key} and {key} are of the same module")
        parts[part] = _Tensor(key, facts)
    if not found:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{WEIGHTS} has no tensor of a LoRA")
    return found


def _refuse_tensor(key: str) -> None:
    """Refuse a tensor that is no A or B of a linear layer; returns where PEFT passes it over and nothing is lost."""
    if key.endswith(".base_layer.weight"):
        return  # a copy of the base's own weight
    if "lora_magnitude_vector" in key:
        raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"tensor {key} is of a weight-decomposed adapter (use_dora)")
    if "lora_embedding_" in key:
        raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"tensor {key} adapts an embedding (target_modules)")
    if key.endswith(".bias"):
        raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"tensor {key} is a bias (bias, lora_bias)")
    raise AdapterError(
        Reason.UNSUPPORTED_ADAPTER,
        f"tensor {key} is no LoRA matrix: it would replace a weight of the base (modules_to_save, save_embedding_layers)",
    )


def _check_modules(
    tensors: Mapping[str, Mapping[Part, _Tensor]], modules: Mapping[str, ModuleFacts], targets: Targets
) -> None:
    for name, parts in tensors.items():
        key = next(iter(parts.values())).key
        if name not in modules:
            if name.rsplit(".", 1)[-1] in HEAD_AND_EMBEDDINGS:
                raise AdapterError(
                    Reason.UNSUPPORTED_ADAPTER, f"tensor {key} adapts the head or an embedding (target_modules)"
                )
            if ".experts" in name:
                raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"tensor {key} adapts experts (target_parameters)")
            raise AdapterError(Reason.BASE_MODEL_MISMATCH, f"tensor {key}: the base has no module {name}")
        if not targets.include(name, is_adaptable=True):
            raise AdapterError(
                Reason.ARTIFACT_INVALID,
                f"tensor {key}: {CONFIG} does not target {name} (target_modules, exclude_modules, layers_to_transform), "
                "so PEFT would pass it over",
            )
        if len(parts) != 2:
            missing = "B" if "A" in parts else "A"
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor lora_{missing} of {name} is missing beside {key}")


def _check_targets(
    config: PeftConfig,
    tensors: Mapping[str, Mapping[Part, _Tensor]],
    modules: Mapping[str, ModuleFacts],
    targets: Targets,
) -> None:
    """A targeted module without tensors stays as its initialisation left it: unchanged, or unknown to all but PEFT."""
    if config.init_lora_weights in ZERO_WHERE_MISSING:
        return
    for name in modules:
        if name not in tensors and targets.include(name, is_adaptable=True):
            raise AdapterError(
                Reason.ARTIFACT_INVALID,
                f"{name} is targeted and has no tensors, and init_lora_weights={config.init_lora_weights!r} is not zero",
            )


def _site(module: ModuleFacts, parts: Mapping[Part, _Tensor], targets: Targets, *, max_rank: int) -> LoraSite:
    a, b = parts["A"], parts["B"]
    for tensor in (a, b):
        if len(tensor.facts.shape) != 2:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {tensor.key} has shape {list(tensor.facts.shape)}")
        if tensor.facts.dtype not in FLOATS:
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER,
                f"tensor {tensor.key} has dtype {tensor.facts.dtype}; float32, float16, bfloat16 are taken",
            )
    if a.facts.shape[1] != module.in_features:
        _mismatch(a, 1, module.in_features)
    if b.facts.shape[0] != module.out_features:
        _mismatch(b, 0, module.out_features)
    rank = targets.rank(module.name)
    if not a.facts.shape[0] == b.facts.shape[1] == rank:
        raise AdapterError(
            Reason.ARTIFACT_INVALID,
            f"tensors {a.key} {list(a.facts.shape)} and {b.key} {list(b.facts.shape)} are not of rank {rank}, "
            f"as {CONFIG} says (r, rank_pattern)",
        )
    if rank > max_rank:
        raise AdapterError(Reason.RANK_TOO_HIGH, f"{module.name} has rank {rank}; this base serves up to {max_rank}")
    return LoraSite(module.name, rank, targets.scale(module.name), a.key, b.key)


def _mismatch(tensor: _Tensor, axis: int, expected: int) -> None:
    raise AdapterError(
        Reason.BASE_MODEL_MISMATCH,
        f"tensor {tensor.key} has shape {list(tensor.facts.shape)}; the base needs {expected} on axis {axis}",
    )
