"""Which fields of OpenAI's and neighbouring servers' requests are honoured, passed over, or refused by name.

Honoured fields are those of the request models in `requests.py`. Everything else is looked up here: a field without
effect on the output passes; one that would change it passes only with its neutral value; an unknown one is refused, or
ignored where the pod is told to.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from lorafleet_common.metrics import OTHER
from lorafleet_inference.errors import UnsupportedParameter
from lorafleet_inference.metrics import UNKNOWN_FIELDS

logger = logging.getLogger(__name__)
MAX_NAMES: Final = 64
"""Unknown fields that are logged and counted by name; what is beyond them is counted together."""
MAX_NAME_CHARS: Final = 64

PASSED: Mapping[str, str] = {
    "user": "names the caller",
    "metadata": "is stored by OpenAI, not used",
    "store": "asks OpenAI to keep the answer",
    "service_tier": "chooses OpenAI's price",
    "safety_identifier": "names the caller",
    "prompt_cache_key": "steers OpenAI's cache; ours needs no hint",
    "prompt_cache_retention": "steers OpenAI's cache; ours needs no hint",
    "guided_decoding_backend": "chooses vLLM's library for forms of answers",
    "prediction": "speeds up OpenAI's answer without changing it",
    "parallel_tool_calls": "means nothing without tools",
    "request_id": "names the request; use the header x-request-id",
}
"""Field -> why it has no effect on the output."""


@dataclass(frozen=True, slots=True)
class Neutral:
    """A field that is not honoured, and the values with which it changes nothing."""

    name: str
    values: tuple[JsonValue, ...]
    meaning: str
    """What it would do, for the reference page."""


NEUTRAL: Mapping[str, Neutral] = {
    field.name: field
    for field in (
        Neutral("use_beam_search", (False,), "search instead of sampling"),
        Neutral("length_penalty", (1, 1.0), "weigh beams"),
        Neutral("echo", (False,), "repeat the prompt in the answer"),
        Neutral("suffix", ("",), "fill in before a suffix"),
        Neutral("tools", ([],), "offer tools to the model"),
        Neutral("tool_choice", ("none", "auto"), "make the model call a tool"),
        Neutral("functions", ([],), "offer functions to the model"),
        Neutral("function_call", ("none", "auto"), "make the model call a function"),
        Neutral("modalities", (["text"],), "answer in other media"),
        Neutral("audio", (), "answer in speech"),
        Neutral("reasoning_effort", ("none",), "steer reasoning"),
        Neutral("verbosity", ("medium",), "steer the length of answers"),
        Neutral("web_search_options", (), "search the web"),
        Neutral("add_generation_prompt", (True,), "leave the assistant's turn unopened"),
        Neutral("continue_final_message", (False,), "continue the last message"),
        Neutral("chat_template", (), "replace the chat template"),
        Neutral("chat_template_kwargs", ({},), "pass variables to the chat template"),
        Neutral("documents", ([],), "pass documents to the chat template"),
        Neutral("adapter_source", (), "load an adapter from elsewhere"),
        Neutral("adapter_id", (), "name the adapter; the field `model` does"),
    )
}


class FieldPolicy:
    """What is done with fields that the request models do not know."""

    def __init__(self, *, ignore_unknown: bool) -> None:
        self._ignore_unknown = ignore_unknown
        self._told: set[str] = set()

    def judge(self, fields: Mapping[str, JsonValue]) -> None:
        """Look at the fields of a request that its model does not know; null counts as absent.

        Raises:
            UnsupportedParameter: one would change the output, or is unknown and not to be ignored; `param` names it.
        """
        tools_off = fields.get("tool_choice") == "none"
        for name, value in fields.items():
            if value is None or name in PASSED or (tools_off and name == "tools"):
                continue
            neutral = NEUTRAL.get(name)
            if neutral is None:
                self.meet(name, path=name)
            elif not any(is_same(value, legal) for legal in neutral.values):
                raise UnsupportedParameter(f"{name!r} is not supported: it would {neutral.meaning}", param=name)

    def meet(self, name: str, *, path: str, of: str = "") -> None:
        """Take note of an unknown field; `of` is the object that it stands in, `path` the way to it.

        Raises:
            UnsupportedParameter: unknown fields are refused.
        """
        if not self._ignore_unknown:
            where = f" of {of}" if of else ""
            raise UnsupportedParameter(f"unknown field {name!r}{where}", param=path)
        label = f"{of}.{name}" if of else name
        if label not in self._told and (len(self._told) >= MAX_NAMES or len(label) > MAX_NAME_CHARS):
            label = OTHER
        UNKNOWN_FIELDS.of(label).inc()
        if label not in self._told:
            self._told.add(label)
            logger.warning("requests have the unknown field %r, which is ignored (told once)", label)


REFUSING = FieldPolicy(ignore_unknown=False)


def is_same(value: JsonValue, legal: JsonValue) -> bool:
    """Compare as JSON does: `true` is not 1."""
    return value == legal and isinstance(value, bool) == isinstance(legal, bool)
