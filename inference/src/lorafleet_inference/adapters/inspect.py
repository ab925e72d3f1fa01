"""Whether the pod takes an adapter, and what is to be computed for it. Pure over config, headers and facts of the base.

Promises: what is accepted is computed exactly as PEFT computes it; anything else is refused with the field or tensor named.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.activated import check_activated
from lorafleet_inference.adapters.digest import UNLIMITED_BYTES, list_folder
from lorafleet_inference.adapters.experts import take_experts
from lorafleet_inference.adapters.files import CONFIG, WEIGHTS, files_of_adapter
from lorafleet_inference.adapters.headers import read_header
from lorafleet_inference.adapters.peft_config import ZERO_WHERE_MISSING, PeftConfig, Targets, read_config
from lorafleet_inference.adapters.peft_defaults import HEADS
from lorafleet_inference.adapters.routers import take_routers
from lorafleet_inference.adapters.rows import take_rows
from lorafleet_inference.adapters.sites import mismatch, site_of
from lorafleet_inference.adapters.tensors import ModuleTensors, Part, by_module
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite, OwnParameter
from lorafleet_inference.config import UnknownFields
from lorafleet_inference.engine.messages import ModelFacts, ModuleFacts, ModuleKind, WholeFacts
from lorafleet_inference.errors import AdapterError

FLOATS = frozenset({"F32", "F16", "BF16", "F64"})


def inspect_adapter(
    path: Path, model: ModelFacts, max_rank: int, *, unknown_config_fields: UnknownFields = "refuse"
) -> AdapterPlan:
    """Return what is to be computed for the adapter in a folder.

    Raises:
        AdapterError: it is not taken; its reason is one of ARTIFACT_NOT_FOUND, ARTIFACT_INVALID, UNSAFE_FORMAT,
            UNSUPPORTED_ADAPTER, BASE_MODEL_MISMATCH, RANK_TOO_HIGH.
    """
    files_of_adapter(list_folder(path), where=str(path), max_bytes=UNLIMITED_BYTES)
    config = read_config(path, ignore_unknown=unknown_config_fields == "ignore").for_base(model.model_type)
    targets = Targets(config)
    found = sorted(by_module(read_header(path / WEIGHTS)).values(), key=lambda one: one.name)
    for tensors in found:
        _check_dtypes(tensors)
    whole = {one.name: one for one in model.whole_modules}
    found = [tensors for tensors in found if tensors.is_lora or not _is_head(tensors.name, whole)]
    taken = take_rows(found, model, config)
    model, whole = taken.facts, {one.name: one for one in taken.facts.whole_modules}
    experts, rest = take_experts(taken.rest, model.experts, config, targets, max_rank=max_rank)
    _check_wrapped(rest)
    lora = [tensors for tensors in rest if tensors.is_lora]
    routers, lora = take_routers(lora, model.side_modules, config, targets, max_rank=max_rank)
    inner = {module.name: module for module in model.modules}
    side = {module.name: module for module in model.side_modules}
    _check_modules(lora, inner, side, config, targets)
    _check_targets(config, {tensors.name for tensors in lora}, inner, targets)
    sites = _sites(lora, {**side, **inner}, config, targets, max_rank=max_rank)
    sites += routers
    own = _own_parameters(rest, whole, lora={one.name for one in lora})
    facts = AdapterFacts(
        rank=max([0, *(site.rank for site in sites), *(site.rank for site in experts)]),
        size_bytes=(path / WEIGHTS).stat().st_size,
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in (tensors.name for tensors in found)}),
        base_model_name=config.base_model_name_or_path,
        invocation_tokens=config.alora_invocation_tokens or None,
    )
    plan = AdapterPlan(
        path,
        tuple(site for site in sites if site.module in inner),
        (WEIGHTS,),
        facts,
        taken.vocabulary,
        side_sites=tuple(site for site in sites if site.module in side),
        own=(*taken.own, *own),
        num_rows=taken.num_rows,
        own_rows=taken.rows,
        experts=experts,
        base_copies=_base_copies(rest, whole, lora={one.name for one in lora}),
    )
    if plan.invocation:
        check_activated(plan, config, heads={name for name, one in side.items() if one.kind is ModuleKind.LINEAR})
    return plan


def _sites(
    lora: Sequence[ModuleTensors],
    modules: Mapping[str, ModuleFacts],
    config: PeftConfig,
    targets: Targets,
    *,
    max_rank: int,
) -> list[LoraSite]:
    """Return where an adapter has LoRA, whose modules are known to be there."""
    return [
        site_of(modules[one.name], one, config, targets.rank(one.name), targets.scale(one.name), max_rank=max_rank)
        for one in lora
    ]


def _is_head(name: str, whole: Mapping[str, WholeFacts]) -> bool:
    """Whether a module lies beside the language model: PEFT passes over its tensors."""
    root = name.split(".", 1)[0]
    return root in HEADS and not any(one == root or one.startswith(f"{root}.") for one in whole)


def _check_wrapped(found: Sequence[ModuleTensors]) -> None:
    """What peft writes of a vocabulary that was resized is of embedding and head only."""
    for tensors in found:
        strange = tensors.parts.keys() & {Part.ORIGINAL, Part.ORIGINAL_BIAS, Part.SAVED, Part.SAVED_BIAS, Part.TOKENS}
        for part in sorted(strange):
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER,
                f"tensor {tensors.parts[part].key} is of no kind that is computed on {tensors.name}",
            )


def _check_dtypes(tensors: ModuleTensors) -> None:
    for tensor in tensors.parts.values():
        if tensor.facts.dtype not in FLOATS:
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER,
                f"tensor {tensor.key} has dtype {tensor.facts.dtype}; float32, float16, bfloat16 are taken",
            )


def _check_modules(
    lora: Sequence[ModuleTensors],
    inner: Mapping[str, ModuleFacts],
    side: Mapping[str, ModuleFacts],
    config: PeftConfig,
    targets: Targets,
) -> None:
    for tensors in lora:
        if tensors.name not in inner and tensors.name not in side:
            if config.target_parameters:
                raise AdapterError(
                    Reason.UNSUPPORTED_ADAPTER,
                    f"tensor {tensors.key}: of target_parameters, only the weights of routers and of fused experts are computed",
                )
            hint = (
                "; it was trained on the model without its head (AutoModel)" if f"model.{tensors.name}" in inner else ""
            )
            raise AdapterError(
                Reason.BASE_MODEL_MISMATCH,
                f"tensor {tensors.key}: the base has no module {tensors.name} to adapt{hint}",
            )
        if not targets.include(tensors.name, is_adaptable=tensors.name in inner):
            raise AdapterError(
                Reason.ARTIFACT_INVALID,
                f"tensor {tensors.key}: {CONFIG} does not target {tensors.name} (target_modules, exclude_modules, "
                "layers_to_transform), so PEFT would pass it over",
            )


def _check_targets(config: PeftConfig, names: set[str], modules: Mapping[str, ModuleFacts], targets: Targets) -> None:
    """A targeted module without tensors stays as its initialisation left it: unchanged, or unknown to all but PEFT."""
    if config.init_lora_weights in ZERO_WHERE_MISSING and not config.use_dora:
        return
    for name in modules:
        if name not in names and targets.include(name, is_adaptable=True):
            why = f"init_lora_weights={config.init_lora_weights!r} is not zero"
            if config.use_dora:
                why = "use_dora needs the magnitude of each"
            raise AdapterError(Reason.ARTIFACT_INVALID, f"{name} is targeted and has no tensors, and {why}")


def _own_parameters(
    found: Sequence[ModuleTensors], whole: Mapping[str, WholeFacts], *, lora: set[str]
) -> tuple[OwnParameter, ...]:
    """Parameters that replace the base's: PEFT puts every one that it finds into its place, whatever the config says."""
    own = []
    for tensors in found:
        for part in (Part.WEIGHT, Part.BIAS):
            if part not in tensors.parts:
                continue
            tensor = tensors.parts[part]
            shapes = dict(whole[tensors.name].parameters) if tensors.name in whole else {}
            if part not in shapes:
                raise AdapterError(
                    Reason.BASE_MODEL_MISMATCH if tensors.name not in whole else Reason.ARTIFACT_INVALID,
                    f"tensor {tensor.key}: the base has no such parameter that an adapter may replace "
                    "(modules_to_save, bias)",
                )
            if shapes[part] != tensor.facts.shape:
                mismatch(tensor, shapes[part])
            assert part is Part.BIAS or tensors.name not in lora, "_check_parts refused it"
            own.append(OwnParameter(tensors.name, part.value, tensor.key))
    return tuple(own)


def _base_copies(
    found: Sequence[ModuleTensors], whole: Mapping[str, WholeFacts], *, lora: set[str]
) -> tuple[OwnParameter, ...]:
    """Weights of the base under LoRA that the file repeats. Their values are compared where the base's weights are."""
    copies = []
    for tensors in found:
        copied = tensors.parts.get(Part.BASE_COPY)
        if copied is None:
            continue
        if tensors.name not in lora or tensors.name not in whole:
            raise AdapterError(
                Reason.ARTIFACT_INVALID, f"tensor {copied.key} is of a module that the adapter does not change"
            )
        wanted = dict(whole[tensors.name].parameters)["weight"]
        if copied.facts.shape != wanted:
            mismatch(copied, wanted)
        copies.append(OwnParameter(tensors.name, "weight", copied.key))
    return tuple(copies)
