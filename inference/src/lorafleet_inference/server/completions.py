"""`POST /v1/completions`."""

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.logprobs import Echoed, completion_logprobs, prompt_logprobs
from lorafleet_inference.server.pod import check_token_ids
from lorafleet_inference.server.requests import MAX_CHOICES, CompletionRequest, parse_completion
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Prompt, Surface, TokenIds
from lorafleet_inference.server.wire import Completion, CompletionChoice, CompletionLogprobs, Usage
from lorafleet_inference.text.infill import infill_of
from lorafleet_inference.text.output import ShownToken, spelled

THREAD_TOKENS = 512
"""Longer prompts that are echoed are written out in a thread."""


class Completions(Surface[CompletionRequest]):
    """Prompts in, their continuations out."""

    path = "/v1/completions"
    reads = CompletionRequest
    writes = Completion
    streams_as = Completion
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
        made = []
        for prompt in request.prompts:
            made.append(await self._prompt(prompt, request, leased))
            await asyncio.sleep(0)  # a hundred prompts, each short enough to be tokenised at once, are long together
        return made

    async def _prompt(self, prompt: str | list[int], request: CompletionRequest, leased: Leased) -> Prompt:
        if request.suffix:
            return await self._with_hole(prompt, request, leased)
        ids = await self._ids(prompt, request, leased, add_special_tokens=request.add_special_tokens)
        if not request.echo:
            return Prompt(ids, grammar=request.grammar)
        check_token_ids(ids, SamplingParams(max_tokens=0), leased.vocabulary, prompt_field=self.prompt_field)
        detokenizer = leased.text.detokenizer(strip_leading=True, skip_special=request.skip_special_tokens)
        if len(ids) > THREAD_TOKENS:
            text, offsets = await asyncio.to_thread(spelled, detokenizer, ids)
        else:
            text, offsets = spelled(detokenizer, ids)
        is_whole = isinstance(prompt, str) and request.truncate_prompt_tokens is None
        return Prompt(ids, prompt if is_whole and isinstance(prompt, str) else text, offsets, grammar=request.grammar)

    async def _ids(
        self, prompt: str | list[int], request: CompletionRequest, leased: Leased, *, add_special_tokens: bool
    ) -> TokenIds:
        if isinstance(prompt, str):
            return await self.tokenised(prompt, request, leased, add_special_tokens=add_special_tokens)
        kept = self.num_kept(request, leased)
        return tuple(prompt if kept is None else prompt[-kept:])

    async def _with_hole(self, prompt: str | list[int], request: CompletionRequest, leased: Leased) -> Prompt:
        """The answer stands between prompt and suffix; of a prompt that is cut, its end is kept."""
        infill = infill_of(leased.text.special_id)
        if infill is None:
            raise InvalidValue("the tokenizer of this model has no fill-in-the-middle tokens", param="suffix")
        before = await self._ids(prompt, request, leased, add_special_tokens=False)
        after = await self._inside(request.suffix, leased)
        first = await self._first(leased) if request.add_special_tokens and isinstance(prompt, str) else ()
        return Prompt(infill.arranged(first, before, after), eos_token_ids=infill.ends, grammar=request.grammar)

    async def _inside(self, text: str, leased: Leased) -> TokenIds:
        """Return the ids of a text that does not stand at the beginning, where tokenizers mark a word."""
        anchor, most = "\n", leased.facts.max_model_len
        begin = await leased.text.encode(anchor, add_special_tokens=False, max_tokens=most, field="suffix")
        ids = await leased.text.encode(anchor + text, add_special_tokens=False, max_tokens=most, field="suffix")
        if ids[: len(begin)] == begin:
            return ids[len(begin) :]
        return await leased.text.encode(text, add_special_tokens=False, max_tokens=most, field="suffix")

    async def _first(self, leased: Leased) -> TokenIds:
        """Return what the tokenizer puts before every text."""
        most = leased.facts.max_model_len
        bare = await leased.text.encode("a", add_special_tokens=False, max_tokens=most, field="prompt")
        whole = await leased.text.encode("a", add_special_tokens=True, max_tokens=most, field="prompt")
        places = range(len(whole) - len(bare) + 1)
        return next((whole[:at] for at in places if whole[at : at + len(bare)] == bare), ())

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
