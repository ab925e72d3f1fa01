"""adapter_config.json as PEFT understands it: which modules it means, with which rank and scale.

Follows peft 0.21 (`check_target_module_exists`, `get_pattern_key`, `LoraLayer.update_layer`). What is not computed is refused by name;
REFUSED is the one table of it.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import CONFIG, MAX_CONFIG_BYTES
from lorafleet_inference.adapters.headers import what_it_is_instead
from lorafleet_inference.adapters.patterns import Patience, Pattern
from lorafleet_inference.adapters.peft_defaults import DEFAULT_TARGETS, TASK_TYPES
from lorafleet_inference.errors import AdapterError

ALL_LINEAR = "all-linear"
MAX_RANK = 1 << 16
"""Above the width of any layer; which ranks a pod serves is its `--max-rank`."""
MAX_ALPHA = 1e6
"""Above what anybody trains with; the scaled weights have to be finite besides."""
MAX_INVOCATION_TOKENS = 256
"""Those of a role and a few words in use."""
TokenId = Annotated[int, Field(ge=0)]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Field(ge=-MAX_ALPHA, le=MAX_ALPHA, allow_inf_nan=False)]


class PeftConfig(BaseModel):
    """The fields that decide what is computed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: str
    r: Rank = 8
    lora_alpha: Alpha = 8
    use_rslora: bool = False
    target_modules: str | list[str] | None = None
    target_parameters: list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    init_lora_weights: bool | str | None = True
    use_dora: bool | None = False
    lora_bias: bool | None = False
    modules_to_save: list[str] | None = None
    """Decides whether a weight in the file is the module's own or is written into the base's, which others may share."""
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    base_model_name_or_path: str | None = None
    task_type: str | None = None
    """Decides whether PEFT looks for `alora_invocation_tokens`."""
    alora_invocation_tokens: Annotated[list[TokenId], Field(max_length=MAX_INVOCATION_TOKENS)] | None = None

    def for_base(self, model_type: str) -> "PeftConfig":
        """Return the config with what `target_modules` means on a base where it says nothing.

        Raises:
            AdapterError: ARTIFACT_INVALID: PEFT has no default for such a base either.
        """
        if self.target_modules is not None:
            return self
        targets = DEFAULT_TARGETS.get(model_type)
        if targets is None and not self.target_parameters:
            raise AdapterError(
                Reason.ARTIFACT_INVALID,
                f"{CONFIG} has no target_modules, and PEFT knows no default for a base of the type {model_type}",
            )
        return self if targets is None else self.model_copy(update={"target_modules": list(targets)})


@dataclass(frozen=True, slots=True)
class _Neutral:
    """A field that is accepted only where it changes nothing."""

    is_neutral: Callable[[Any], bool]
    meaning: str


def _empty(value: Any) -> bool:
    return not value


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _keeps_the_base(value: Any) -> bool:
    return not (isinstance(value, str) and re.match(r"(?i)(pissa|olora|loftq|corda)", value))


REFUSED: Mapping[str, _Neutral] = {
    "peft_type": _Neutral(_one_of("LORA"), "is another kind of adapter than LoRA"),
    "task_type": _Neutral(_one_of(*TASK_TYPES), "is for another kind of model than a decoder"),
    "auto_mapping": _Neutral(lambda _: True, ""),
    "ensure_weight_tying": _Neutral(_empty, "ties the head's and the embedding's changes"),
    "layer_replication": _Neutral(_empty, "repeats layers of the base"),
    "megatron_config": _Neutral(_empty, "is for Megatron's layers"),
    "use_qalora": _Neutral(_empty, "pools the input (QALoRA)"),
    "use_bdlora": _Neutral(_empty, "uses block-diagonal matrices"),
    "arrow_config": _Neutral(_empty, "routes between adapters (Arrow)"),
    "kasa_config": _Neutral(_empty, "changes the base weights (KaSA)"),
    "velora_config": _Neutral(_empty, "uses VeLoRA's layers"),
    "monteclora_config": _Neutral(_empty, "samples its weights (MonteCLoRA)"),
    "init_lora_weights": _Neutral(
        _keeps_the_base, "subtracts from the base weights when PEFT loads it; save it converted to plain LoRA"
    ),
}
"""Fields that would change the output and are not computed."""
WITHOUT_EFFECT = frozenset(
    {"peft_version", "revision", "inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config",
     "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "bias"}
)  # fmt: skip
"""Fields that matter in training only, or only together with a refused one, or whose tensors say all (bias)."""
ZERO_WHERE_MISSING = frozenset({True, None, "gaussian", "eva", "mica", "lora_ga"})
"""Initialisations after which a targeted module without tensors changes nothing."""


def read_config(path: Path, *, ignore_unknown: bool = False) -> PeftConfig:
    """Return the config of an adapter's folder; `ignore_unknown`: fields that PEFT of today does not know change nothing.

    Raises:
        AdapterError: ARTIFACT_INVALID it cannot be understood; UNSUPPORTED_ADAPTER a field that is not computed, by name.
    """
    try:
        with (path / CONFIG).open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise AdapterError(Reason.ARTIFACT_NOT_FOUND, f"{path} has no {CONFIG}") from error
    except OSError as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{CONFIG} cannot be read: {error.strerror}") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{CONFIG} has more than {MAX_CONFIG_BYTES} bytes")
    try:
        fields = _Fields.model_validate_json(text)
        _refuse(fields.model_extra or {}, ignore_unknown=ignore_unknown)
        return PeftConfig.model_validate(fields.model_extra)
    except ValidationError as error:
        instead = what_it_is_instead(text)
        if instead is not None:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"{CONFIG} is {instead}") from None
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{CONFIG}: {where}: {first['msg']}".replace(": :", ":")) from None


class _Fields(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow", frozen=True)


def _refuse(fields: Mapping[str, Any], *, ignore_unknown: bool) -> None:
    for name, value in fields.items():
        rule = REFUSED.get(name)
        if rule is not None and not rule.is_neutral(value):
            raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"{CONFIG}: {name}={_shown(value)} {rule.meaning}")
        known = rule is not None or name in WITHOUT_EFFECT or name in PeftConfig.model_fields
        if not known and value and not ignore_unknown:
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER,
                f"{CONFIG}: {name}={_shown(value)} is a field that nobody here knows; where such fields change nothing, "
                "the base may be told to ignore them (--unknown-config-fields)",
            )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


class Targets:
    """Which modules a config means, and with which rank and scale; names are those of the base's `named_modules()`."""

    def __init__(self, config: PeftConfig) -> None:
        self._config = config
        patience = Patience()

        def compiled(field: str, pattern: str) -> Pattern:
            return patience.compile(f"{CONFIG}: {field}", pattern)

        def names(field: str, value: str | list[str] | None) -> Pattern | list[str] | None:
            return compiled(field, value) if isinstance(value, str) and value else value or None

        def by_pattern(field: str, values: Mapping[str, Any] | None) -> list[tuple[Pattern, Any]]:
            return [(compiled(field, rf"(.*\.)?({pattern})$"), value) for pattern, value in (values or {}).items()]

        self._targets = names("target_modules", config.target_modules)
        self._excluded = names("exclude_modules", config.exclude_modules)
        self._ranks = by_pattern("rank_pattern", config.rank_pattern)
        self._alphas = by_pattern("alpha_pattern", config.alpha_pattern)
        layers = config.layers_pattern or []
        self._layers = [
            compiled("layers_pattern", rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.")
            for pattern in ([layers] if isinstance(layers, str) else layers)
        ] or [compiled("layers_pattern", r".*?\.[^.]*\.(?P<index>\d+)\.")]

    def include(self, module: str, *, is_adaptable: bool) -> bool:
        """Whether the config targets a module; `is_adaptable`: a linear layer that is not the output head."""
        if self._excluded is not None and _matches(self._excluded, module):
            return False
        if isinstance(self._config.target_modules, str) and self._config.target_modules.lower() == ALL_LINEAR:
            return is_adaptable
        if self._targets is None or not _matches(self._targets, module):
            return False
        if isinstance(self._targets, Pattern) or module in self._targets:
            return True
        return self._in_layers(module)

    def rank(self, module: str) -> int:
        """Return the rank of a module."""
        return next((rank for pattern, rank in self._ranks if pattern.match(module)), self._config.r)

    def scale(self, module: str) -> float:
        """Return alpha over rank, or over its root with rsLoRA."""
        alpha = next((alpha for pattern, alpha in self._alphas if pattern.match(module)), self._config.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self._config.use_rslora else rank)

    def _in_layers(self, module: str) -> bool:
        wanted = self._config.layers_to_transform
        if wanted is None or wanted == []:
            return True
        found = next((match for pattern in self._layers if (match := pattern.match(module))), None)
        if found is None:
            return False
        index = int(found["index"])
        return index == wanted if isinstance(wanted, int) else index in wanted


def _matches(pattern: Pattern | list[str], module: str) -> bool:
    if isinstance(pattern, Pattern):
        return pattern.fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in pattern)
