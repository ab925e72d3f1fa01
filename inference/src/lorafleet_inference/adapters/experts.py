"""LoRA on fused experts, in the two forms in which peft saves it. Pure.

Stacked (`target_parameters`): peft wraps the experts module once for each targeted weight, in the order in which the
module declares them, so the first one's tensors have one `base_layer` more in their names than the next one's:
`M.base_layer.lora_A.weight` is of gate_up_proj and `M.lora_A.weight` of down_proj, where both are targeted.

Apart (`target_modules`, saved before transformers fused experts): `M.3.gate_proj.lora_A.weight`. peft's conversion fuses
the gate and the up map of an expert into one of twice the rank and twice the alpha.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.peft_config import PeftConfig, Targets
from lorafleet_inference.adapters.tensors import ModuleTensors, Part
from lorafleet_inference.adapters.types import ExpertSite, ExpertTensors
from lorafleet_inference.engine.messages import ExpertsFacts
from lorafleet_inference.errors import AdapterError

UP, DOWN = "gate_up_proj", "down_proj"
_PLACE: Mapping[str, tuple[str, int | None]] = {
    "w1": (UP, 0), "w3": (UP, 1), "w2": (DOWN, None),
    "gate_proj": (UP, 0), "up_proj": (UP, 1), "down_proj": (DOWN, None),
}  # fmt: skip
"""Old name of a map in an expert -> fused weight, and which half of it."""
_APART = re.compile(r"^(?P<module>.+\.experts)\.(?P<expert>\d+)\.(?P<map>w1|w2|w3|gate_proj|up_proj|down_proj)$")
_WRAPPED = re.compile(r"^(?P<module>.+?)(?P<wraps>(?:\.base_layer)*)$")


def renamed(name: str) -> str:
    """Return a module's name as it is today: Mixtral's `block_sparse_moe` is `mlp` now."""
    return name.replace(".block_sparse_moe.", ".mlp.")


def take_experts(
    found: Sequence[ModuleTensors],
    facts: Iterable[ExpertsFacts],
    config: PeftConfig,
    targets: Targets,
    *,
    max_rank: int,
) -> tuple[tuple[ExpertSite, ...], list[ModuleTensors]]:
    """Return what changes experts, and the modules that are left.

    Raises:
        AdapterError: BASE_MODEL_MISMATCH, ARTIFACT_INVALID, UNSUPPORTED_ADAPTER, RANK_TOO_HIGH; names the tensor.
    """
    experts = {one.name: one for one in facts}
    stacked: dict[str, dict[int, ModuleTensors]] = {}
    apart: dict[str, list[tuple[int, str, ModuleTensors]]] = {}
    rest: list[ModuleTensors] = []
    for tensors in found:
        match = _APART.match(renamed(tensors.name))
        wrapped = _WRAPPED.match(tensors.name)
        if match is not None and match["module"] in experts:
            apart.setdefault(match["module"], []).append((int(match["expert"]), match["map"], tensors))
        elif wrapped is not None and wrapped["module"] in experts:
            stacked.setdefault(wrapped["module"], {})[wrapped["wraps"].count("base_layer")] = tensors
        else:
            rest.append(tensors)
    sites = [site for name, levels in stacked.items() for site in _stacked(experts[name], levels, config, targets)]
    sites += [site for name, maps in apart.items() for site in _apart(experts[name], maps, config)]
    if apart:
        _check_apart(config, rest)
    for site in sites:
        if site.rank > max_rank:
            raise AdapterError(
                Reason.RANK_TOO_HIGH, f"{site.module} has rank {site.rank}; this base serves up to {max_rank}"
            )
    return tuple(sites), rest


def _stacked(
    facts: ExpertsFacts, levels: Mapping[int, ModuleTensors], config: PeftConfig, targets: Targets
) -> list[ExpertSite]:
    names = [name for name, _, _ in facts.parameters if is_targeted(f"{facts.name}.{name}", config)]
    if sorted(levels) != list(range(len(names))):
        key = next(iter(levels.values())).key
        raise AdapterError(
            Reason.ARTIFACT_INVALID, f"tensor {key}: target_parameters means {len(names)} weights of {facts.name}"
        )
    sites = []
    for level, name in enumerate(reversed(names)):
        num_in, num_out = next((num_in, num_out) for one, num_in, num_out in facts.parameters if one == name)
        full = f"{facts.name}.{name}"
        rank = targets.rank(full)
        a, b = _pair(levels[level], (facts.num_experts * rank, num_in), (num_out, rank * facts.num_experts))
        sites.append(ExpertSite(facts.name, name, rank, targets.scale(full), (ExpertTensors(a, b, None),)))
    return sites


def is_targeted(parameter: str, config: PeftConfig) -> bool:
    """Whether `target_parameters` names a parameter."""
    wanted = config.target_parameters or []
    return any(parameter == one or parameter.endswith(f".{one}") for one in wanted)


def _apart(facts: ExpertsFacts, maps: Sequence[tuple[int, str, ModuleTensors]], config: PeftConfig) -> list[ExpertSite]:
    by_weight: dict[str, list[tuple[int, int | None, ModuleTensors]]] = {}
    for expert, name, tensors in maps:
        weight, part = _PLACE[name]
        by_weight.setdefault(weight, []).append((expert, part, tensors))
    sites = []
    for weight, entries in sorted(by_weight.items()):
        num_parts = 2 if weight == UP else 1
        num_in, num_out = next((num_in, num_out) for one, num_in, num_out in facts.parameters if one == weight)
        if len(entries) != facts.num_experts * num_parts or any(e >= facts.num_experts for e, _, _ in entries):
            raise AdapterError(
                Reason.ARTIFACT_INVALID,
                f"tensor {entries[0][2].key}: {facts.name} has {facts.num_experts} experts, and all of them have to be "
                "adapted, gate and up together",
            )
        shapes = ((config.r, num_in), (num_out // num_parts, config.r))
        each = tuple(ExpertTensors(*_pair(one, *shapes), expert, part) for expert, part, one in entries)
        rank = config.r * num_parts
        alpha = config.lora_alpha * num_parts
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        sites.append(ExpertSite(facts.name, weight, rank, scale, each))
    return sites


def _check_apart(config: PeftConfig, rest: Sequence[ModuleTensors]) -> None:
    """Refuse what peft's conversion of old files would do differently from what the file says."""
    for field in ("rank_pattern", "alpha_pattern"):
        if getattr(config, field):
            raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"{field} together with experts that were saved one by one")
    for tensors in rest:
        if tensors.name.rsplit(".", 1)[-1] in _PLACE:
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER,
                f"tensor {tensors.key} of a dense layer beside experts that were saved one by one",
            )


def _pair(tensors: ModuleTensors, a_shape: tuple[int, int], b_shape: tuple[int, int]) -> tuple[str, str]:
    """Return the names of A and B, whose shapes have to be these."""
    for part, shape in ((Part.A, a_shape), (Part.B, b_shape)):
        if part not in tensors.parts:
            raise AdapterError(
                Reason.ARTIFACT_INVALID, f"tensor {part} of {tensors.name} is missing beside {tensors.key}"
            )
        tensor = tensors.parts[part]
        if tensor.facts.shape != shape:
            raise AdapterError(
                Reason.BASE_MODEL_MISMATCH,
                f"tensor {tensor.key} has shape {list(tensor.facts.shape)}; the base and adapter_config.json need {list(shape)}",
            )
    if len(tensors.parts) > 2:
        raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"tensor {tensors.key} has more than A and B, on experts")
    return tensors.parts[Part.A].key, tensors.parts[Part.B].key
