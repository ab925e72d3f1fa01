"""LoRA on routers of experts, in the two forms in which peft saves it. Pure.

Of today: `target_parameters` names the router's weight (`mlp.gate.weight`). From before transformers made routers modules of
their own: they were linear layers then, which `target_modules` names (`gate`), and Mixtral's had another name
(`block_sparse_moe.gate`). peft reads the second form as the first.
"""

from collections.abc import Iterable, Sequence

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.experts import is_targeted, renamed
from lorafleet_inference.adapters.files import CONFIG
from lorafleet_inference.adapters.peft_config import PeftConfig, Targets
from lorafleet_inference.adapters.sites import site_of
from lorafleet_inference.adapters.tensors import ModuleTensors
from lorafleet_inference.adapters.types import LoraSite
from lorafleet_inference.engine.messages import ModuleFacts, ModuleKind
from lorafleet_inference.errors import AdapterError


def take_routers(
    lora: Sequence[ModuleTensors],
    facts: Iterable[ModuleFacts],
    config: PeftConfig,
    targets: Targets,
    *,
    max_rank: int,
) -> tuple[list[LoraSite], list[ModuleTensors]]:
    """Return what changes routers, and the modules that are left.

    Raises:
        AdapterError: ARTIFACT_INVALID, BASE_MODEL_MISMATCH, UNSUPPORTED_ADAPTER, RANK_TOO_HIGH; names the tensor.
    """
    routers = {one.name: one for one in facts if one.kind is ModuleKind.ROUTER}
    sites: dict[str, LoraSite] = {}
    rest: list[ModuleTensors] = []
    for tensors in lora:
        router = routers.get(tensors.name) or routers.get(renamed(tensors.name))
        if router is None:
            rest.append(tensors)
            continue
        if router.name in sites:
            other = sites[router.name].a_key
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensors {other} and {tensors.key} are of the same module")
        rank, scale = _rank_and_scale(tensors, router.name, config, targets)
        sites[router.name] = site_of(router, tensors, config, rank, scale, max_rank=max_rank)
    return list(sites.values()), rest


def _rank_and_scale(tensors: ModuleTensors, name: str, config: PeftConfig, targets: Targets) -> tuple[int, float]:
    parameter = f"{name}.weight"
    if is_targeted(parameter, config):
        return targets.rank(parameter), targets.scale(parameter)
    if not any(targets.include(one, is_adaptable=True) for one in (tensors.name, name)):
        raise AdapterError(
            Reason.ARTIFACT_INVALID,
            f"tensor {tensors.key}: {CONFIG} does not target {name} (target_modules, target_parameters, exclude_modules, "
            "layers_to_transform), so PEFT would pass it over",
        )
    meant = {(targets.rank(one), targets.scale(one)) for one in (tensors.name, name, parameter)}
    if len(meant) > 1:
        raise AdapterError(
            Reason.UNSUPPORTED_ADAPTER,
            f"tensor {tensors.key}: rank_pattern or alpha_pattern names the router {tensors.name}, and PEFT looks for "
            f"{parameter} there since transformers 5",
        )
    return meant.pop()
