"""`POST /`, `/generate` and `/generate_stream`, as LoRAX has them: a prompt in, its continuation out."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec

from lorafleet_contract.lorax import COMPATIBLE, GENERATE, GENERATE_STREAM, lorax_answer
from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.errors import RequestError
from lorafleet_inference.server import lorax_wire as wire
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.generation import ChoiceDelta, Timing
from lorafleet_inference.server.leasing import check_source
from lorafleet_inference.server.logprobs import finite
from lorafleet_inference.server.lorax_requests import LoraxBody, LoraxRequest, parse_lorax
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Prompt, Surface
from lorafleet_inference.server.wire import Usage
from lorafleet_inference.text.output import ShownToken

MILLISECONDS: Final = 1000
HEADERS: Final = (
    *("x-compute-type", "x-compute-characters", "x-model-id", "x-adapter-id"),
    *("x-prompt-tokens", "x-generated-tokens", "x-skipped-tokens", "x-total-tokens"),
    *("x-compute-time", "x-total-time", "x-validation-time", "x-queue-time", "x-inference-time"),
    *("x-time-per-token", "x-time-to-first-token", "x-time-per-output-token"),
)
"""Of answers; streams begin before counts and times are known, and have the first four only."""


def lorax_error(error: RequestError) -> tuple[int, bytes]:
    """Return an error as LoRAX's API has it."""
    return lorax_answer(error.message, status=error.status, code=error.code, param=error.param)


class Generate(Surface[LoraxRequest]):
    """Answers whole."""

    path = GENERATE
    reads = LoraxBody
    writes: ClassVar[Any] = wire.Generated
    streams_as: ClassVar[type[msgspec.Struct] | None] = None
    tells_done = False
    answer_headers = HEADERS
    id_prefix = "lorax"
    prompt_field = "inputs"
    model_field = "parameters.adapter_id"
    streams: ClassVar[bool | None] = False
    """None: as the request says."""
    is_listed: ClassVar[bool] = False
    """Whether a whole answer is a list of one."""

    def __init__(self, base: str, policy: FieldPolicy, *, ad_hoc: bool = False) -> None:
        """`base`: the served name of the base model. `ad_hoc`: whether requests may name adapters that are not known."""
        self._ad_hoc = ad_hoc
        self._base = base
        self._policy = policy

    def parse(self, body: bytes) -> LoraxRequest:
        """Read a request."""
        return parse_lorax(body, self._policy, base=self._base, stream=self.streams, ad_hoc=self._ad_hoc)

    def num_prompts(self, _: LoraxRequest) -> int:
        """One."""
        return 1

    async def prompts(self, request: LoraxRequest, leased: Leased) -> list[Prompt]:
        """Tokenise the text; LoRAX knows no chats here.

        Raises:
            InvalidValue: the adapter comes from elsewhere than the request says.
        """
        check_source(request.source, leased)
        ids = await self.tokenised(request.inputs, request, leased)
        return [Prompt(ids, grammar=request.grammar)]

    def strip_leading(self, _: LoraxRequest) -> bool:
        """A continuation keeps its space."""
        return False

    def form_field(self, request: LoraxRequest) -> str | None:
        """It stands among the parameters."""
        return request.form_field and f"parameters.{request.form_field}"

    def formatter(self, answer: Answer[LoraxRequest]) -> Formatter:
        """Return who writes this answer."""
        return _LoraxFormatter(answer, self._base, is_listed=self.is_listed)


class GenerateStream(Generate):
    """Answers with events."""

    path = GENERATE_STREAM
    writes = None
    streams_as = wire.StreamEvent
    streams = True


class Compatible(Generate):
    """Answers as the body says; LoRAX's own client asks here."""

    path = COMPATIBLE
    writes = list[wire.Generated]
    streams_as = wire.StreamEvent
    streams = None
    is_listed = True


class _LoraxFormatter(Formatter):
    def __init__(self, answer: Answer[LoraxRequest], base: str, *, is_listed: bool) -> None:
        self._answer = answer
        self._request = answer.request
        self._base = base
        self._is_listed = is_listed
        self._stream = _Stream()

    def whole(self, choices: Sequence[Choice], _: Usage) -> msgspec.Struct | list[msgspec.Struct]:
        best, *others = choices
        details: wire.Details | msgspec.UnsetType = msgspec.UNSET
        if self._request.with_details:
            details = self._details(best, [self._sequence(choice) for choice in others])
        generated = wire.Generated(self._shown(best.text), details)
        return [generated] if self._is_listed else generated

    def _details(self, best: Choice, others: list[wire.Sequence]) -> wire.Details:
        return wire.Details(
            finish_reason=_finish(best.last),
            prompt_tokens=self._num_prompt_tokens,
            generated_tokens=_num_generated(best.last),
            seed=self._seed(best.last),
            prefill=self._prefill(best.scored),
            tokens=self._tokens(best),
            best_of_sequences=others or msgspec.UNSET,
        )

    def _sequence(self, choice: Choice) -> wire.Sequence:
        return wire.Sequence(
            generated_text=self._shown(choice.text),
            finish_reason=_finish(choice.last),
            generated_tokens=_num_generated(choice.last),
            seed=self._seed(choice.last),
            prefill=self._prefill(choice.scored),
            tokens=self._tokens(choice),
        )

    def _prefill(self, scored: Sequence[TokenLogprobs] | None) -> list[wire.InputToken]:
        if scored is None:
            return []
        first, *rest = self._answer.prompts[0].token_ids
        follow = [
            wire.InputToken(token_id, self._name(token_id), finite(one.chosen))
            for token_id, one in zip(rest, scored, strict=True)
        ]
        return [wire.InputToken(first, self._name(first), None), *follow]

    def _tokens(self, choice: Choice) -> list[wire.Token]:
        stream = _Stream()
        return [self._token(token, text) for token, text in stream.tokens(choice.text, choice.tokens, is_last=True)]

    def events(self, delta: ChoiceDelta, _: Sequence[TokenLogprobs] | None) -> Iterable[wire.StreamEvent]:
        is_last = delta.finish is not None
        found = [self._token(*one) for one in self._stream.tokens(delta.text, delta.tokens, is_last=is_last)]
        if not is_last:
            yield from map(wire.StreamEvent, found)
            return
        *before, last = found
        yield from map(wire.StreamEvent, before)
        details = None
        if self._request.with_details:
            num_tokens = _num_generated(delta)
            details = wire.StreamDetails(_finish(delta), self._num_prompt_tokens, num_tokens, self._seed(delta))
        yield wire.StreamEvent(last, self._shown(self._stream.text), details)

    def usage_event(self, _: Usage) -> msgspec.Struct:
        raise AssertionError("no request of LoRAX's asks for it: its last event has the counts")

    def headers(self, choices: Sequence[Choice] | None, timing: Timing) -> Mapping[str, str]:
        leased = self._answer.leased
        own = {
            "x-compute-type": leased.facts.device.partition(":")[0],
            "x-compute-characters": str(len(self._request.inputs)),
            "x-model-id": self._base,
        }
        if leased.lease.name is not None:
            own["x-adapter-id"] = leased.lease.name
        if choices is None:
            return own
        return own | self._counts(choices[0].last) | _times(timing, _num_generated(choices[0].last))

    def _counts(self, best: ChoiceDelta) -> dict[str, str]:
        num_prompt, num_generated = self._num_prompt_tokens, _num_generated(best)
        counts = {"prompt": num_prompt, "generated": num_generated, "skipped": 0, "total": num_prompt + num_generated}
        return {f"x-{name}-tokens": str(number) for name, number in counts.items()}

    @property
    def _num_prompt_tokens(self) -> int:
        return len(self._answer.prompts[0].token_ids)

    def _shown(self, text: str) -> str:
        return self._request.inputs + text if self._request.full_text else text

    def _seed(self, last: ChoiceDelta) -> int | None:
        """The one that makes the same text again."""
        seed = self._request.seed
        return seed + last.index if self._request.is_sampled and seed is not None else None

    def _token(self, token: ShownToken, text: str) -> wire.Token:
        pieces = self._answer.names.pieces
        is_special = pieces.is_special(token.token_id)
        return wire.Token(
            token.token_id,
            self._name(token.token_id) if is_special else text,
            finite(token.logprobs.chosen),
            is_special,
            [wire.AlternativeToken(one, self._name(one), finite(logprob)) for one, logprob in token.logprobs.top]
            if self._request.num_alternatives
            else msgspec.UNSET,
        )

    def _name(self, token_id: int) -> str:
        return self._answer.names.pieces.shown(token_id).decode(errors="replace")


class _Stream:
    """Cuts a growing text into the texts of its tokens."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._ahead = ""
        """Text of tokens that were not returned yet, from the character `_begin` on."""
        self._begin = 0
        self._waiting: deque[ShownToken] = deque()

    @property
    def text(self) -> str:
        """All that came."""
        return "".join(self._parts)

    def tokens(self, text: str, tokens: Sequence[ShownToken], *, is_last: bool) -> Iterator[tuple[ShownToken, str]]:
        """Yield the tokens whose text has come whole; with the last text all of them, and the last one has the rest of it."""
        self._parts.append(text)
        self._ahead += text
        self._waiting += tokens
        while self._waiting and (is_last or self._waiting[0].end <= self._begin + len(self._ahead)):
            token = self._waiting.popleft()
            is_end = is_last and not self._waiting
            cut = len(self._ahead) if is_end else max(0, token.end - self._begin)
            shown, self._ahead = self._ahead[:cut], self._ahead[cut:]
            self._begin += len(shown)
            yield token, shown


def _finish(last: ChoiceDelta) -> wire.Finish:
    if last.finish == "length":
        return "length"
    return "stop_sequence" if last.met_stop_string else "eos_token"


def _num_generated(last: ChoiceDelta) -> int:
    """An end token counts."""
    return last.num_tokens + last.num_end_tokens


def _times(timing: Timing, num_tokens: int) -> dict[str, str]:
    """In milliseconds; the time in the queue begins with the submission to the engine."""
    now = time.perf_counter()
    first = timing.first_token or now
    inference = now - timing.submitted - timing.queue_seconds
    seconds = {
        "x-compute-time": now - timing.arrived,
        "x-total-time": now - timing.arrived,
        "x-validation-time": timing.submitted - timing.arrived,
        "x-queue-time": timing.queue_seconds,
        "x-inference-time": inference,
        "x-time-per-token": inference / max(1, num_tokens),
        "x-time-to-first-token": first - timing.arrived,
        "x-time-per-output-token": (now - first) / max(1, num_tokens - 1),
    }
    return {name: str(round(max(0.0, value) * MILLISECONDS)) for name, value in seconds.items()}
