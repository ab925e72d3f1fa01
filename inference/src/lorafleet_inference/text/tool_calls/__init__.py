"""How models write calls of tools: one file a notation, found from the chat template."""

from lorafleet_inference.text.tool_calls.hermes import Hermes
from lorafleet_inference.text.tool_calls.llama import Llama
from lorafleet_inference.text.tool_calls.mistral import Mistral
from lorafleet_inference.text.tool_calls.notation import Notation, Tool

NOTATIONS: dict[str, Notation] = {one.name: one for one in (Hermes(), Mistral(), Llama())}
"""By name, in the order in which they are looked for."""

__all__ = ["NOTATIONS", "Notation", "Tool", "notation_of"]


def notation_of(template: str) -> Notation | None:
    """Return the notation that a chat template teaches its model; None where it is none of these."""
    return next((one for one in NOTATIONS.values() if one.is_of(template)), None)
