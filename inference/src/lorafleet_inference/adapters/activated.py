"""Which activated adapters (aLoRA, `alora_invocation_tokens`) are taken. Pure.

PEFT computes what such an adapter has on linear layers for the tokens from its invocation on. Anything else that it has is
either refused by PEFT, or computed for the tokens before as well: then these are not the base's.
"""

from collections.abc import Collection

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import CONFIG
from lorafleet_inference.adapters.peft_config import PeftConfig
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.errors import AdapterError

FIELD = "alora_invocation_tokens"
TASK = "CAUSAL_LM"
"""The only one with which PEFT looks for the tokens."""


def check_activated(plan: AdapterPlan, config: PeftConfig, *, heads: Collection[str]) -> None:
    """Check an adapter that has an invocation. `heads`: output heads of the base.

    Raises:
        AdapterError: UNSUPPORTED_ADAPTER, BASE_MODEL_MISMATCH.
    """
    if config.task_type != TASK:
        raise _unsupported(
            f"needs task_type={TASK!r}: with {config.task_type!r} PEFT does not look for them, and computes the base"
        )
    if config.use_dora:
        raise _unsupported("is not computed together with use_dora, which PEFT does not take either")
    if plan.num_rows is not None or plan.own_rows:
        raise _unsupported(
            "is not computed together with rows of the adapter's own for tokens, which change its prefix"
        )
    if plan.own:
        one = plan.own[0]
        raise _unsupported(
            f"is not computed together with a {one.parameter} of the adapter's own for {one.module} (modules_to_save, "
            "bias), which changes its prefix"
        )
    if plan.experts:
        raise _unsupported("is not computed together with LoRA on experts, which PEFT does not take either")
    for site in plan.side_sites:
        if site.module not in heads:
            raise _unsupported(f"is not computed together with LoRA on {site.module}, which is no linear layer")
    if max(plan.invocation) >= plan.vocabulary.num_inputs:
        raise AdapterError(
            Reason.BASE_MODEL_MISMATCH,
            f"{CONFIG}: {FIELD} has the id {max(plan.invocation)}, and the embedding {plan.vocabulary.num_inputs} rows",
        )


def _unsupported(why: str) -> AdapterError:
    return AdapterError(Reason.UNSUPPORTED_ADAPTER, f"{CONFIG}: {FIELD} {why}")
