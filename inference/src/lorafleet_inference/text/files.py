"""The small JSON and template files beside a model's or an adapter's weights, read with a size limit."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lorafleet_inference.adapters.headers import LOOK_BYTES, what_it_is_instead

TOKENIZER = "tokenizer.json"
ADDED_TOKENS = "added_tokens.json"
MAX_FILE_BYTES = 32 << 20
"""Larger than any tokenizer_config.json or chat template in use; a folder of a user's must not fill the memory."""


class TextFileError(ValueError):
    """A tokenizer or template file is missing, too large or not what its name says; the message names the file."""


class NamedTemplate(BaseModel):
    """One of several chat templates."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    template: str


class SpecialToken(BaseModel):
    """A token written out with its matching rules."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    content: str
    lstrip: bool = False
    normalized: bool = False
    rstrip: bool = False
    single_word: bool = False
    special: bool = True


class TokenizerConfig(BaseModel):
    """What is read of tokenizer_config.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    bos_token: str | SpecialToken | None = None
    eos_token: str | SpecialToken | None = None
    unk_token: str | SpecialToken | None = None
    sep_token: str | SpecialToken | None = None
    pad_token: str | SpecialToken | None = None
    cls_token: str | SpecialToken | None = None
    mask_token: str | SpecialToken | None = None
    added_tokens_decoder: dict[int, SpecialToken] = {}
    chat_template: str | list[NamedTemplate] | None = None

    @property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, … as text, those that are set."""
        named = {name: getattr(self, name) for name in SPECIAL_TOKEN_NAMES}
        return {name: token_text(token) for name, token in named.items() if token is not None}


class GenerationFields(BaseModel):
    """What is read of an adapter's generation_config.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    eos_token_id: int | list[int] | None = None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """None, one or several."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)


_ADDED_TOKENS = TypeAdapter(dict[str, int])
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def token_text(token: str | SpecialToken) -> str:
    """Return the text of a token in either notation."""
    return token if isinstance(token, str) else token.content


def read_limited(path: Path) -> str | None:
    """Return the UTF-8 text of a file, None where there is none.

    Raises:
        TextFileError: larger than MAX_FILE_BYTES, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(data) > MAX_FILE_BYTES:
        raise TextFileError(f"{path.name} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TextFileError(f"{path.name} is not UTF-8 text") from error


def check_content(name: str, begin: bytes) -> None:
    """Refuse a file of JSON that begins as something that people have in its place.

    Raises:
        TextFileError: it does; says what it is.
    """
    instead = what_it_is_instead(begin)
    if instead is not None:
        raise TextFileError(f"{name} is {instead}")


def _read_json(path: Path) -> str | None:
    text = read_limited(path)
    if text is not None:
        check_content(path.name, text[:LOOK_BYTES].encode(errors="replace"))
    return text


def read_generation_fields(directory: Path) -> GenerationFields:
    """Return what a folder's generation_config.json says; nothing where there is none.

    Raises:
        TextFileError: the file is malformed.
    """
    text = _read_json(directory / "generation_config.json")
    try:
        return GenerationFields() if text is None else GenerationFields.model_validate_json(text)
    except ValidationError as error:
        raise TextFileError(f"generation_config.json is malformed: {error}") from error


def read_tokenizer_config(directory: Path) -> TokenizerConfig | None:
    """Return what a folder's tokenizer_config.json says, special tokens filled from special_tokens_map.json.

    Raises:
        TextFileError: a file is malformed.
    """
    text = _read_json(directory / "tokenizer_config.json")
    if text is None:
        return None
    try:
        config = TokenizerConfig.model_validate_json(text)
        named = json.loads(_read_json(directory / "special_tokens_map.json") or "{}")
        missing = {name: named[name] for name in SPECIAL_TOKEN_NAMES if name in named and getattr(config, name) is None}
        return TokenizerConfig.model_validate({**config.model_dump(), **missing}) if missing else config
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise TextFileError(f"tokenizer_config.json or special_tokens_map.json is malformed: {error}") from error


def read_added_tokens(directory: Path) -> dict[str, int]:
    """Return what a folder's added_tokens.json says: the ids of tokens by their texts; nothing where there is none.

    Raises:
        TextFileError: the file is malformed.
    """
    text = _read_json(directory / ADDED_TOKENS)
    try:
        return {} if text is None else _ADDED_TOKENS.validate_json(text)
    except ValidationError as error:
        raise TextFileError(f"{ADDED_TOKENS} is malformed: {error}") from error
