"""Text to token ids with a bound: far longer texts than fit are not tokenised to their end."""

from tokenizers import Tokenizer

FIRST_CHARS_PER_TOKEN = 8
MIN_CHARS = 8192
SPARE_TOKENS = 1024
"""Beyond twice the context: what follows a beginning may change how its last words are cut, never most of it."""


def encode_bounded(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, max_tokens: int, max_piece_bytes: int | None
) -> tuple[int, ...] | None:
    """Return the token ids of a text, None if they are far more than `max_tokens`.

    `max_piece_bytes`: of the longest token, where a length bounds the number of tokens. Gives up Python's lock for most of
    the time.
    """
    if max_piece_bytes is not None and len(text) > max_piece_bytes * max_tokens:
        return None
    num_chars = max(FIRST_CHARS_PER_TOKEN * max_tokens, MIN_CHARS)
    while num_chars < len(text):
        if len(_encode(tokenizer, text[:num_chars], add_special_tokens=False)) > 2 * max_tokens + SPARE_TOKENS:
            return None
        num_chars *= 2
    return tuple(_encode(tokenizer, text, add_special_tokens=add_special_tokens))


def encode_last(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, num_tokens: int) -> tuple[int, ...]:
    """Return the last tokens of a text. Of a long one only an end is tokenised, with a good part more than is kept."""
    num_chars = max(FIRST_CHARS_PER_TOKEN * num_tokens, MIN_CHARS)
    while True:
        (encoding,) = tokenizer.encode_batch_fast([text[-num_chars:]], add_special_tokens=False)
        if num_chars >= len(text) or len(encoding.ids) > 2 * num_tokens + SPARE_TOKENS:
            break
        num_chars *= 2
    num_added = tokenizer.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0
    encoding.truncate(max(0, num_tokens - num_added), direction="left")
    return tuple(tokenizer.post_process(encoding, None, add_special_tokens).ids)


def _encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    # the only call of the library that lets other threads run meanwhile
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
