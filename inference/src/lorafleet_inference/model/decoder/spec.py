"""What the decoder has to know of each family. transformers' code says it in a file a family; here it is what differs.

By transformers' class of the model. A model whose config asks for more than is said here has no decoder of ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lorafleet_inference.kernels.layer_ops import Activation

_ACTIVATIONS = {"silu": Activation.SILU, "swish": Activation.SILU, "gelu_pytorch_tanh": Activation.GELU_TANH}


def _of_head(config: Any) -> float:
    return float(width_of_head(config) ** -0.5)


def _of_scalar(config: Any) -> float:
    return float(config.query_pre_attn_scalar**-0.5)


def _everywhere(config: Any, layer: int) -> int | None:  # noqa: ARG001  all layers alike
    found: int | None = getattr(config, "sliding_window", None)
    return found


def _by_kind(config: Any, layer: int) -> int | None:
    return _everywhere(config, layer) if config.layer_types[layer] == "sliding_attention" else None


def _nowhere(config: Any, layer: int) -> int | None:  # noqa: ARG001
    return None


@dataclass(frozen=True, slots=True)
class Spec:
    """How a family differs from Llama."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Modules of attention that make queries, keys and values; in files, and for adapters."""
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    """Likewise of the gated layers. A layer with experts has those of transformers."""
    activation: str = "hidden_act"
    """Field of the config that names the gate's."""
    window: Callable[[Any, int], int | None] = _nowhere
    """(config, layer) -> how many tokens a token of the layer sees; None: all before it."""
    scaling: Callable[[Any], float] = _of_head
    """Factor of queries times keys."""
    has_head_norms: bool = False
    """Whether each query and key head is normed before it is rotated."""
    has_unit_offset: bool = False
    """Whether weights of norms count from one."""
    has_post_norms: bool = False
    """Whether what comes out of attention and of the gated layers is normed too, before it is added."""
    has_score_cap: bool = False
    """Whether scores of attention are capped (`attn_logit_softcapping`)."""
    has_logit_cap: bool = False
    """Whether logits are (`final_logit_softcapping`)."""
    rotates_by_kind: bool = False
    """Whether layers with a window have other rotary frequencies."""


SPECS: Mapping[str, Spec] = {
    "LlamaForCausalLM": Spec(),
    "MistralForCausalLM": Spec(window=_everywhere),
    "Qwen2ForCausalLM": Spec(window=_by_kind),
    "Qwen3ForCausalLM": Spec(window=_by_kind, has_head_norms=True),
    "Phi3ForCausalLM": Spec(qkv=("qkv_proj",), gate_up=("gate_up_proj",), window=_everywhere),
    "GemmaForCausalLM": Spec(has_unit_offset=True),
    "Gemma2ForCausalLM": Spec(
        activation="hidden_activation",
        window=_by_kind,
        scaling=_of_scalar,
        has_unit_offset=True,
        has_post_norms=True,
        has_score_cap=True,
        has_logit_cap=True,
    ),
    "Gemma3ForCausalLM": Spec(
        activation="hidden_activation",
        window=_by_kind,
        scaling=_of_scalar,
        has_head_norms=True,
        has_unit_offset=True,
        has_post_norms=True,
        has_logit_cap=True,
        rotates_by_kind=True,
    ),
    "MixtralForCausalLM": Spec(window=_everywhere),
    "Qwen3MoeForCausalLM": Spec(window=_everywhere, has_head_norms=True),
}


def width_of_head(config: Any) -> int:
    """Return the elements of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def activation_of(config: Any, spec: Spec) -> Activation | None:
    """Return what the gate goes through; None for what the decoder does not have."""
    return _ACTIVATIONS.get(getattr(config, spec.activation))


def why_not(model: PreTrainedModel) -> str | None:
    """Return why there is no decoder of ours for a model; None: there is one."""
    spec = SPECS.get(type(model).__name__)
    if spec is None:
        return "it has none for this family"
    if activation_of(model.config, spec) is None:
        return f"its {spec.activation} is {getattr(model.config, spec.activation)}"
    return None
