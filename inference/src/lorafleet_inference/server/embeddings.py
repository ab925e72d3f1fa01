"""`POST /v1/embeddings`, and LoRAX's `POST /embed`: texts in, a vector of each out."""

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from array import array
from base64 import b64encode
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast

import msgspec
from pydantic import Field, model_validator

from lorafleet_contract.lorax import EMBED
from lorafleet_contract.usage import HEADER_USAGE, usage_text
from lorafleet_inference.adapters.ad_hoc import Wish
from lorafleet_inference.adapters.sources.base import Kind
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.generation import ChoicePlan, Generation
from lorafleet_inference.server.http import Exchange, Headers, json_response
from lorafleet_inference.server.keys import as_errors, grant_of, spending
from lorafleet_inference.server.leasing import check_source, lease_for
from lorafleet_inference.server.lorax_requests import AdapterParameters, judge_parameter, wish_of
from lorafleet_inference.server.lorax_wire import Embedded
from lorafleet_inference.server.merged_fields import MergedAdapters
from lorafleet_inference.server.pod import Pod, answer_length, check_token_ids
from lorafleet_inference.server.reading import read_json
from lorafleet_inference.server.requests import INT64, WHOLE_CONTEXT, TokenId
from lorafleet_inference.server.spans import tell_answer, tell_embeddings
from lorafleet_inference.server.strict import Listed, Strict
from lorafleet_inference.server.surface import Leased, TokenIds
from lorafleet_inference.server.wire import Embedding, EmbeddingList, EmbeddingUsage
from lorafleet_inference.text.output import Output

MAX_INPUTS = 2048
"""OpenAI's limit of one request."""
THREAD_BYTES = 1 << 16
"""Answers with more of vectors are written in a thread."""
NOTHING_CHOSEN = SamplingParams(max_tokens=0, temperature=0)

Input = str | list[int]
Answer = msgspec.Struct


class EmbeddingRequest(Strict):
    """`POST /v1/embeddings`."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: str | Listed[str] | Listed[TokenId] | Listed[Listed[TokenId]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str = ""
    add_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=WHOLE_CONTEXT, lt=1 << 31)] | None = None
    priority: Annotated[int, Field(ge=-INT64, lt=INT64)] = 0
    cache_salt: Annotated[str, Field(max_length=256)] = ""

    @model_validator(mode="after")
    def _some_input(self) -> Self:
        if isinstance(self.input, list) and not 1 <= len(self.inputs) <= MAX_INPUTS:
            raise ValueError(f"input: from 1 to {MAX_INPUTS} inputs")
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens: at least 1, or -1 for as many as fit")
        return self

    @property
    def inputs(self) -> list[Input]:
        """Each as text or as token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and isinstance(self.input[0], int):  # then all are
            return [self.input]
        return list(cast("list[Input]", self.input))


class EmbedParameters(AdapterParameters):
    """`parameters` of LoRAX's form."""


class EmbedBody(Strict):
    """LoRAX's form. Its client sends `stream`, which means nothing here."""

    inputs: Annotated[str, Field(min_length=1)]
    parameters: EmbedParameters = EmbedParameters()
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted, whatever form it came in."""

    model: str
    inputs: Sequence[Input]
    merge: MergedAdapters | None = None
    wish: Wish | None = None
    """Where `model` is to be found if nothing of that name is known."""
    source: Kind | None = None
    """What the adapter has to come from; None: whatever it is."""
    dimensions: int | None = None
    add_special_tokens: bool = True
    truncate: int | None = None
    """To so many tokens, the last ones; WHOLE_CONTEXT: to what fits."""
    priority: int = 0
    cache_salt: str = ""
    as_base64: bool = False


class Form(ABC):
    """How requests are read and answers written."""

    path: str
    input_field: str
    model_field: str = "model"

    @abstractmethod
    def parse(self, body: bytes) -> Asked:
        """Read a request.

        Raises:
            RequestError: InvalidValue or UnsupportedParameter, with the field in `param`.
        """

    @abstractmethod
    def answer(self, asked: Asked, vectors: Sequence[bytes], num_tokens: int) -> Answer:
        """Write an answer. `vectors`: of each input [dimensions] float32; `num_tokens`: of all inputs."""


class OpenAIForm(Form):
    """`POST /v1/embeddings`."""

    path = "/v1/embeddings"
    input_field = "input"

    def __init__(self, policy: FieldPolicy) -> None:
        self._policy = policy

    def parse(self, body: bytes) -> Asked:
        """Read a request."""
        request = read_json(EmbeddingRequest, body)
        self._policy.judge(request.others)
        return Asked(
            request.model,
            request.inputs,
            dimensions=request.dimensions,
            add_special_tokens=request.add_special_tokens,
            truncate=request.truncate_prompt_tokens,
            priority=request.priority,
            cache_salt=request.cache_salt,
            as_base64=request.encoding_format == "base64",
        )

    def answer(self, asked: Asked, vectors: Sequence[bytes], num_tokens: int) -> EmbeddingList:
        """Write an answer."""
        shown = [b64encode(one).decode() if asked.as_base64 else _numbers(one) for one in vectors]
        data = [Embedding(index, one) for index, one in enumerate(shown)]
        return EmbeddingList(data, asked.model, EmbeddingUsage(num_tokens, num_tokens))


class LoraxForm(Form):
    """`POST /embed`."""

    path = EMBED
    input_field = "inputs"
    model_field = "parameters.adapter_id"

    def __init__(self, base: str, policy: FieldPolicy, *, ad_hoc: bool) -> None:
        """`base`: the served name of the base model. `ad_hoc`: whether requests may name adapters that are not known."""
        self._base = base
        self._policy = policy
        self._ad_hoc = ad_hoc

    def parse(self, body: bytes) -> Asked:
        """Read a request."""
        given = read_json(EmbedBody, body)
        parameters = given.parameters
        for name in given.others:
            self._policy.meet(name, path=name)
        for name, value in parameters.others.items():
            judge_parameter(name, value, self._policy)
        wish = wish_of(parameters, self._policy, ad_hoc=self._ad_hoc)
        return Asked(
            parameters.adapter_id or self._base,
            [given.inputs],
            parameters.merged_adapters,
            wish,
            parameters.adapter_source,
        )

    def answer(self, _: Asked, vectors: Sequence[bytes], __: int) -> Embedded:
        """Write an answer."""
        return Embedded(_numbers(vectors[0]))


def _numbers(vector: bytes) -> list[float]:
    return array("f", vector).tolist()


class Embeddings:
    """Answers the requests of one route."""

    def __init__(self, pod: Pod, form: Form) -> None:
        self._pod = pod
        self._form = form

    async def handle(self, exchange: Exchange, body: bytes) -> None:
        """Answer one request.

        Raises:
            RequestError: whatever keeps it from being answered.
        """
        arrived = time.perf_counter()
        pod, form = self._pod, self._form
        with pod.state.request():
            asked = await pod.readers.read(form.parse, body)
            tell_embeddings(exchange.scope, asked.model, asked.dimensions)
            name, lease = lease_for(pod, exchange, asked, model_field=form.model_field)
            with pod.admission.enter(name, len(asked.inputs), field=form.input_field) as waiting:
                async with lease as leased, pod.answer_room.share() as room:
                    check_source(asked.source, leased)
                    answer_id = f"embd-{uuid.uuid4().hex}"
                    generation = Generation(
                        pod.engine,
                        waiting,
                        answer_id,
                        leased.lease.key,
                        arrived,
                        room=room,
                        count=leased.lease.count,
                    )
                    plans = await self._plans(asked, leased)
                    num_tokens = sum(len(plan.prompt_token_ids) for plan in plans)
                    try:
                        await self._answer(exchange, asked, leased, generation, plans)
                    finally:
                        tell_answer(exchange.scope, answer_id, generation, num_tokens)

    async def _answer(
        self, exchange: Exchange, asked: Asked, leased: Leased, generation: Generation, plans: Sequence[ChoicePlan]
    ) -> None:
        num_tokens = sum(len(plan.prompt_token_ids) for plan in plans)
        grant = grant_of(exchange.scope)
        with as_errors():
            grant.reserve(num_tokens)
        with spending(grant, generation, num_tokens):
            outputs = [Output(leased.text.detokenizer(strip_leading=False), ()) for _ in plans]
            async with aclosing(generation.deltas(plans, outputs)) as batches:
                async for _ in batches:
                    pass
            vectors = [generation.embeddings[plan.index] for plan in plans]
            if exchange.asks_usage:
                exchange.headers[HEADER_USAGE] = usage_text(num_tokens, 0)
            write = self._form.answer
            if sum(map(len, vectors)) > THREAD_BYTES:
                headers: Headers = exchange.headers
                response = await asyncio.to_thread(
                    lambda: json_response(write(asked, vectors, num_tokens), headers=headers)
                )
            else:
                response = json_response(write(asked, vectors, num_tokens), headers=exchange.headers)
            await exchange.respond_until_taken(response)

    async def _plans(self, asked: Asked, leased: Leased) -> list[ChoicePlan]:
        size, field = leased.facts.embedding_size, self._form.input_field
        if asked.dimensions is not None and asked.dimensions > size:
            raise InvalidValue(
                f"dimensions: {asked.dimensions}, and embeddings of this model have {size}", param="dimensions"
            )
        pooling = msgspec.structs.replace(leased.facts.pooling, dimensions=asked.dimensions)
        plans: list[ChoicePlan] = []
        for given in asked.inputs:
            ids = await self._token_ids(given, asked, leased)
            answer_length(len(ids), 0, leased.facts, prompt_field=field)
            check_token_ids(ids, NOTHING_CHOSEN, leased.vocabulary, prompt_field=field)
            plans.append(ChoicePlan(len(plans), ids, NOTHING_CHOSEN, asked.priority, asked.cache_salt, pooling=pooling))
            await asyncio.sleep(0)  # a thousand inputs, each short enough to be tokenised at once, are long together
        return plans

    async def _token_ids(self, given: Input, asked: Asked, leased: Leased) -> TokenIds:
        most = leased.facts.max_model_len
        num_kept = most if asked.truncate == WHOLE_CONTEXT else asked.truncate
        if isinstance(given, str):
            return await leased.text.encode(
                given,
                add_special_tokens=asked.add_special_tokens,
                max_tokens=most,
                field=self._form.input_field,
                keep_last=num_kept,
            )
        return tuple(given if num_kept is None else given[-num_kept:])
