"""Our own decoder: `Decoder(model)` where `why_not(model)` finds no reason against it."""

from lorafleet_inference.model.decoder.model import Decoder
from lorafleet_inference.model.decoder.spec import SPECS, Spec, why_not

__all__ = ["SPECS", "Decoder", "Spec", "why_not"]
