"""Whether adapters can be merged, and what is to be computed for the result. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite, MergedParts
from lorafleet_inference.engine.merging import Merge
from lorafleet_inference.errors import AdapterError

_NOT_MERGED: tuple[tuple[str, Callable[[AdapterPlan], bool]], ...] = (
    ("alora_invocation_tokens: it is not computed for all tokens", lambda plan: bool(plan.invocation)),
    ("use_dora: its deltas depend on the base's weights", lambda plan: any(one.magnitude_key for one in _sites(plan))),
    ("lora_bias", lambda plan: any(one.b_bias_key for one in _sites(plan))),
    ("LoRA on experts", lambda plan: bool(plan.experts)),
    ("another number of tokens than the base", lambda plan: plan.num_rows is not None),
    ("weights, biases or rows of its own (modules_to_save, bias, trainable_token_indices)",
     lambda plan: bool(plan.own or plan.own_rows)),
)  # fmt: skip
"""What an adapter may have that has no meaning in a merge, or none that PEFT gives it."""


def merged_plan(merge: Merge, plans: Sequence[AdapterPlan], *, max_rank: int) -> AdapterPlan:
    """Return what is to be computed for a merge of settled adapters; `plans` in the order of its parts.

    Raises:
        AdapterError: UNSUPPORTED_ADAPTER, names the part and what of it cannot be merged; RANK_TOO_HIGH.
    """
    for part, plan in zip(merge.parts, plans, strict=True):
        for what, is_there in _NOT_MERGED:
            if is_there(plan):
                raise AdapterError(Reason.UNSUPPORTED_ADAPTER, f"{part.name} has {what}, which is not merged")
    sites = _merged_sites(merge, [plan.sites for plan in plans], max_rank)
    side_sites = _merged_sites(merge, [plan.side_sites for plan in plans], max_rank)
    first = plans[0]
    facts = AdapterFacts(
        rank=max((site.rank for site in (*sites, *side_sites)), default=0),
        size_bytes=sum(plan.facts.size_bytes for plan in plans),
        target_modules=sorted({name for plan in plans for name in plan.facts.target_modules}),
        base_model_name=first.facts.base_model_name,
    )
    return replace(
        first, files=(), facts=facts, sites=sites, side_sites=side_sites, merged=MergedParts(merge, tuple(plans))
    )


def _sites(plan: AdapterPlan) -> Iterable[LoraSite]:
    return (*plan.sites, *plan.side_sites)


def _merged_sites(merge: Merge, parts: Sequence[tuple[LoraSite, ...]], max_rank: int) -> tuple[LoraSite, ...]:
    """A module that only some parts change has what those make of it."""
    ranks: dict[str, dict[str, int]] = {}
    sums: dict[str, int] = {}
    for part, sites in zip(merge.parts, parts, strict=True):
        for site in sites:
            ranks.setdefault(site.module, {})[part.name] = site.rank
            sums[site.module] = sums.get(site.module, 0) + site.rank
    made = []
    for module in sorted(ranks):
        rank = sums[module]
        if merge.method.prunes:
            rank = next(iter(ranks[module].values()))
            if len(set(ranks[module].values())) > 1:
                told = ", ".join(f"{name} {one}" for name, one in ranks[module].items())
                raise AdapterError(
                    Reason.UNSUPPORTED_ADAPTER,
                    f"{merge.method} needs equal ranks, and those of {module} are: {told}; linear takes any",
                )
        if rank > max_rank:
            raise AdapterError(
                Reason.RANK_TOO_HIGH,
                f"the ranks of the parts add up to {rank} at {module}; this base serves up to {max_rank}",
            )
        made.append(LoraSite(module, rank, 1.0, f"lora_A of {module}", f"lora_B of {module}"))
    return tuple(made)
