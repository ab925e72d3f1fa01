"""What a pod's span of a request says, in OpenTelemetry's words for generative AI. Nothing of prompts and answers is among it."""

from collections.abc import Sequence
from typing import Any, Final

from starlette.types import Scope

from lorafleet_inference.server.generation import Generation
from lorafleet_inference.server.requests import GenerationRequest
from lorafleet_inference.server.tracing import known, trace_of

PROVIDER: Final = "lorafleet"
CHAT_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/responses"})
EMBEDDING_PATHS: Final = frozenset({"/v1/embeddings", "/embed"})


def operation_of(path: str) -> str:
    """Return what is done, by one of the names that the conventions have for it."""
    if path in CHAT_PATHS:
        return "chat"
    return "embeddings" if path in EMBEDDING_PATHS else "text_completion"


def tell_request(scope: Scope, request: GenerationRequest) -> None:
    """Say what was asked for."""
    trace = trace_of(scope)
    if not trace.is_recorded:
        return
    operation = operation_of(scope["path"])
    asked: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
        "gen_ai.request.choice.count": request.n if request.n != 1 else None,
        "gen_ai.request.frequency_penalty": request.frequency_penalty or None,
        "gen_ai.request.max_tokens": request.max_new_tokens,
        "gen_ai.request.presence_penalty": request.presence_penalty or None,
        "gen_ai.request.seed": request.seed,
        "gen_ai.request.stream": request.stream or None,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_k": request.top_k if request.top_k > 0 else None,
        "gen_ai.request.top_p": request.top_p,
    }
    trace.tell(known(asked), name=f"{operation} {request.model}")


def tell_embeddings(scope: Scope, model: str, dimensions: int | None) -> None:
    """Say which embeddings were asked for."""
    trace = trace_of(scope)
    if not trace.is_recorded:
        return
    operation = operation_of(scope["path"])
    asked: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.embeddings.dimension.count": dimensions,
    }
    trace.tell(known(asked), name=f"{operation} {model}")


def tell_answer(scope: Scope, answer_id: str, generation: Generation, num_prompt_tokens: int) -> None:
    """Say what came of it, as far as it came."""
    trace = trace_of(scope)
    if not trace.is_recorded:
        return
    timing = generation.timing
    first = timing.first_token
    finishes: Sequence[str] = [finish for _, finish in sorted(generation.finishes.items())]
    usage = generation.usage(num_prompt_tokens)
    came: dict[str, Any] = {
        "gen_ai.response.id": answer_id,
        "gen_ai.response.finish_reasons": finishes or None,
        "gen_ai.response.time_to_first_chunk": first - timing.arrived if first is not None else None,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.prompt_tokens_details.cached_tokens,
        "lorafleet.queue_seconds": timing.queue_seconds if first is not None else None,
    }
    trace.tell(known(came))
