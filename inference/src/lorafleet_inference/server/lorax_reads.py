"""What LoRAX's clients ask beside generation: what the server is, and which tokens a text has."""

import asyncio
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import Annotated

import msgspec
from pydantic import Field
from starlette.responses import Response

from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.http import Exchange, Headers, json_response
from lorafleet_inference.server.leasing import leasing
from lorafleet_inference.server.lorax import lorax_error
from lorafleet_inference.server.lorax_wire import Info, TokenSpan
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.reading import read_json
from lorafleet_inference.server.requests import MAX_CHOICES, MAX_STOP_STRINGS
from lorafleet_inference.server.strict import Strict, has_field
from lorafleet_inference.server.tokens import MAX_TOKENS, THREAD_TOKENS, Tokens
from lorafleet_inference.text.tokenizer import Span


class TokenizeInputs(Strict):
    """LoRAX's form of `POST /tokenize`."""

    inputs: Annotated[str, Field(min_length=1)]
    add_special_tokens: bool = True


class _Form(msgspec.Struct):
    """What tells LoRAX's form from vLLM's."""

    inputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class TokenizeForms:
    """`POST /tokenize`: as LoRAX has it where there are `inputs`, else as vLLM has it."""

    def __init__(self, pod: Pod, tokens: Tokens, policy: FieldPolicy) -> None:
        self._pod = pod
        self._tokens = tokens
        self._policy = policy

    async def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request.

        Raises:
            RequestError: whatever keeps it from being answered.
        """
        if await self._pod.readers.read(partial(has_field, form=_Form), body):
            exchange.error_shape = lorax_error
            await self._spans(exchange, body)
        else:
            await self._tokens.tokenize(exchange, body)

    async def _spans(self, exchange: Exchange, body: bytes) -> None:
        """Answer with the tokens that a text has for the base model."""
        request = await self._pod.readers.read(partial(read_json, TokenizeInputs), body)
        for name in request.others:
            self._policy.meet(name, path=name)
        with self._pod.state.request():
            async with leasing(self._pod, exchange, self._pod.config.served_name) as leased:
                spans = await self._pod.text.spans(
                    request.inputs,
                    add_special_tokens=request.add_special_tokens,
                    max_tokens=max(leased.facts.max_model_len, MAX_TOKENS),
                    field="inputs",
                )
        make = partial(_answer_of, spans, exchange.headers)
        await exchange.respond(await asyncio.to_thread(make) if len(spans) > THREAD_TOKENS else make())


def _answer_of(spans: Sequence[Span], headers: Headers) -> Response:
    return json_response([TokenSpan(*span) for span in spans], headers=headers)


def info_of(pod: Pod) -> Info:
    """Return what /info says; LoRAX's settings that mean nothing here are left out.

    Raises:
        EngineNotReady: the base model is not loaded yet.
    """
    facts, ready = pod.facts, pod.engine.facts
    assert ready is not None, "facts are of an engine that is ready"
    base = next(entry for entry in pod.manager.models() if entry.parent is None)
    return Info(
        model_id=base.root,
        model_dtype=facts.dtype,
        model_device_type=facts.device.partition(":")[0],
        max_concurrent_requests=pod.config.max_waiting_requests,
        max_best_of=MAX_CHOICES,
        max_stop_sequences=MAX_STOP_STRINGS,
        max_input_length=facts.max_model_len - 1,
        max_total_tokens=facts.max_model_len,
        max_batch_total_tokens=ready.budgets.num_kv_blocks * ready.budgets.kv_block_tokens,
        version=metadata.version("lorafleet-inference"),
    )
