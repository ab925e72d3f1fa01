"""What is to be computed for the LoRA tensors of one module. Pure."""

from collections.abc import Sequence
from typing import NoReturn

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import CONFIG
from lorafleet_inference.adapters.peft_config import PeftConfig
from lorafleet_inference.adapters.tensors import ModuleTensors, Part, Tensor
from lorafleet_inference.adapters.types import LoraSite
from lorafleet_inference.engine.messages import ModuleFacts, ModuleKind
from lorafleet_inference.errors import AdapterError


def site_of(
    module: ModuleFacts, tensors: ModuleTensors, config: PeftConfig, rank: int, scale: float, *, max_rank: int
) -> LoraSite:
    """Return what is to be computed for the LoRA tensors of a module.

    Raises:
        AdapterError: ARTIFACT_INVALID, BASE_MODEL_MISMATCH, RANK_TOO_HIGH; names the tensor.
    """
    is_embedding = module.kind is ModuleKind.EMBEDDING
    wanted = {Part.EMBEDDING_A, Part.EMBEDDING_B} if is_embedding else {Part.A, Part.B}
    wanted |= {Part.MAGNITUDE} if config.use_dora else set()
    wanted |= {Part.B_BIAS} if config.lora_bias else set()
    _check_parts(tensors, wanted)
    a = tensors.parts[Part.EMBEDDING_A if is_embedding else Part.A]
    b = tensors.parts[Part.EMBEDDING_B if is_embedding else Part.B]
    for tensor in (a, b):
        if len(tensor.facts.shape) != 2:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {tensor.key} has shape {list(tensor.facts.shape)}")
    if a.facts.shape[1] != module.in_features:
        mismatch(a, (rank, module.in_features))
    if b.facts.shape[0] != module.out_features:
        mismatch(b, (module.out_features, rank))
    if not a.facts.shape[0] == b.facts.shape[1] == rank:
        raise AdapterError(
            Reason.ARTIFACT_INVALID,
            f"tensors {a.key} {list(a.facts.shape)} and {b.key} {list(b.facts.shape)} are not of rank {rank}, "
            f"as {CONFIG} says (r, rank_pattern)",
        )
    for part in (Part.MAGNITUDE, Part.B_BIAS):
        if part in tensors.parts and tensors.parts[part].facts.shape != (module.out_features,):
            mismatch(tensors.parts[part], (module.out_features,))
    if rank > max_rank:
        raise AdapterError(Reason.RANK_TOO_HIGH, f"{module.name} has rank {rank}; this base serves up to {max_rank}")
    return LoraSite(
        module.name,
        rank,
        scale,
        a.key,
        b.key,
        magnitude_key=tensors.key_of(Part.MAGNITUDE),
        b_bias_key=tensors.key_of(Part.B_BIAS),
    )


def _check_parts(tensors: ModuleTensors, wanted: set[Part]) -> None:
    for part in sorted(wanted - tensors.parts.keys()):
        raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {part} of {tensors.name} is missing beside {tensors.key}")
    for part in sorted(tensors.parts.keys() - wanted - {Part.BIAS, Part.BASE_COPY}):
        raise AdapterError(
            Reason.ARTIFACT_INVALID,
            f"tensor {tensors.parts[part].key}: {CONFIG} does not speak of it (use_dora, lora_bias, modules_to_save), "
            "so PEFT would pass it over",
        )


def mismatch(tensor: Tensor, expected: Sequence[int]) -> NoReturn:
    """Refuse a tensor for its shape."""
    raise AdapterError(
        Reason.BASE_MODEL_MISMATCH,
        f"tensor {tensor.key} has shape {list(tensor.facts.shape)}; the base needs {list(expected)}",
    )
