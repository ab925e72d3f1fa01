"""LoRAX's requests: `inputs` and `parameters`, read as those of the OpenAI routes are."""

import secrets
from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import Field, JsonValue

from lorafleet_inference.adapters.ad_hoc import Wish
from lorafleet_inference.adapters.sources.base import Kind
from lorafleet_inference.errors import InvalidValue, UnsupportedParameter
from lorafleet_inference.server.fields import FieldPolicy, Neutral, is_same
from lorafleet_inference.server.merged_fields import PATH as MERGED_PATH
from lorafleet_inference.server.merged_fields import MergedAdapters
from lorafleet_inference.server.reading import read_json
from lorafleet_inference.server.requests import (
    MAX_CHOICES,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    GenerationRequest,
    StopString,
)
from lorafleet_inference.server.strict import Strict
from lorafleet_inference.server.structured import ResponseFormat

MAX_TEMPERATURE: Final = 100
SEED_BITS: Final = 62
"""Of seeds that the server chooses; those of further sequences follow and fit, too."""

REFUSED: Final = {
    field.name: field
    for field in (
        Neutral("watermark", (False,), "mark the text as a machine's"),
        Neutral("apply_chat_template", (False,), "put the chat template around the prompt; /v1/chat/completions does"),
    )
}


class AdapterParameters(Strict):
    """Of `parameters`: whose answer is wanted."""

    adapter_id: Annotated[str, Field(max_length=512)] = ""
    merged_adapters: MergedAdapters | None = None
    adapter_source: Annotated[Kind, Field(strict=False)] | None = None
    api_token: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class LoraxParameters(AdapterParameters):
    """`parameters`. What none of temperature, top_k, top_p, typical_p and do_sample asks to sample is greedy."""

    do_sample: bool = False
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_k: Annotated[int, Field(gt=0, lt=1 << 31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    ignore_eos_token: bool = False
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] = []
    truncate: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    return_full_text: bool = False
    details: bool = False
    decoder_input_details: bool = False
    return_k_alternatives: Annotated[int, Field(ge=1, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn; otherwise the most likely one is taken."""
        asked = (self.temperature, self.top_k, self.top_p, self.typical_p)
        return self.temperature != 0 and (self.do_sample or any(one is not None for one in asked))


class LoraxBody(Strict):
    """The whole body. `stream` counts at `POST /` alone."""

    inputs: Annotated[str, Field(min_length=1)]
    parameters: LoraxParameters = LoraxParameters()
    stream: bool = False


class LoraxRequest(GenerationRequest):
    """What is run. Made of a body that was read; `best_of` sequences are shown best first where details are asked for."""

    inputs: str
    max_new: int | None
    is_sampled: bool
    with_details: bool
    input_details: bool
    num_alternatives: int
    full_text: bool
    merged: MergedAdapters | None = None
    source: Kind | None = None
    """What the adapter has to come from; None: whatever it is."""
    ad_hoc: Wish | None = None

    @property
    def wish(self) -> Wish | None:
        """`adapter_id`, `adapter_source` and `api_token`, where requests may name adapters."""
        return self.ad_hoc

    @property
    def merge(self) -> MergedAdapters | None:
        """`merged_adapters`."""
        return self.merged

    @property
    def is_ranked(self) -> bool:
        """Whether the best one has to be found."""
        return self.num_sequences > 1

    @property
    def max_new_tokens(self) -> int | None:
        """`max_new_tokens`."""
        return self.max_new

    @property
    def num_logprobs(self) -> int | None:
        """Of each token that is shown."""
        return self.num_alternatives if self.with_details or self.stream else None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Where the tokens of the prompt are shown."""
        return 0 if self.input_details else None


def parse_lorax(
    body: bytes, policy: FieldPolicy, *, base: str, stream: bool | None, ad_hoc: bool = False
) -> LoraxRequest:
    """Read a request; `base` is what it means without an adapter, `stream` what its route says.

    `ad_hoc`: whether it may name an adapter that is not known.

    Raises:
        RequestError: InvalidValue or UnsupportedParameter, with the field in `param`.
    """
    given = read_json(LoraxBody, body)
    parameters = given.parameters
    for name in given.others:
        policy.meet(name, path=name)
    for name, value in parameters.others.items():
        judge_parameter(name, value, policy)
    wish = wish_of(parameters, policy, ad_hoc=ad_hoc)
    streams = given.stream if stream is None else stream
    for name, problem in _problems(parameters, streams=streams):
        raise InvalidValue(f"{name}: {problem}", param=f"parameters.{name}")
    return _request(given, base=base, streams=streams, wish=wish)


def _problems(parameters: LoraxParameters, *, streams: bool) -> Iterator[tuple[str, str]]:
    """Yield what parameters say of each other that cannot be."""
    if streams and parameters.decoder_input_details:
        yield "decoder_input_details", "comes with whole answers only"
    if (parameters.best_of or 1) == 1:
        return
    if streams:
        yield "best_of", "the best is known at the end only, and cannot be streamed"
    if not parameters.is_sampled:
        yield "best_of", "more than 1 needs sampling"
    if parameters.seed is not None:
        yield "best_of", "more than 1 does not go with seed"


def wish_of(parameters: AdapterParameters, policy: FieldPolicy, *, ad_hoc: bool) -> Wish | None:
    """Return which adapter is asked for if none of its name is known; None where none may be, or is.

    Raises:
        UnsupportedParameter: `merged_adapters` has an unknown field that is not to be ignored, or no token is taken.
        InvalidValue: what is asked for contradicts itself.
    """
    merged = parameters.merged_adapters
    if merged is not None:
        for name in merged.others:
            policy.meet(name, of="merged_adapters", path=f"{MERGED_PATH}.{name}")
        if parameters.adapter_id:
            message = "merged_adapters: one of adapter_id and merged_adapters says which adapter is meant"
            raise InvalidValue(message, param=MERGED_PATH)
    token, source = parameters.api_token, parameters.adapter_source
    if token is not None and not ad_hoc:
        raise UnsupportedParameter(
            "'api_token' is not supported: adapters come with the credentials of the sources that they are declared in",
            param="parameters.api_token",
        )
    if token is not None and (source is not Kind.HUB or not parameters.adapter_id):
        message = "api_token: opens the adapter_id of adapter_source 'hub', and nothing else"
        raise InvalidValue(message, param="parameters.api_token")
    if not ad_hoc or not parameters.adapter_id or source is None:
        return None
    return Wish(parameters.adapter_id, source, token)


def judge_parameter(name: str, value: JsonValue, policy: FieldPolicy) -> None:
    """Look at a parameter that no model knows.

    Raises:
        UnsupportedParameter: it would change the answer, or is unknown and not to be ignored; `param` names it.
    """
    path = f"parameters.{name}"
    refused = REFUSED.get(name)
    if refused is None:
        policy.meet(name, of="parameters", path=path)
    elif not any(is_same(value, legal) for legal in refused.values):
        raise UnsupportedParameter(f"{name!r} is not supported: it would {refused.meaning}", param=path)


def _request(given: LoraxBody, *, base: str, streams: bool, wish: Wish | None) -> LoraxRequest:
    parameters = given.parameters
    is_sampled = parameters.is_sampled
    drawn = secrets.randbits(SEED_BITS) if is_sampled else None
    temperature = 1.0 if parameters.temperature is None else parameters.temperature
    with_details = parameters.details or parameters.decoder_input_details
    best_of = parameters.best_of or 1
    return LoraxRequest.model_construct(  # every value was checked
        model=parameters.adapter_id or base,
        temperature=temperature if is_sampled else 0.0,
        top_k=parameters.top_k or 0,
        top_p=parameters.top_p or 1.0,
        typical_p=parameters.typical_p or 1.0,
        seed=drawn if parameters.seed is None else parameters.seed,
        n=best_of if with_details else 1,
        best_of=best_of,
        repetition_penalty=parameters.repetition_penalty,
        frequency_penalty=parameters.frequency_penalty,
        presence_penalty=parameters.presence_penalty,
        ignore_eos=parameters.ignore_eos_token,
        stop=parameters.stop,
        include_stop_str_in_output=True,
        truncate_prompt_tokens=parameters.truncate,
        add_special_tokens=True,
        response_format=parameters.response_format,
        stream=streams,
        inputs=given.inputs,
        max_new=parameters.max_new_tokens,
        is_sampled=is_sampled,
        with_details=with_details,
        input_details=parameters.decoder_input_details,
        num_alternatives=parameters.return_k_alternatives or 0,
        full_text=parameters.return_full_text,
        merged=parameters.merged_adapters,
        source=parameters.adapter_source,
        ad_hoc=wish,
    )
