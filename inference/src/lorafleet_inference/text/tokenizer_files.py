"""Reads tokenizers from folders as transformers does."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from lorafleet_inference.adapters.headers import LOOK_BYTES
from lorafleet_inference.text.files import (
    TOKENIZER,
    TextFileError,
    TokenizerConfig,
    check_content,
    read_tokenizer_config,
)


def load_tokenizer(directory: Path) -> tuple[Tokenizer, TokenizerConfig]:
    """Read tokenizer.json and tokenizer_config.json of a model folder.

    Raises:
        TextFileError: tokenizer.json is missing, or a file is malformed.
    """
    path = directory / TOKENIZER
    if not path.is_file():
        raise TextFileError(f"{directory} has no {TOKENIZER}")
    tokenizer = read_tokenizer(path)
    config = read_tokenizer_config(directory) or TokenizerConfig()
    apply_config(tokenizer, config)
    return tokenizer, config


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, which neither cuts nor pads.

    Raises:
        TextFileError: it is malformed.
    """
    try:
        with path.open("rb") as file:
            check_content(path.name, file.read(LOOK_BYTES))
        tokenizer = Tokenizer.from_file(str(path))
    except TextFileError:
        raise
    except Exception as error:
        raise TextFileError(f"{path.name} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def apply_config(tokenizer: Tokenizer, config: TokenizerConfig) -> None:
    """Give the tokenizer the tokens of tokenizer_config.json that tokenizer.json lacks, as transformers does.

    `add_bos_token` and `add_eos_token` mean nothing beside a tokenizer.json, whose post-processor says it.
    """
    known = set(tokenizer.get_added_tokens_decoder())
    for token_id, token in sorted(config.added_tokens_decoder.items()):
        if token_id not in known:
            tokenizer.add_tokens(
                [
                    AddedToken(
                        token.content,
                        lstrip=token.lstrip,
                        normalized=token.normalized,
                        rstrip=token.rstrip,
                        single_word=token.single_word,
                        special=token.special,
                    )
                ]
            )
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([text for text in config.special_tokens.values() if text not in present])
