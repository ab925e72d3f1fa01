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


def _everywhere(config: Any, layer: int) -> None:  # noqa: ARG001  a layer of most families sees all tokens before
    return None


@dataclass(frozen=True, slots=True)
class Spec:
    """How a family differs from Llama."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Modules of attention that make queries, keys and values; in files, and for adapters."""
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    """Likewise of the gated layers."""
    activation: str = "hidden_act"
    """Field of the config that names the gate's."""
    window: Callable[[Any, int], int | None] = _everywhere
    """(config, layer) -> how many tokens a token of the layer sees; None: all."""
    scaling: Callable[[Any], float] = _of_head
    """Factor of queries times keys."""


SPECS: Mapping[str, Spec] = {
    "LlamaForCausalLM": Spec(),
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
