"""An adapter's own tokenizer: what its folder says, and a table of its tokens. Runs in `tokenizer_process.py` only.

Without a tokenizer.json of its own, an adapter may add tokens to the base's tokenizer (tokenizer_config.json,
added_tokens.json).
"""

import hashlib
from array import array
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from lorafleet_inference.text.files import (
    ADDED_TOKENS,
    TOKENIZER,
    SpecialToken,
    TextFileError,
    TokenizerConfig,
    read_added_tokens,
    read_tokenizer_config,
)
from lorafleet_inference.text.pieces import PieceTable
from lorafleet_inference.text.table import TableOfTokens
from lorafleet_inference.text.tokenizer_files import apply_config, load_tokenizer, read_tokenizer

MAX_NAMED = 4096
"""Added tokens that are known by their texts; models have some hundreds."""


class OwnTokenizer(msgspec.Struct, frozen=True, array_like=True):
    """What the API process has to know of an adapter's own tokenizer."""

    key: str
    """The same for tokenizers that do the same."""
    num_tokens: int
    largest_id: int
    largest_token: str
    is_exact: bool
    """Whether each token stands for the same bytes wherever it is."""
    table: TableOfTokens | None
    """None where it is not exact, or has ids that the adapter has no rows for."""


def build(directory: Path, base_directory: Path) -> Tokenizer:
    """Return the tokenizer of an adapter's folder.

    Raises:
        TextFileError: a file is malformed, or a token would not get the id that the folder says.
    """
    config = read_tokenizer_config(directory) or TokenizerConfig()
    if has_tokenizer(directory):
        tokenizer = read_tokenizer(directory / TOKENIZER)
        apply_config(tokenizer, config)
        return tokenizer
    tokenizer, _ = load_tokenizer(base_directory)
    tokens, special = dict(config.added_tokens_decoder), set(config.special_tokens.values())
    named = {token.content for token in tokens.values()}
    added = {text: token_id for text, token_id in read_added_tokens(directory).items() if text not in named}
    tokens |= {token_id: SpecialToken(content=text, special=text in special) for text, token_id in added.items()}
    apply_config(tokenizer, config.model_copy(update={"added_tokens_decoder": tokens}))
    for token_id, token in tokens.items():
        found = tokenizer.token_to_id(token.content)
        if found != token_id:
            where = ADDED_TOKENS if token.content in added else "tokenizer_config.json"
            raise TextFileError(
                f"{where}: the token {token.content!r} has the id {token_id}, and {found} after the base's tokens"
            )
    return tokenizer


def has_tokenizer(directory: Path) -> bool:
    """Whether a folder has a tokenizer.json; one without content is as good as absent."""
    path = directory / TOKENIZER
    return path.is_file() and path.stat().st_size > 0


def key_of(tokenizer: Tokenizer) -> str:
    """Return what is the same for tokenizers that do the same."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def describe(tokenizer: Tokenizer, directory: Path, num_rows: int) -> OwnTokenizer:
    """Return what is to be known of a tokenizer; `num_rows`: of the embedding that it is used with."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(vocabulary, key=lambda text: vocabulary[text], default="")
    largest_id = vocabulary.get(largest, -1)
    pieces = PieceTable(tokenizer)
    return OwnTokenizer(
        key_of(tokenizer),
        len(vocabulary),
        largest_id,
        largest,
        pieces.exact,
        _table(pieces, largest_id + 1, _named(tokenizer, directory))
        if pieces.exact and largest_id < num_rows
        else None,
    )


def _named(tokenizer: Tokenizer, directory: Path) -> dict[str, int]:
    """Return the ids of the added tokens by their texts, first those that tokenizer_config.json gives a meaning."""
    added = tokenizer.get_added_tokens_decoder()
    special = (read_tokenizer_config(directory) or TokenizerConfig()).special_tokens.values()
    ids = {text: tokenizer.token_to_id(text) for text in special}
    ids |= {token.content: token_id for token_id, token in sorted(added.items())[:MAX_NAMED]}
    return {text: token_id for text, token_id in ids.items() if token_id is not None}


def _table(pieces: PieceTable, num_ids: int, named: dict[str, int]) -> TableOfTokens:
    shown, ends, end = [], array("I"), 0
    for token_id in range(num_ids):
        piece = pieces.shown(token_id)
        end += len(piece)
        shown.append(piece)
        ends.append(end)
    special = [token_id for token_id in range(num_ids) if pieces.is_special(token_id)]
    return TableOfTokens(b"".join(shown), ends.tobytes(), special, pieces.num_leading_spaces, named)


def has_own(directory: Path, base_directory: Path, base: Tokenizer) -> bool:
    """Whether an adapter's folder says anything of tokens that the base's tokenizer does not.

    Raises:
        TextFileError: a file is malformed.
    """
    own = directory / TOKENIZER
    if has_tokenizer(directory) and _digest(own) != _digest(base_directory / TOKENIZER):
        return True
    config = read_tokenizer_config(directory) or TokenizerConfig()
    tokens = {token.content: token_id for token_id, token in config.added_tokens_decoder.items()}
    if not has_tokenizer(directory):
        tokens |= read_added_tokens(directory)
    is_known = all(base.token_to_id(text) == token_id for text, token_id in tokens.items())
    return not (is_known and all(base.token_to_id(text) is not None for text in config.special_tokens.values()))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
