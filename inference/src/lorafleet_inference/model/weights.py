"""Checks the weights of an adapter without a base to load it on."""

import torch

from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.device.host import HostDevice
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.model.arena import Arena
from lorafleet_inference.model.extras_files import check_extras
from lorafleet_inference.model.slab import load_slab


@torch.inference_mode()
def check_weights(plan: AdapterPlan, base: ModelFacts, dtype: str) -> None:
    """Read each tensor as a pod does that serves the base in this dtype.

    Raises:
        AdapterError: ARTIFACT_INVALID; names the tensor and the place of a value that is not finite.
    """
    own = getattr(torch, dtype)
    layout = RowLayout.of(base)
    load_slab(plan, layout, own, Arena(0, layout.page, own, HostDevice()))
    check_extras(plan, own)
