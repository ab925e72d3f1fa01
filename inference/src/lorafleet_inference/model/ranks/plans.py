"""How transformers' own plan of a family splits its modules, for families that our decoder does not compute.

A plan says by module whether outputs or inputs are split. What it has gathered between two modules (`colwise_gather_output`, then
`rowwise_split_input`) is not gathered here: the groups of that axis are known, so the second module gets its part of each. Code that
tells queries from keys by the config's number of heads (`qkv_proj`) cannot be split so.
"""

from collections.abc import Mapping

from transformers import PreTrainedConfig

from lorafleet_inference.model.ranks.axes import Along, Splits

_LAYERS = "layers.*."
_COLUMN = ("colwise", "colwise_gather_output", "packed_colwise")
_ROW = ("rowwise", "rowwise_split_input")
_WHOLE = ("replicated_with_grad_allreduce",)
"""Of modules that see each head for itself."""
_EXPERTS = "moe_tp_experts"
"""Of a module with stacked weights, whose output is to be summed."""
_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("heads",),
    "self_attn.k_proj": ("kv_heads",),
    "self_attn.v_proj": ("kv_heads",),
    "attention.query_key_value": ("heads",),
    "mlp.gate_proj": ("elements",),
    "mlp.up_proj": ("elements",),
    "mlp.gate_up_proj": ("elements", "elements"),
    "mlp.fc1": ("elements",),
    "mlp.c_fc": ("elements",),
    "mlp.dense_h_to_4h": ("elements",),
}
"""By a module's name in its layer: the groups of its outputs. `query_key_value` has queries, keys and values of a head side by side."""
_INPUTS: Mapping[str, tuple[str, ...]] = {
    "self_attn.o_proj": ("heads",),
    "self_attn.dense": ("heads",),
    "attention.dense": ("heads",),
    "mlp.down_proj": ("elements",),
    "mlp.fc2": ("elements",),
    "mlp.c_proj": ("elements",),
    "mlp.dense_4h_to_h": ("elements",),
}
_PLACES_OF_EXPERTS = ("mlp.experts", "block_sparse_moe.experts")
_PLACES_OF_SHARED_ONES = ("mlp.shared_expert", "mlp.shared_experts")
"""Of a layer: where a module with three weights like those of a gated layer is."""
_FILES_OF_EXPERTS: Splits = {
    "gate_proj": (Along.OUTPUTS, ("elements",)),
    "up_proj": (Along.OUTPUTS, ("elements",)),
    "down_proj": (Along.INPUTS, ("elements",)),
    "w1": (Along.OUTPUTS, ("elements",)),
    "w3": (Along.OUTPUTS, ("elements",)),
    "w2": (Along.INPUTS, ("elements",)),
    "input_linear": (Along.OUTPUTS, ("elements", "elements")),
    "output_linear": (Along.INPUTS, ("elements",)),
}
"""What files call experts that transformers stacks, one by one or (`input_linear`) together. A shared expert whose layers have
such names is split like them."""


class PlanError(Exception):
    """A family has no plan that is known here; says why."""


def splits_of_plan(config: PreTrainedConfig) -> Splits:
    """Return how the modules of a family are split.

    Raises:
        PlanError: transformers has no plan for it, or one with entries that are not known here.
    """
    plan: Mapping[str, str] = getattr(type(config), "base_model_tp_plan", None) or {}
    if not plan:
        raise PlanError("it is of no family of our decoder, and transformers has no plan for it")
    found: dict[str, tuple[Along, tuple[str, ...]]] = {}
    for name, style in plan.items():
        place = name.removeprefix(_LAYERS)
        if name.startswith(_LAYERS) and style in _WHOLE:
            continue
        if name.startswith(_LAYERS) and style == _EXPERTS and place in _PLACES_OF_EXPERTS:
            found |= {key: one for key, one in _FILES_OF_EXPERTS.items() if key not in found}
            continue
        split = _split(place, style) if name.startswith(_LAYERS) else None
        own = place.rsplit(".", 1)[-1]
        if split is None or found.get(own, split) != split:
            raise PlanError(f"transformers' plan has {name} as {style}, which is not known here")
        found[own] = split
    _check_pairs(found)
    return found


def _split(place: str, style: str) -> tuple[Along, tuple[str, ...]] | None:
    """Return how the module at a place in its layer is split; None: nothing is known of it."""
    parts = place.split(".")
    if ".".join(parts[:2]) in (*_PLACES_OF_EXPERTS, *_PLACES_OF_SHARED_ONES) and len(parts) == 3:
        place = f"mlp.{parts[2]}"
    if style in _COLUMN and place in _OUTPUTS and (style != "colwise" or len(_OUTPUTS[place]) == 1):
        return Along.OUTPUTS, _OUTPUTS[place]
    if style in _ROW and place in _INPUTS:
        return Along.INPUTS, _INPUTS[place]
    return None


def _check_pairs(splits: Splits) -> None:
    """Where outputs are split, inputs of the next module have to be."""
    for own in ("heads", "elements"):
        kinds = {along for along, groups in splits.values() if own in groups}
        if len(kinds) == 1:
            raise PlanError(f"transformers' plan splits {own} on one side only")
