"""`POST /v1/completions`."""

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

from lorafleet_inference.engine.messages import SamplingParams, TokenLogprobs
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.logprobs import Echoed, completion_logprobs, prompt_logprobs
from lorafleet_inference.server.pod import check_token_ids
from lorafleet_inference.server.requests import MAX_CHOICES, CompletionRequest, parse_completion
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Prompt, Surface
from lorafleet_inference.server.wire import Completion, CompletionChoice, CompletionLogprobs, Usage
from lorafleet_inference.text.output import ShownToken, spelled

THREAD_TOKENS = 512
"""Longer prompts that are echoed are written out in a thread."""


class Completions(Surface[CompletionRequest]):
    """Prompts in, their continuations out."""

    id_prefix = "cmpl"
    prompt_field = "prompt"

    def __init__(self, policy: FieldPolicy) -> None:
        self._policy = policy

    def parse(self, body: bytes) -> CompletionRequest:
        """Read a request."""
        request = parse_completion(body, self._policy)
        if len(request.prompts) * request.num_sequences > MAX_CHOICES:
            field = "n" if request.best_of is None else "best_of"
            raise InvalidValue(f"prompts times {field} are at most {MAX_CHOICES}", param=field)
        return request

    def num_prompts(self, request: CompletionRequest) -> int:
        """Count them."""
        return len(request.prompts)

    def strip_leading(self, _: CompletionRequest) -> bool:
        """A continuation keeps its space."""
        return False

    async def prompts(self, request: CompletionRequest, leased: Leased) -> list[Prompt]:
        """Tokenise texts; take token ids as they are."""
        return [await self._prompt(prompt, request, leased) for prompt in request.prompts]

    async def _prompt(self, prompt: str | list[int], request: CompletionRequest, leased: Leased) -> Prompt:
        if isinstance(prompt, str):
            ids = await self.tokenised(prompt, request, leased)
        else:
            kept = self.num_kept(request, leased)
            ids = tuple(prompt if kept is None else prompt[-kept:])
        if not request.echo:
            return Prompt(ids)
        check_token_ids(ids, SamplingParams(max_tokens=0), leased.vocabulary, prompt_field=self.prompt_field)
        detokenizer = leased.text.detokenizer(strip_leading=True, skip_special=request.skip_special_tokens)
        if len(ids) > THREAD_TOKENS:
            text, offsets = await asyncio.to_thread(spelled, detokenizer, ids)
        else:
            text, offsets = spelled(detokenizer, ids)
        is_whole = isinstance(prompt, str) and request.truncate_prompt_tokens is None
        return Prompt(ids, prompt if is_whole and isinstance(prompt, str) else text, offsets)

    def formatter(self, answer: Answer[CompletionRequest]) -> Formatter:
        """Return who writes this answer."""
        return _CompletionFormatter(answer)


class _CompletionFormatter(Formatter):
    def __init__(self, answer: Answer[CompletionRequest]) -> None:
        self._answer = answer
        self._opened: set[int] = set()

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Completion:
        return self._completion([self._choice(one) for one in choices], usage)

    def _choice(self, choice: Choice) -> CompletionChoice:
        answer = self._answer
        prompt = answer.prompt_of(choice.index)
        return CompletionChoice(
            choice.index,
            prompt.text + choice.text,
            self._logprobs(choice.tokens, self._echoed(prompt, choice.scored), len(prompt.text)),
            choice.finish,
            prompt_logprobs(prompt.token_ids, choice.scored, answer.request.prompt_logprobs, answer.names.pieces),
            answer.token_ids(choice.token_ids),
            answer.prompt_ids(choice.index),
        )

    def events(self, delta: ChoiceDelta, scored: Sequence[TokenLogprobs] | None) -> Iterator[Completion]:
        answer, text, echoed = self._answer, delta.text, None
        prompt, prompt_ids = answer.prompt_of(delta.index), answer.prompt_ids(delta.index)
        if delta.index in self._opened:
            prompt_ids = msgspec.UNSET
        else:
            self._opened.add(delta.index)
            text, echoed = prompt.text + text, self._echoed(prompt, scored)
        logprobs = self._logprobs(delta.tokens, echoed, len(prompt.text)) if delta.tokens or echoed else None
        ids = answer.token_ids(delta.token_ids)
        choice = CompletionChoice(delta.index, text, logprobs, delta.finish, token_ids=ids, prompt_token_ids=prompt_ids)
        yield self._completion([choice], answer.usage(delta))

    def _echoed(self, prompt: Prompt, scored: Sequence[TokenLogprobs] | None) -> Echoed | None:
        request = self._answer.request
        if not request.echo or request.logprobs is None or scored is None:
            return None
        return Echoed(prompt.token_ids, prompt.offsets, scored, request.logprobs)

    def usage_event(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        answer = self._answer
        return Completion(answer.id, answer.created, answer.request.model, choices, "text_completion", usage)

    def _logprobs(
        self, tokens: Sequence[ShownToken], echoed: Echoed | None, num_before: int
    ) -> CompletionLogprobs | None:
        if self._answer.request.logprobs is None:
            return None
        return completion_logprobs(tokens, self._answer.names, echoed, num_before)
