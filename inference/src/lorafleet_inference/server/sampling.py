"""The one place where the fields of a request become sampling parameters."""

from collections.abc import Awaitable, Callable, Sequence

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.errors import InvalidValue, UnsupportedParameter
from lorafleet_inference.server.requests import INT64, GenerationRequest

NO_SEED = -1
"""Clients of other servers write it for no seed."""
LOWEST_TEMPERATURE = 1e-5
"""Dividing logits by less overflows; it is as good as greedy."""
TokenIds = tuple[int, ...]


def sampling_of(
    request: GenerationRequest,
    *,
    max_tokens: int,
    choice: int,
    eos_token_ids: TokenIds = (),
    bad_words: tuple[TokenIds, ...] = (),
    grammar: str | None = None,
) -> SamplingParams:
    """Return how one choice of a prompt is sampled; `eos_token_ids` are the adapter's own.

    Choice i of a seeded request draws with seed + i; `top_p` 0 is greedy. The prompt is scored once, for its first choice,
    whose scores are shown with each; in streams, where nothing waits for another choice, for each.
    """
    seeded = request.seed is not None and request.seed != NO_SEED
    num_logprobs = request.num_logprobs
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=request.temperature if request.top_p > 0 and request.temperature > LOWEST_TEMPERATURE else 0.0,
        top_p=request.top_p if request.top_p > 0 else 1.0,
        top_k=request.top_k if request.top_k > 0 else None,
        min_p=request.min_p,
        typical_p=request.typical_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in request.logit_bias.items()),
        allowed_token_ids=tuple(request.allowed_token_ids),
        bad_words=bad_words,
        grammar=grammar,
        min_tokens=min(request.min_tokens, max_tokens),
        seed=((request.seed or 0) + choice) % INT64 if seeded else None,
        stop_token_ids=tuple(request.stop_token_ids),
        eos_token_ids=eos_token_ids,
        ignore_eos=request.ignore_eos,
        show_end=request.include_stop_str_in_output or request.return_token_ids or request.is_ranked,
        num_logprobs=0 if num_logprobs is None and request.is_ranked else num_logprobs,
        prompt_logprobs=request.num_prompt_logprobs if choice == 0 or request.stream else None,
        max_draft_tokens=request.num_speculative_tokens,
    )


def check_drafts(request: GenerationRequest, max_draft_tokens: int) -> None:
    """Refuse a request for draft tokens where the base makes at most `max_draft_tokens`; 0: none.

    Raises:
        RequestError: UnsupportedParameter or InvalidValue, of `num_speculative_tokens`.
    """
    wanted = request.num_speculative_tokens or 0
    if wanted and not max_draft_tokens:
        message = (
            "'num_speculative_tokens' is not supported: no answers of this base are drafted (--speculative-tokens)"
        )
        raise UnsupportedParameter(message, param="num_speculative_tokens")
    if wanted > max_draft_tokens:
        message = (
            f"num_speculative_tokens: at most {max_draft_tokens}, as many as this base drafts (--speculative-tokens)"
        )
        raise InvalidValue(message, param="num_speculative_tokens")


async def bad_word_ids(words: Sequence[str], encode: Callable[[str], Awaitable[TokenIds]]) -> tuple[TokenIds, ...]:
    """Return the token sequences of words that an answer must not have: at its beginning, and inside behind a space.

    The second form counts where it is another word of the vocabulary, not a space and the first form.
    """
    found: list[TokenIds] = []
    for word in words:
        bare = word.lstrip()
        first, inside = await encode(bare), await encode(f" {bare}")
        found.append(first)
        if inside and first and inside[0] != first[0] and len(inside) == len(first):
            found.append(inside)
    return tuple(one for one in found if one)
