"""`POST /v1/completions`."""

from collections.abc import Iterator, Sequence

from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.logprobs import completion_logprobs, prompt_logprobs
from lorafleet_inference.server.requests import MAX_CHOICES, CompletionRequest, parse_completion
from lorafleet_inference.server.surface import Answer, Choice, Formatter, Leased, Surface, TokenIds
from lorafleet_inference.server.wire import Completion, CompletionChoice, CompletionLogprobs, Usage
from lorafleet_inference.text.output import ShownToken


class Completions(Surface[CompletionRequest]):
    """Prompts in, their continuations out."""

    id_prefix = "cmpl"
    prompt_field = "prompt"
    strip_leading = False

    def parse(self, body: bytes) -> CompletionRequest:
        """Read a request."""
        request = parse_completion(body)
        if len(request.prompts) * request.n > MAX_CHOICES:
            raise InvalidValue(f"prompts times n are at most {MAX_CHOICES}", param="n")
        return request

    def num_prompts(self, request: CompletionRequest) -> int:
        """Count them."""
        return len(request.prompts)

    async def prompts(self, request: CompletionRequest, leased: Leased) -> list[TokenIds]:
        """Tokenise texts; take token ids as they are."""
        return [await self._prompt(prompt, leased) for prompt in request.prompts]

    async def _prompt(self, prompt: str | list[int], leased: Leased) -> TokenIds:
        if isinstance(prompt, str):
            most = leased.facts.max_model_len
            return await leased.text.encode(prompt, add_special_tokens=True, max_tokens=most, field=self.prompt_field)
        return tuple(prompt)

    def formatter(self, answer: Answer[CompletionRequest]) -> Formatter:
        """Return who writes this answer."""
        return _CompletionFormatter(answer)


class _CompletionFormatter(Formatter):
    def __init__(self, answer: Answer[CompletionRequest]) -> None:
        self._answer = answer

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Completion:
        return self._completion([self._choice(one) for one in choices], usage)

    def _choice(self, choice: Choice) -> CompletionChoice:
        of_prompt = prompt_logprobs(choice.prompt_token_ids, choice.scored, self._answer.pieces)
        return CompletionChoice(choice.index, choice.text, self._logprobs(choice.tokens), choice.finish, of_prompt)

    def events(self, delta: ChoiceDelta) -> Iterator[Completion]:
        logprobs = self._logprobs(delta.tokens) if delta.tokens else None
        yield self._completion([CompletionChoice(delta.index, delta.text, logprobs, delta.finish)])

    def usage_event(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        answer = self._answer
        return Completion(answer.id, answer.created, answer.request.model, choices, "text_completion", usage)

    def _logprobs(self, tokens: Sequence[ShownToken]) -> CompletionLogprobs | None:
        wanted = self._answer.request.logprobs is not None
        return completion_logprobs(tokens, self._answer.pieces) if wanted else None
