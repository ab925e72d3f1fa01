"""What the handlers of the public port work with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorafleet_common.keys.guard import Guard
from lorafleet_common.tracing import OFF, Tracing
from lorafleet_contract.admin import StartProgress, StartStep
from lorafleet_contract.names import HEADER_ADAPTER, HEADER_REVISION
from lorafleet_inference.adapters.manager import AdapterManager, Lease
from lorafleet_inference.config import ServerConfig
from lorafleet_inference.engine.client import EngineClient
from lorafleet_inference.engine.messages import ModelFacts, SamplingParams
from lorafleet_inference.engine.vocabulary import PROMPT, Vocabulary, first_unknown
from lorafleet_inference.errors import ContextLengthExceeded, EngineNotReady, InvalidValue
from lorafleet_inference.metrics import KEYS
from lorafleet_inference.server.admission import Admission
from lorafleet_inference.server.answer_room import AnswerRoom
from lorafleet_inference.server.reading import Readers
from lorafleet_inference.server.state import PodState
from lorafleet_inference.text.tokenizer import Text


@dataclass(frozen=True, slots=True)
class Pod:
    """One of each."""

    config: ServerConfig
    engine: EngineClient
    manager: AdapterManager
    text: Text
    state: PodState
    admission: Admission
    answer_room: AnswerRoom
    readers: Readers
    guard: Guard = field(default_factory=lambda: Guard(None, KEYS))
    """Who asks for keys."""
    tracing: Tracing = OFF
    """Where spans of requests go."""

    @property
    def facts(self) -> ModelFacts:
        """The base model.

        Raises:
            EngineNotReady: it is not loaded yet.
        """
        ready = self.engine.facts
        if ready is None:
            raise EngineNotReady("the base model is still being loaded")
        return ready.facts

    @property
    def start_progress(self) -> StartProgress | None:
        """How far it is with its start; None before the engine has begun to read, and once it is ready."""
        percent = self.engine.read_percent
        if percent is None or self.engine.facts is not None:
            return None
        return StartProgress(step=StartStep.LOADING, percent=percent)


def lease_headers(lease: Lease) -> dict[str, str]:
    """Return the headers that name the adapter and the revision of an answer; none for the base."""
    if lease.key is None or lease.name is None:
        return {}
    return {HEADER_ADAPTER: lease.name, HEADER_REVISION: lease.key.revision}


def answer_length(num_prompt_tokens: int, max_new_tokens: int | None, facts: ModelFacts, *, prompt_field: str) -> int:
    """Return how many tokens the answer may have; 0 only where that many were asked for.

    Raises:
        InvalidValue: the prompt is empty.
        ContextLengthExceeded: prompt and answer do not fit the model.
    """
    if num_prompt_tokens == 0:
        raise InvalidValue("the prompt has no tokens", param=prompt_field)
    room = facts.max_model_len - num_prompt_tokens
    wanted = room if max_new_tokens is None else max_new_tokens
    if wanted > room or (max_new_tokens is None and room < 1):
        asked = "at least 1 token" if max_new_tokens is None else f"{max_new_tokens} tokens"
        raise ContextLengthExceeded(
            f"this model's maximum context length is {facts.max_model_len} tokens; the prompt has {num_prompt_tokens}, and "
            f"{asked} of answer were asked for",
            param=prompt_field,
        )
    return wanted


def check_token_ids(
    prompt: Sequence[int], sampling: SamplingParams, vocabulary: Vocabulary, *, prompt_field: str
) -> None:
    """Check that all token ids of a request are of the vocabulary, by the rule of the engine.

    Raises:
        InvalidValue: one is not.
    """
    unknown = first_unknown(prompt, sampling, vocabulary)
    if unknown is not None:
        raise InvalidValue(unknown.message, param=prompt_field if unknown.field == PROMPT else unknown.field)
