"""Which way of quantising a `quantization_config` speaks of."""

from collections.abc import Callable, Mapping
from typing import Any

from lorafleet_inference.model.quantization.bits_and_bytes import bits_and_bytes
from lorafleet_inference.model.quantization.compressed import compressed_tensors
from lorafleet_inference.model.quantization.fp8 import fbgemm_fp8, fp8
from lorafleet_inference.model.quantization.grouped import awq, gptq
from lorafleet_inference.model.quantization.method import FIELD, Method, QuantizationError

METHODS: Mapping[str, Callable[[Mapping[str, Any]], Method]] = {
    "awq": awq,
    "bitsandbytes": bits_and_bytes,
    "compressed-tensors": compressed_tensors,
    "fbgemm_fp8": fbgemm_fp8,
    "fp8": fp8,
    "gptq": gptq,
}
"""By `quant_method`."""


def method_of(config: Mapping[str, Any]) -> Method | None:
    """Return how the weights of a model with this config.json are quantised; None: they are not.

    Raises:
        QuantizationError: in a way that cannot be served.
    """
    for part in (config, config.get("text_config")):
        fields = (part.get(FIELD) or part.get("compression_config")) if isinstance(part, Mapping) else None
        if not fields:
            continue
        if not isinstance(fields, Mapping):
            raise QuantizationError(f"{FIELD} is {fields!r}")
        method = fields.get("quant_method")
        if method is None and (fields.get("load_in_4bit") or fields.get("load_in_8bit")):
            method = "bitsandbytes"  # before it was written
        if not isinstance(method, str) or method not in METHODS:
            raise QuantizationError(f"{FIELD}.quant_method is {method!r}; supported are {', '.join(sorted(METHODS))}")
        return METHODS[method](fields)
    return None
