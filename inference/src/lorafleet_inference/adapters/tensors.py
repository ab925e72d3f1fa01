"""What the tensors of an adapter's file are, by their names. Pure.

peft writes `base_model.model.M.lora_A.weight`; older ones kept the adapter's name: `….lora_A.default.weight`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import WEIGHTS
from lorafleet_inference.adapters.headers import TensorFacts
from lorafleet_inference.errors import AdapterError


class Part(StrEnum):
    """What a tensor is to its module."""

    A = "lora_A"
    B = "lora_B"
    B_BIAS = "lora_B.bias"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    MAGNITUDE = "lora_magnitude_vector"
    WEIGHT = "weight"
    BIAS = "bias"
    BASE_COPY = "base_layer.weight"
    """A copy of the base's own weight, which peft writes beside LoRA on embeddings."""
    TOKENS = "trainable_tokens_delta"
    """Rows of an embedding or a head, those of `trainable_token_indices`."""
    ORIGINAL = "original_module.weight"
    """The base's own weight beside a saved module's, of a vocabulary that was resized."""
    ORIGINAL_BIAS = "original_module.bias"
    SAVED = "modules_to_save.weight"
    """A saved module's weight once more, which peft writes with ORIGINAL and does not read."""
    SAVED_BIAS = "modules_to_save.bias"


_PREFIX = r"^(?:base_model\.model\.)?(?P<module>.+)"
_FORMS: tuple[tuple[re.Pattern[str], Part], ...] = tuple(
    (re.compile(_PREFIX + form), part)
    for form, part in (
        (r"\.lora_A(?:\.[^.]+)?\.weight$", Part.A),
        (r"\.lora_B(?:\.[^.]+)?\.weight$", Part.B),
        (r"\.lora_B(?:\.[^.]+)?\.bias$", Part.B_BIAS),
        (r"\.lora_embedding_A(?:\.[^.]+)?$", Part.EMBEDDING_A),
        (r"\.lora_embedding_B(?:\.[^.]+)?$", Part.EMBEDDING_B),
        (r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?$", Part.MAGNITUDE),
        (r"\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?$", Part.TOKENS),
        (r"\.original_module\.weight$", Part.ORIGINAL),
        (r"\.original_module\.bias$", Part.ORIGINAL_BIAS),
        (r"\.modules_to_save(?:\.[^.]+)?\.weight$", Part.SAVED),
        (r"\.modules_to_save(?:\.[^.]+)?\.bias$", Part.SAVED_BIAS),
        (r"\.token_adapter\.base_layer\.bias$", Part.BIAS),
        (r"\.token_adapter\.base_layer\.weight$", Part.BASE_COPY),
        (r"\.base_layer\.bias$", Part.BIAS),
        (r"\.base_layer\.weight$", Part.BASE_COPY),
        (r"\.weight$", Part.WEIGHT),
        (r"\.bias$", Part.BIAS),
    )
)
LORA = frozenset({Part.A, Part.B, Part.B_BIAS, Part.EMBEDDING_A, Part.EMBEDDING_B, Part.MAGNITUDE})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file."""

    key: str
    facts: TensorFacts


@dataclass(slots=True)
class ModuleTensors:
    """The tensors of one module."""

    name: str
    parts: dict[Part, Tensor] = field(default_factory=dict)

    @property
    def is_lora(self) -> bool:
        """Whether LoRA changes the module; else its own parameters replace the base's."""
        return not LORA.isdisjoint(self.parts)

    @property
    def key(self) -> str:
        """The name of one of its tensors, for messages."""
        return next(iter(self.parts.values())).key

    def key_of(self, part: Part) -> str | None:
        """Return the name of a tensor in the file."""
        return self.parts[part].key if part in self.parts else None


def by_module(header: Mapping[str, TensorFacts]) -> dict[str, ModuleTensors]:
    """Sort the tensors of a file.

    Raises:
        AdapterError: ARTIFACT_INVALID two are the same, or there is none; UNSUPPORTED_ADAPTER one is nothing we know.
    """
    found: dict[str, ModuleTensors] = {}
    for key, facts in header.items():
        match, part = next(((m, part) for form, part in _FORMS if (m := form.match(key))), (None, None))
        if match is None or part is None:
            raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"tensor {key} is of no kind that is computed")
        tensors = found.setdefault(match["module"], ModuleTensors(match["module"]))
        if part in tensors.parts:
            other = tensors.parts[part].key
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensors {other} and {key} are of the same module")
        tensors.parts[part] = Tensor(key, facts)
    if not found:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{WEIGHTS} has no tensor of an adapter")
    return found
