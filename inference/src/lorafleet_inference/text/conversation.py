"""What a chat template is asked to write out."""

from collections.abc import Mapping
from typing import Any

import msgspec

Message = Mapping[str, Any]
"""`role`, `content` (text, or a list of parts) and, where given, `name`, `tool_calls`, `tool_call_id`, `reasoning_content`."""
RESERVED = frozenset(
    {
        "messages",
        "conversations",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
    }
)
"""Names that a variable of a request cannot have."""

TURN_CHARS = 64
"""A message or a part of one costs a template about as much as so many characters, however short it is."""


class Conversation(msgspec.Struct, frozen=True, array_like=True):
    """Messages, and what else the template may read. A variable that it does not read changes nothing."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    """Whether the assistant's turn is opened."""
    continue_final_message: bool = False
    """Whether the text ends with the last message, left open."""
    documents: tuple[Mapping[str, Any], ...] = ()
    """Refused by a template that does not read them: they are content."""
    variables: Mapping[str, Any] = {}
    """Of the request; they win over special tokens of the same name."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Refused by a template that does not read them, as messages that call them are."""

    @property
    def has_calls(self) -> bool:
        """Whether a message calls tools, or answers a call."""
        return any("tool_calls" in message or "tool_call_id" in message for message in self.messages)

    @property
    def num_chars(self) -> int:
        """Characters of the messages, and what stands for their number; without calls of tools."""
        return sum(map(_num_chars, self.messages))


def _num_chars(message: Message) -> int:
    content = message["content"]
    num_own = TURN_CHARS + sum(len(message.get(name) or "") for name in ("name", "reasoning_content"))
    if isinstance(content, str):
        return num_own + len(content)
    return num_own + sum(TURN_CHARS + len(part["text"]) for part in content)
