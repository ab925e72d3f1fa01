"""Families whose attention is not written against transformers' interface: one file each.

Each `patch(model, max_model_len)` makes the attention of a loaded model call `attend`, and nothing else.
"""

from collections.abc import Callable, Mapping

from transformers import PreTrainedModel

from lorafleet_inference.model.families import bloom, falcon, gptj

PATCHES: Mapping[str, Callable[[PreTrainedModel, int], None]] = {
    "bloom": bloom.patch,
    "falcon": falcon.patch,
    "gptj": gptj.patch,
}
"""By `model_type` of the config."""
